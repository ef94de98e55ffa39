"""Frames off an asyncio stream. What server and client share of reading."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from caa.ttrpc.frames import HEADER, MAX_DATA

# How much of a frame that is too long is held at a time while it is thrown away.
_DISCARD_CHUNK = 64 << 10


class Frame(NamedTuple):
    """One frame. `data` is None when `length` is over the limit of the protocol; the bytes are thrown away then."""

    length: int
    stream_id: int
    type: int
    flags: int
    data: bytes | None


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame, or None when the peer ended, be it between frames or inside one. Raises OSError."""
    try:
        length, stream_id, frame_type, flags = HEADER.unpack(await reader.readexactly(HEADER.size))
        if length <= MAX_DATA:
            return Frame(length, stream_id, frame_type, flags, await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
    left = length
    while left:
        chunk = await reader.read(min(left, _DISCARD_CHUNK))
        if not chunk:
            return None
        left -= len(chunk)
    return Frame(length, stream_id, frame_type, flags, None)


async def close_writer(writer: asyncio.StreamWriter, flush_seconds: float) -> None:
    """Close the stream; what is still to be sent gets at most `flush_seconds`. Never raises for the stream's sake."""
    writer.close()
    try:
        async with asyncio.timeout(flush_seconds):
            await writer.wait_closed()
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()
