"""A TCP port for a server that a test starts by its number."""

from __future__ import annotations

import socket

# Bound for as long as this process lives. Nobody is given such a port, for a connection of its own or otherwise, and
# a server still binds it: both ask for SO_REUSEADDR, and this socket does not listen.
_held: list[socket.socket] = []


def held_port() -> int:
    """A port of 127.0.0.1 that is nobody's but the server's that the test starts, now or again later."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    _held.append(held)
    return int(held.getsockname()[1])
