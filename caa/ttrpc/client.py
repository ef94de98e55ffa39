"""The ttrpc client: any number of calls at once over one unix socket connection. It never reconnects or retries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from caa.ttrpc.frames import (
    HEADER,
    MAX_DATA,
    REQUEST,
    RESPONSE,
    Code,
    KeyValue,
    Request,
    Response,
    StatusError,
    frame,
)
from caa.ttrpc.protobuf import DecodeError
from caa.ttrpc.streams import Frame, close_writer, read_frame

Metadata = Mapping[str, Sequence[str]]

# What is unsent when the client is closed is of no use to anybody: long enough for an orderly end only.
_FLUSH_SECONDS = 0.2
_NANO = 1_000_000_000


class Client:
    """One connection. Made by `connect`; use it as an async context manager or `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._last_id = -1
        self._ended = False
        self._reading = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: str | Path) -> Self:
        """Connect to the unix socket `path`. Raises ConnectionError when nobody listens there."""
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError as error:
            raise ConnectionError(f"cannot connect to {path}: {error.strerror or error}") from error
        return cls(reader, writer)

    async def call(
        self, service: str, method: str, payload: bytes, timeout: float | None = None, metadata: Metadata | None = None
    ) -> bytes:
        """Make one call and return the response message.

        `timeout` is in seconds; it travels with the call. Raises StatusError when the server answers so (also
        with DEADLINE_EXCEEDED) or the request is over 4 MiB, TimeoutError when no answer came in time,
        ConnectionError when the connection ended: then the call may or may not have had its effect.
        """
        if timeout is not None and timeout <= 0:
            raise TimeoutError(f"no time left to call {method}")
        request = Request(
            service=service,
            method=method,
            payload=payload,
            timeout_nano=0 if timeout is None else max(1, int(timeout * _NANO)),  # 0 means none
            metadata=[KeyValue(key=key, value=value) for key, values in (metadata or {}).items() for value in values],
        )
        stream_id = self._free_id()
        data = frame(stream_id, REQUEST, request.encode())
        if len(data) - HEADER.size > MAX_DATA:
            text = f"request length {len(data) - HEADER.size} exceed maximum message size of {MAX_DATA}"
            raise StatusError(Code.RESOURCE_EXHAUSTED, text)
        if self._ended:
            raise ConnectionError("the connection has ended")
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[stream_id] = answer
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(data)
                await self._writer.drain()
                return await answer
        except TimeoutError:
            raise TimeoutError(f"{method} was not answered within {timeout:g} s") from None
        finally:
            del self._waiting[stream_id]
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # an error that came together with the time-out counts as seen

    async def close(self) -> None:
        """End the connection; calls under way get a ConnectionError. May be called again."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        await close_writer(self._writer, _FLUSH_SECONDS)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _free_id(self) -> int:
        """The next odd id that no call holds. They start again after 2**31 calls."""
        while True:
            self._last_id = (self._last_id + 2) & 0xFFFFFFFF
            if self._last_id not in self._waiting:
                return self._last_id

    async def _read(self) -> None:
        try:
            with contextlib.suppress(OSError):
                while (got := await read_frame(self._reader)) is not None:
                    self._deliver(got)
        finally:
            self._ended = True
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(ConnectionError("the connection ended before the answer"))
            self._writer.close()

    def _deliver(self, got: Frame) -> None:
        answer = self._waiting.get(got.stream_id)
        if got.type != RESPONSE or answer is None or answer.done():
            return  # too late an answer, or a frame type to come
        try:
            answer.set_result(_payload(got))
        except StatusError as error:
            answer.set_exception(error)


def _payload(got: Frame) -> bytes:
    if got.data is None:
        text = f"message length {got.length} exceed maximum message size of {MAX_DATA}"
        raise StatusError(Code.RESOURCE_EXHAUSTED, text)
    try:
        response = Response.decode(got.data)
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, f"the answer is not a ttrpc response: {error}") from error
    if response.status is not None and response.status.code != Code.OK:
        raise StatusError(response.status.code, response.status.message)
    return response.payload


async def call_once(
    path: str | Path,
    service: str,
    method: str,
    payload: bytes,
    timeout: float | None = None,
    metadata: Metadata | None = None,
) -> bytes:
    """Connect, make one call, and close, as the Kata shim does. Raises what `Client.call` raises."""
    async with await Client.connect(path) as client:
        return await client.call(service, method, payload, timeout, metadata)
