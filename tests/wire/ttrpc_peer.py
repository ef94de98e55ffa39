"""A raw ttrpc peer over a real socket, for what no orderly client would send, and the check that nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from caa.ttrpc.frames import HEADER, REQUEST, KeyValue, Request, Response, Status, frame
from caa.ttrpc.server import Handler, Server

DEADLINE = 20.0  # seconds until a test that waits for something is given up

Services = Mapping[str, Mapping[str, Handler]]


def request(
    stream_id: int,
    method: str,
    payload: bytes = b"",
    service: str = "test.Test",
    timeout_nano: int = 0,
    metadata: list[tuple[str, str]] | None = None,
) -> bytes:
    """A whole request frame."""
    pairs = [KeyValue(key=key, value=value) for key, value in metadata or []]
    envelope = Request(service=service, method=method, payload=payload, timeout_nano=timeout_nano, metadata=pairs)
    return frame(stream_id, REQUEST, envelope.encode())


class Reply(NamedTuple):
    """One response frame."""

    stream_id: int
    code: int
    message: str
    payload: bytes


class Peer:
    """One raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, path: Path) -> Self:
        return cls(*await asyncio.open_unix_connection(str(path)))

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def reply(self) -> Reply:
        length, stream_id, frame_type, flags = HEADER.unpack(await self._reader.readexactly(HEADER.size))
        assert (frame_type, flags) == (2, 0)
        response = Response.decode(await self._reader.readexactly(length))
        status = response.status or Status()
        return Reply(stream_id, status.code, status.message, response.payload)

    async def ask(self, data: bytes) -> Reply:
        await self.send(data)
        return await self.reply()

    async def at_end(self) -> bool:
        """True when the server ended the connection and sent nothing more."""
        return not await self._reader.read(1)

    def finish_sending(self) -> None:
        self._writer.write_eof()

    async def hang_up(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something the peer's side does in its own time."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.001)


def open_files() -> set[tuple[str, str]]:
    """What this process has open: each descriptor and what it is, for a number alone may be taken again.

    Compare with `<=`: the garbage collector may end what an earlier test dropped at any moment.
    """
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            found.add((descriptor, os.readlink(f"/proc/self/fd/{descriptor}")))
    return found


@contextlib.asynccontextmanager
async def serving(services: Services, path: Path, grace_seconds: float = 0.0) -> AsyncIterator[Server]:
    """A server on `path`; at the end nothing of it may be left: no task, no descriptor, no socket file."""
    tasks, files = len(asyncio.all_tasks()), open_files()
    server = Server(services)
    await server.listen(path)
    try:
        async with asyncio.timeout(DEADLINE):
            yield server
    finally:
        await server.close(grace_seconds)
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await until(lambda: open_files() <= files)
    assert not path.exists()


@contextlib.asynccontextmanager
async def peer_of(services: Services) -> AsyncIterator[Peer]:
    """A peer on a socket pair with a server of its own; at the end nothing of either may be left."""
    tasks, files = len(asyncio.all_tasks()), open_files()
    server = Server(services)
    ours, theirs = socket.socketpair()
    connection = asyncio.create_task(server.serve_socket(theirs))
    peer = Peer(*await asyncio.open_unix_connection(sock=ours))
    try:
        async with asyncio.timeout(DEADLINE):
            yield peer
    finally:
        await peer.hang_up()
        await connection
    await until(lambda: len(asyncio.all_tasks()) == tasks)
    await until(lambda: open_files() <= files)
