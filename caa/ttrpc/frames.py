"""The ttrpc frame and its envelope messages. Pure; reads and writes bytes, no sockets.

Frame: data length u32, stream id u32, type u8, flags u8, all big-endian, then the data. No handshake, no ping,
no cancel. Source of every number here: the ttrpc protocol description of containerd/ttrpc.
"""

from __future__ import annotations

import enum
import struct

from caa.ttrpc.protobuf import LEN, DecodeError, Message, field, read_fields

HEADER = struct.Struct(">IIBB")
# 4 MiB, what every ttrpc implementation accepts; a longer one is answered with RESOURCE_EXHAUSTED.
MAX_DATA = 4 << 20
# Characters of an error message that are sent: no person reads more, and the answer stays far below the limit above.
_MAX_TEXT = 16 << 10

REQUEST, RESPONSE, DATA = 1, 2, 3
# Flags. All of Kata's calls are unary and carry none.
REMOTE_CLOSED, REMOTE_OPEN, NO_DATA = 0x01, 0x02, 0x04


class Code(enum.IntEnum):
    """Status codes, the same as gRPC's."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(Exception):
    """A call answered with a status other than OK. str() is the message the caller sees."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class KeyValue(Message):
    """One piece of metadata; a repeated key is a list."""

    key: str = field(1)
    value: str = field(2)


class Request(Message):
    """The envelope of a call. `timeout_nano` is what is left when it was sent, 0 for none."""

    service: str = field(1)
    method: str = field(2)
    payload: bytes = field(3)
    timeout_nano: int = field(4)
    metadata: list[KeyValue] = field(5)


class Status(Message):
    """google.rpc.Status."""

    code: int = field(1)
    message: str = field(2)
    details: list[bytes] = field(3)


class Response(Message):
    """The envelope of an answer. With an error the payload is empty: Go clients decode it before the status."""

    status: Status | None = field(1)
    payload: bytes = field(2)


def frame(stream_id: int, frame_type: int, data: bytes | memoryview, flags: int = 0) -> bytes:
    """Header and data as one piece, for both must reach the wire together."""
    return b"".join((HEADER.pack(len(data), stream_id, frame_type, flags), data))


def response_frame(stream_id: int, payload: bytes) -> bytes:
    """A successful answer."""
    return frame(stream_id, RESPONSE, Response(status=Status(), payload=payload).encode())


def error_frame(stream_id: int, code: int, text: str) -> bytes:
    """An answer that says what went wrong. Any text will do: a long one is cut, what is not Unicode is replaced."""
    message = text[:_MAX_TEXT].encode("utf-8", "replace").decode()
    return frame(stream_id, RESPONSE, Response(status=Status(code=code, message=message)).encode())


def peek_method(request: bytes | memoryview) -> tuple[str, str]:
    """Service and method of a Request envelope, without copying its payload. Raises DecodeError."""
    names = {1: "", 2: ""}
    for number, wire_type, value in read_fields(request):
        if number in names:
            if wire_type != LEN or isinstance(value, int):
                raise DecodeError("service and method must be text")
            names[number] = str(value, "utf-8", "replace")
    return names[1], names[2]
