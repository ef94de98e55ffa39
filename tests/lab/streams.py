"""Servers of asyncio that end while somebody connects."""

from __future__ import annotations

import asyncio


async def turns(count: int = 5) -> None:
    """Let the loop do what is to be done at once, and what follows of that."""
    for _ in range(count):
        await asyncio.sleep(0)


async def close_server(server: asyncio.Server) -> None:
    """Accept nothing more. What was accepted before is a connection by then, in the charge of its task.

    `Server.close` alone loses what was accepted in the turn before: the socket stays open, and when it is collected
    as garbage a warning meets whatever test runs then.
    """
    loop = asyncio.get_running_loop()
    for listener in server.sockets:
        loop.remove_reader(listener)
    await turns()
    server.close()
