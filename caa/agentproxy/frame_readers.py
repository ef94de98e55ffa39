"""Cuts what arrives on a connection into ttrpc frames, wherever the reads split them. Pure.

Requests go on piece by piece, so that a long one is never held. Responses go on whole: when the link to the pod VM
breaks inside a response, a part already delivered could be completed only by made-up bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST, RESPONSE, Code, error_frame, peek_method
from caa.ttrpc.protobuf import DecodeError

_SHORT = 0x80  # a length below this is one byte
_SERVICE_TAG, _METHOD_TAG = 0x0A, 0x12  # fields 1 and 2 of Request, both text


class Head(NamedTuple):
    """The beginning of a frame. `service` and `method` are empty if it is no request, or not a readable one."""

    stream_id: int
    is_request: bool
    flags: int
    service: str
    method: str
    whole: bool  # the piece is the whole frame


class Piece(NamedTuple):
    """A part of a frame: the first with its head, those after it with None."""

    head: Head | None
    data: memoryview


class RequestReader:
    """Reads frames of the shim. `hold_limit(service, method)` is up to how many bytes a request is given out whole."""

    def __init__(self, hold_limit: Callable[[str, str], int]) -> None:
        self._hold_limit = hold_limit
        self._held = bytearray()
        self._passing = 0

    @property
    def inside_frame(self) -> bool:
        """A frame was given out in part, and its rest is to come."""
        return self._passing > 0

    def feed(self, chunk: memoryview) -> list[Piece]:
        """The pieces that `chunk` completes, in order. They may refer to `chunk`."""
        held = self._held
        if held:
            held += chunk
            chunk = memoryview(held)
            self._held = bytearray()
        pieces: list[Piece] = []
        at, end = 0, len(chunk)
        while at < end:
            if self._passing:
                size = min(self._passing, end - at)
                pieces.append(Piece(None, chunk[at : at + size]))
                self._passing -= size
                at += size
                continue
            piece = self._begin(chunk[at:])
            if piece is None:
                break
            pieces.append(piece)
            at += len(piece.data)
        if at < end:
            if held and at == 0:
                chunk.release()
                self._held = held
            else:
                self._held = bytearray(chunk[at:])
        return pieces

    def _begin(self, chunk: memoryview) -> Piece | None:
        """The first piece of the frame that begins here, or None if too little of it has come."""
        have = len(chunk) - HEADER.size
        if have < 0:
            return None
        length, stream_id, frame_type, flags = HEADER.unpack_from(chunk)
        service = method = ""
        if frame_type == REQUEST and length <= MAX_DATA:
            names = _peek(chunk[HEADER.size : HEADER.size + length], length)
            if names is None:
                return None
            service, method = names
            if have < length <= self._hold_limit(service, method):
                return None
        whole = have >= length
        if not whole:
            self._passing = length - have
        head = Head(stream_id, frame_type == REQUEST, flags, service, method, whole)
        return Piece(head, chunk[: HEADER.size + length] if whole else chunk)


def _peek(data: memoryview, length: int) -> tuple[str, str] | None:
    """Service and method from what has come of a request of `length` bytes; None if more is needed."""
    have = len(data)
    # Every known client writes the two names first, each shorter than 128 bytes.
    if have > 1 and data[0] == _SERVICE_TAG and data[1] < _SHORT:
        middle = 2 + data[1]
        if have > middle + 1 and data[middle] == _METHOD_TAG and data[middle + 1] < _SHORT:
            end = middle + 2 + data[middle + 1]
            if have >= end:
                return str(data[2:middle], "utf-8", "replace"), str(data[middle + 2 : end], "utf-8", "replace")
    if have < length:
        return None
    try:
        return peek_method(data)
    except DecodeError:
        return "", ""  # the agent says what is wrong with it


class Delivery(NamedTuple):
    """What may go to the shim now, and the streams it answers."""

    data: list[bytes | bytearray | memoryview]
    answered: list[int]


class ResponseReader:
    """Reads frames of the pod VM and gives out whole ones only."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._skipping = 0

    def reset(self) -> None:
        """Forget the frame begun; the connection it came on is gone."""
        self._held = bytearray()
        self._skipping = 0

    def feed(self, chunk: memoryview) -> Delivery:
        """The frames that `chunk` completes. They may refer to `chunk`."""
        skip = min(self._skipping, len(chunk))
        self._skipping -= skip
        chunk = chunk[skip:]
        held = self._held
        if held:
            held += chunk
            chunk = memoryview(held)
            self._held = bytearray()
        delivery = Delivery([], [])
        begin = at = 0  # whole frames from `begin` to `at` are still to be given out
        end = len(chunk)
        while end - at >= HEADER.size:
            length, stream_id, frame_type, _ = HEADER.unpack_from(chunk, at)
            if length > MAX_DATA:
                _give(delivery, chunk[begin:at])
                _refuse(delivery, length, stream_id, frame_type)
                behind = at + HEADER.size + length
                self._skipping = max(0, behind - end)
                begin = at = min(behind, end)
                continue
            if end - at - HEADER.size < length:
                break
            at += HEADER.size + length
            if frame_type == RESPONSE:
                delivery.answered.append(stream_id)
        _give(delivery, chunk[begin:at])
        if at < end:
            if held and at == 0:
                chunk.release()
                self._held = held
            else:
                self._held = bytearray(chunk[at:])
        return delivery


def _give(delivery: Delivery, data: memoryview) -> None:
    if data:
        delivery.data.append(data)


def _refuse(delivery: Delivery, length: int, stream_id: int, frame_type: int) -> None:
    """Answer for a response that is too long, as clients that read one do."""
    if frame_type == RESPONSE:
        text = f"message length {length} exceed maximum message size of {MAX_DATA}"
        delivery.data.append(error_frame(stream_id, Code.RESOURCE_EXHAUSTED, text))
        delivery.answered.append(stream_id)
