"""The measure of the agent proxy: a relay that only copies bytes between a unix socket and TLS, with asyncio's own
transports. `python -m tests.bench.plain_relay SOCKET PORT SERVER_NAME CA CERT KEY`
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from typing import cast


class _Side(asyncio.Protocol):
    """One end; what it reads goes to the other, which holds it back when its buffer is full."""

    def __init__(self) -> None:
        self.other: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def join(self, other: _Side) -> None:
        self.other, other.other = other, self
        assert other.transport is not None
        for data in self._early:
            other.transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self.other is None or self.other.transport is None:
            self._early.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other and self.other.transport:
            self.other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other and self.other.transport:
            self.other.transport.close()


async def serve(path: str, port: int, server_name: str, context: ssl.SSLContext) -> None:
    """Relay every connection to `path` to 127.0.0.1:`port`, for ever."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def dial(shim: _Side) -> None:
        _, guest = await loop.create_connection(_Side, "127.0.0.1", port, ssl=context, server_hostname=server_name)
        shim.join(guest)

    def accept() -> _Side:
        shim = _Side()
        task = asyncio.create_task(dial(shim))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return shim

    server = await loop.create_unix_server(accept, path)
    await server.serve_forever()


def main() -> None:
    path, port, server_name, ca, cert, key = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=ca)
    context.load_cert_chain(cert, key)
    asyncio.run(serve(path, int(port), server_name, context))


if __name__ == "__main__":
    main()
