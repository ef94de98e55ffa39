"""The guests of every emulated instance, in one process: what answers at an instance's addresses.

Each address of 127.50.0.0/16 (private) and 127.51.0.0/16 (public) is this machine, so a listener on (address, 15150)
is all a guest's network needs. A guest is there while the emulator says that its instance answers: bound then, closed
and reset when the instance ends. It reads its own user data with the code that runs in a pod VM, so an instance whose
user data a pod VM would refuse never answers.

    python -m tests.clouds.fakeguest EMULATOR_URL --ready-fd N      ends when its standard input does
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import os
import ssl
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from caa.agentproxy.health import serving_frame
from caa.guest.apf import Identity, read_identity, server_context
from caa.guest.userdata import parse, write_files
from caa.ttrpc.frames import HEADER, REQUEST, Request, response_frame
from tests.clouds.faultproxy import reset
from tests.clouds.process import ServerProcess, end_with_parent

PORT = 15150
# How long one question for changes stays open at the emulator.
_WATCH_SECONDS = 5.0
# Calls of an agent that end when something happens in the pod, which here nothing does.
_LONG_CALLS = frozenset({"WaitProcess", "GetOOMEvent", "ReadStdout", "ReadStderr"})


def identity_of(user_data: bytes) -> Identity:
    """What a pod VM makes of its user data. Raises UserDataError or ConfigError."""
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        root = Path(name)
        write_files(parse(user_data), root)
        return read_identity(root / "run/peerpod/apf.json", root / "etc/certificates")


class Guest:
    """One instance's guest: mutual TLS, and an agent that is healthy and says yes to everything."""

    def __init__(self, address: str, port: int, context: ssl.SSLContext) -> None:
        self._address, self._port, self._context = address, port, context
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._address, self._port, ssl=self._context)

    def stop(self) -> None:
        """The machine is off: nothing listens, and every connection is reset."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._connections):
            reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while True:
                    length, stream_id, frame_type, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                    data = await reader.readexactly(length)
                    answer = _answer(stream_id, Request.decode(data)) if frame_type == REQUEST else None
                    if answer is not None:
                        writer.write(answer)
                        await writer.drain()
        finally:
            self._connections.discard(writer)
            writer.transport.abort()


def _answer(stream_id: int, request: Request) -> bytes | None:
    if request.service == "grpc.Health" and request.method == "Check":
        return serving_frame(stream_id)
    if request.method in _LONG_CALLS:
        return None
    return response_frame(stream_id, b"")


class Guests:
    """Keeps the guests that run equal to those that should."""

    def __init__(self, url: str, port: int) -> None:
        self._url, self._port = url, port
        self._running: dict[tuple[str, str], Guest] = {}  # (address, instance id)
        self._refused: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Until cancelled, or until the emulator is gone."""
        version = -1
        async with httpx.AsyncClient(base_url=self._url, timeout=60, trust_env=False) as client:
            while True:
                answer = await _ask(client, "watch", version=version, seconds=_WATCH_SECONDS)
                version = answer["version"]
                await self._match(client, {(address, one) for address, one in answer["guests"].items()})

    async def _match(self, client: httpx.AsyncClient, wanted: set[tuple[str, str]]) -> None:
        for key in self._running.keys() - wanted:
            self._running.pop(key).stop()
        for address, instance_id in wanted - self._running.keys() - self._refused:
            try:
                answer = await _ask(client, "user_data", instance_id=instance_id)
                context = server_context(identity_of(base64.b64decode(answer["user_data"])))
                guest = Guest(address, self._port, context)
                await guest.start()
            except Exception as error:
                # As a VM that boots and cannot go on: it is there, and its port never opens.
                print(f"{instance_id} at {address}: no guest: {error}", file=sys.stderr, flush=True)
                self._refused.add((address, instance_id))
            else:
                self._running[address, instance_id] = guest


async def _ask(client: httpx.AsyncClient, verb: str, **arguments: Any) -> dict[str, Any]:
    response = await client.post(f"/_control/{verb}", json=arguments)
    response.raise_for_status()
    return dict(response.json())


class FakeGuests:
    """Context manager: the process, as a test starts it."""

    def __init__(self, emulator_url: str, port: int = PORT) -> None:
        self.server = ServerProcess("tests.clouds.fakeguest", [emulator_url, "--port", str(port)])

    def __enter__(self) -> FakeGuests:
        self.server.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.__exit__(kind, value, trace)

    def wait_for_log(self, text: str, seconds: float = 60.0) -> None:
        """Until the process wrote that; it says which instances have no guest, and why."""
        deadline = time.monotonic() + seconds
        while text not in self.server.log_tail():
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.server.log_tail()}"
            time.sleep(0.02)


def main() -> None:
    """Serve until the parent or the emulator is gone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--ready-fd", type=int, required=True)
    arguments = parser.parse_args()
    end_with_parent()
    with os.fdopen(arguments.ready_fd, "w") as ready:
        ready.write("ready\n")
    with contextlib.suppress(httpx.TransportError):
        asyncio.run(Guests(arguments.url, arguments.port).run())


if __name__ == "__main__":
    main()
