"""The frame readers and the relay between plain sockets, with reads split anywhere."""

from __future__ import annotations

import asyncio
import socket

from hypothesis import given, settings
from hypothesis import strategies as st

from caa.agentproxy.frame_readers import RequestReader, ResponseReader
from caa.agentproxy.relay import Relay
from caa.agentproxy.repeatable import hold_limit
from caa.agentproxy.streams import Stream
from caa.agentproxy.volumes import PodVolumes
from caa.ttrpc.frames import (
    DATA,
    HEADER,
    MAX_DATA,
    REQUEST,
    RESPONSE,
    Code,
    Request,
    Response,
    error_frame,
    frame,
    response_frame,
)

NAMES = st.sampled_from(
    [
        ("grpc.AgentService", "WaitProcess"),
        ("grpc.AgentService", "CreateContainer"),
        ("grpc.AgentService", "CopyFile"),
        ("some.new.Service", "Unheard"),
        ("", ""),
        ("x" * 200, "y" * 300),
    ]
)


@st.composite
def request_frames(draw: st.DrawFn) -> bytes:
    """A frame of any kind: a request, one that cannot be read, data of a stream, a type to come."""
    stream_id = draw(st.integers(0, 2**32 - 1))
    kind = draw(st.sampled_from(["request", "garbage", "data", "future"]))
    if kind == "request":
        service, method = draw(NAMES)
        request = Request(service=service, method=method, payload=draw(st.binary(max_size=300)))
        return frame(stream_id, REQUEST, request.encode() + draw(st.sampled_from([b"", b"\x9a\x06\x03abc"])))
    frame_type = {"garbage": REQUEST, "data": DATA, "future": 9}[kind]
    return frame(stream_id, frame_type, draw(st.binary(max_size=40)), draw(st.integers(0, 255)))


def split(data: bytes, places: list[int]) -> list[bytes]:
    cuts = sorted({place % (len(data) + 1) for place in places})
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if begin < end]


@given(st.lists(request_frames(), max_size=6), st.lists(st.integers(0, 10_000), max_size=20))
def test_requests_split_anywhere_come_out_byte_exact_and_once_each(frames: list[bytes], places: list[int]) -> None:
    data = b"".join(frames)
    reader = RequestReader(hold_limit)
    out, heads = b"", []
    for chunk in split(data, places):
        for piece in reader.feed(memoryview(chunk)):
            out += piece.data
            if piece.head is not None:
                heads.append(piece.head)
    assert out == data
    assert not reader.inside_frame
    assert [head.stream_id for head in heads] == [HEADER.unpack_from(one)[1] for one in frames]


@given(st.lists(request_frames(), min_size=1, max_size=6), st.lists(st.integers(0, 10_000), max_size=20))
def test_names_are_read_the_same_however_a_request_was_split(frames: list[bytes], places: list[int]) -> None:
    data = b"".join(frames)

    def names(chunks: list[bytes]) -> list[tuple[str, str]]:
        reader = RequestReader(hold_limit)
        pieces = [piece for chunk in chunks for piece in reader.feed(memoryview(chunk))]
        return [(piece.head.service, piece.head.method) for piece in pieces if piece.head is not None]

    assert names(split(data, places)) == names([data])


def test_a_long_request_goes_on_before_it_is_whole_and_create_container_only_when_whole() -> None:
    body = Request(service="grpc.AgentService", method="CopyFile", payload=bytes(1 << 20)).encode()
    reader = RequestReader(hold_limit)
    pieces = reader.feed(memoryview(frame(1, REQUEST, body)[:5000]))
    assert [len(piece.data) for piece in pieces] == [5000]
    assert reader.inside_frame
    body = Request(service="grpc.AgentService", method="CreateContainer", payload=bytes(1 << 20)).encode()
    reader = RequestReader(hold_limit)
    whole = frame(1, REQUEST, body)
    assert reader.feed(memoryview(whole[:5000])) == []
    (piece,) = reader.feed(memoryview(whole[5000:]))
    assert piece.head is not None
    assert piece.head.whole
    assert bytes(piece.data) == whole


def test_a_request_longer_than_ttrpc_allows_passes_without_being_held() -> None:
    reader = RequestReader(hold_limit)
    beginning = HEADER.pack(MAX_DATA + 1, 7, REQUEST, 0) + b"abc"
    (piece,) = reader.feed(memoryview(beginning))
    assert bytes(piece.data) == beginning


@given(
    st.lists(st.tuples(st.sampled_from([RESPONSE, DATA, 9]), st.binary(max_size=300)), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_responses_split_anywhere_come_out_byte_exact_and_whole(
    items: list[tuple[int, bytes]], places: list[int]
) -> None:
    frames = [frame(2 * index + 1, kind, body) for index, (kind, body) in enumerate(items)]
    data = b"".join(frames)
    boundaries = {0}
    for one in frames:
        boundaries.add(max(boundaries) + len(one))
    reader = ResponseReader()
    out, answered = b"", []
    for chunk in split(data, places):
        delivery = reader.feed(memoryview(chunk))
        out += b"".join(delivery.data)
        assert len(out) in boundaries
        answered += delivery.answered
    assert out == data
    assert answered == [2 * index + 1 for index, (kind, _) in enumerate(items) if kind == RESPONSE]


@settings(max_examples=20, deadline=None)  # each is 4 MiB
@given(st.lists(st.integers(0, 10_000), max_size=5))
def test_a_response_longer_than_ttrpc_allows_is_replaced_by_an_error(places: list[int]) -> None:
    before, after = response_frame(1, b"before"), response_frame(5, b"after")
    data = before + HEADER.pack(MAX_DATA + 1, 3, RESPONSE, 0) + bytes(MAX_DATA + 1) + after
    reader = ResponseReader()
    out, answered = b"", []
    for chunk in split(data, [*places, len(data) - 3]):
        delivery = reader.feed(memoryview(chunk))
        out += b"".join(delivery.data)
        answered += delivery.answered
    middle = out[len(before) : -len(after)]
    assert (out[: len(before)], out[-len(after) :], answered) == (before, after, [1, 3, 5])
    status = Response.decode(middle[HEADER.size :]).status
    assert status is not None
    assert status.code == Code.RESOURCE_EXHAUSTED


def test_nothing_of_a_response_begun_before_a_reset_is_left() -> None:
    reader = ResponseReader()
    assert reader.feed(memoryview(response_frame(1, bytes(1000))[:500])).data == []
    reader.reset()
    assert b"".join(reader.feed(memoryview(response_frame(3, b"new"))).data) == response_frame(3, b"new")


async def _receive(loop: asyncio.AbstractEventLoop, sock: socket.socket, size: int) -> bytes:
    out = b""
    while len(out) < size:
        data = await asyncio.wait_for(loop.sock_recv(sock, 65536), 10)
        assert data
        out += data
    return out


async def _pass_through(requests: list[bytes], responses: list[bytes], places: list[int]) -> None:
    loop = asyncio.get_running_loop()
    shim, shim_side = socket.socketpair()
    guest, guest_side = socket.socketpair()
    for sock in (shim, shim_side, guest, guest_side):
        sock.setblocking(False)

    async def open_link() -> Stream:
        return Stream(guest_side)

    relay = Relay("sb", Stream(shim_side), open_link, 5.0, PodVolumes("", []), lambda relay: None)
    try:
        for data, sender, receiver in ((requests, shim, guest), (responses, guest, shim)):
            whole = b"".join(data)
            for chunk in split(whole, places):
                await loop.sock_sendall(sender, chunk)
                await asyncio.sleep(0)
            assert await _receive(loop, receiver, len(whole)) == whole
    finally:
        relay.close()
        shim.close()
        guest.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(request_frames(), min_size=1, max_size=5),
    st.lists(st.binary(max_size=200), max_size=5),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_frames_split_anywhere_survive_the_relay_byte_exact(
    requests: list[bytes], payloads: list[bytes], places: list[int]
) -> None:
    responses = [response_frame(2 * index + 1, payload) for index, payload in enumerate(payloads)]
    responses.append(error_frame(99, Code.NOT_FOUND, "none"))
    asyncio.run(_pass_through(requests, responses, places))
