"""Whatever arrives, however it is cut: every frame gets the one answer it deserves, and nothing leaks."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import example, given, settings
from hypothesis import strategies as st

from caa.ttrpc.frames import DATA, HEADER, MAX_DATA, REQUEST, Code, frame
from caa.ttrpc.protobuf import LEN, VARINT, write_field
from tests.wire.test_ttrpc_server import SERVICES, run
from tests.wire.ttrpc_peer import Peer, peer_of, request


class Sent(NamedTuple):
    """A frame, and what must come back on its stream: code, part of the message, payload. None: nothing."""

    data: bytes
    answer: tuple[Code, str, bytes] | None


def refused(code: Code, message: str) -> tuple[Code, str, bytes]:
    return code, message, b""


# Each kind of frame, given a stream id of its own (odd) and some bytes.
KINDS: dict[str, Callable[[int, bytes], Sent]] = {
    "good": lambda sid, raw: Sent(request(sid, "Echo", raw), (Code.OK, "", raw)),
    "even": lambda sid, raw: Sent(request(sid - 1, "Echo", raw), refused(Code.INVALID_ARGUMENT, "is even")),
    "garbage": lambda sid, raw: Sent(
        frame(sid, REQUEST, b"\x0b" + raw), refused(Code.INVALID_ARGUMENT, "not a ttrpc request")
    ),
    "wrong field": lambda sid, raw: Sent(
        frame(sid, REQUEST, write_field(1, VARINT, 5) + write_field(9, LEN, raw)),
        refused(Code.INVALID_ARGUMENT, "field service must be str"),
    ),
    "bad payload": lambda sid, raw: Sent(
        request(sid, "Decode", b"\x0b" + raw),
        refused(Code.INTERNAL, "ttrpc: error unmarshalling payload: "),
    ),
    "no service": lambda sid, raw: Sent(
        request(sid, "Echo", raw, service="no.Such"), refused(Code.UNIMPLEMENTED, "service no.Such")
    ),
    "no method": lambda sid, raw: Sent(request(sid, "NoSuch", raw), refused(Code.UNIMPLEMENTED, "method NoSuch")),
    "defect": lambda sid, raw: Sent(request(sid, "BreakDown", raw), refused(Code.UNKNOWN, "BreakDown")),
    "too late": lambda sid, raw: Sent(
        request(sid, "Echo", raw, timeout_nano=-1), refused(Code.DEADLINE_EXCEEDED, "deadline")
    ),
    "data": lambda sid, raw: Sent(frame(sid, DATA, raw, len(raw) & 7), refused(Code.INVALID_ARGUMENT, "takes no data")),
    "response": lambda sid, raw: Sent(frame(sid, 2, raw), None),
    "unknown type": lambda sid, raw: Sent(frame(sid, 4 + len(raw), raw), None),
    "type zero": lambda sid, raw: Sent(frame(sid, 0, raw, 255), None),
    "too long": lambda sid, raw: Sent(
        HEADER.pack(MAX_DATA + 1 + len(raw), sid, REQUEST, 0) + bytes(MAX_DATA + 1) + raw,
        refused(Code.RESOURCE_EXHAUSTED, f"message length {MAX_DATA + 1 + len(raw)} exceed"),
    ),
}

kinds = st.sampled_from([kind for kind in KINDS if kind != "too long"])
raw = st.binary(max_size=60)


async def send_in_pieces(peer: Peer, data: bytes, sizes: list[int]) -> None:
    """Cut `data` into pieces of these sizes, over and over; each is a read of its own for the server."""
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            return
        await peer.send(data[at : at + size])
        await asyncio.sleep(0)
        at += size


def check_answers(plan: list[tuple[str, bytes]], sizes: list[int]) -> None:
    sent = [KINDS[kind](4 * n + 3, some) for n, (kind, some) in enumerate(plan)]
    expected = {
        4 * n + (2 if kind == "even" else 3): one.answer
        for n, ((kind, _), one) in enumerate(zip(plan, sent, strict=True))
        if one.answer is not None
    }

    async def test() -> None:
        async with peer_of(SERVICES) as peer:
            last = request(4 * len(plan) + 3, "Echo", b"last")
            sending = asyncio.create_task(send_in_pieces(peer, b"".join(one.data for one in sent) + last, sizes))
            replies = {reply.stream_id: reply for reply in [await peer.reply() for _ in range(len(expected) + 1)]}
            await sending
            assert replies.pop(4 * len(plan) + 3).payload == b"last"
            assert replies.keys() == expected.keys()
            for sid, (code, message, payload) in expected.items():
                assert (replies[sid].code, replies[sid].payload) == (code, payload)
                assert message in replies[sid].message

    run(test())


@settings(deadline=None)
@given(st.lists(st.tuples(kinds, raw), max_size=12), st.lists(st.integers(1, 40), min_size=1, max_size=5))
@example([(kind, b"x") for kind in KINDS if kind != "too long"], [1])
def test_every_frame_gets_its_answer_however_the_stream_is_cut(plan: list[tuple[str, bytes]], sizes: list[int]) -> None:
    check_answers(plan, sizes)


@settings(deadline=None, max_examples=8)
@given(st.lists(st.tuples(kinds, raw), max_size=3), raw, st.integers(5_000, 1 << 20))
def test_frames_behind_one_that_is_too_long_are_read_as_if_it_were_not_there(
    plan: list[tuple[str, bytes]], some: bytes, size: int
) -> None:
    check_answers([*plan, ("too long", some), *plan], [size])


@settings(deadline=None)
@given(st.binary(max_size=400), st.booleans())
@example(b"\x00\x40\x00\x01\x00\x00\x00\x01\x01\x00" + bytes(100), True)  # ends inside what is thrown away
@example(b"\xff\xff\xff\xff\x00\x00\x00\x01\x01\x00", False)  # 4 GiB announced
@example(b"\x00\x00\x00\x05\x00\x00\x00\x01\x01", True)  # ends inside a header
def test_arbitrary_bytes_never_stop_the_server_nor_leave_anything_behind(data: bytes, orderly: bool) -> None:
    async def test() -> None:
        async with peer_of(SERVICES) as peer:
            await peer.send(data)
            if orderly:
                peer.finish_sending()
                while not await peer.at_end():
                    pass

    run(test())


@settings(deadline=None)
@given(st.data(), kinds, raw)
def test_a_connection_may_end_anywhere_inside_a_frame(data: st.DataObject, kind: str, some: bytes) -> None:
    whole = KINDS[kind](3, some).data
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]

    async def test() -> None:
        async with peer_of(SERVICES) as peer:
            await peer.send(part)
            peer.finish_sending()
            assert await peer.at_end()

    run(test())
