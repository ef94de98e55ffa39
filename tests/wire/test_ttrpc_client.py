"""The client: what its callers get when servers answer, err, stay silent, or go away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from caa.ttrpc.client import Client, call_once
from caa.ttrpc.frames import HEADER, MAX_DATA, Code, Request, StatusError, error_frame, frame, response_frame
from caa.ttrpc.server import Call
from tests.wire.test_ttrpc_server import Gate, run
from tests.wire.ttrpc_peer import DEADLINE, open_files, serving, until

Answerer = Callable[[int, Request, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def answering(path: Path, answer: Answerer) -> AsyncIterator[None]:
    """A server that does to each request what `answer` says; for answers that ours never gives."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                length, stream_id, _, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
                await answer(stream_id, Request.decode(await reader.readexactly(length)), writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        async with asyncio.timeout(DEADLINE):
            yield
    finally:
        server.close()


def test_a_late_answer_is_dropped_and_the_next_call_is_answered(tmp_path: Path) -> None:
    async def test() -> None:
        path, gate = tmp_path / "s", Gate()

        async def deaf(payload: bytes, _: Call) -> bytes:
            while not gate.open.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await gate.open.wait()
            return payload

        services = gate.services | {"deaf.Deaf": {"Deaf": deaf}}
        async with serving(services, path), await Client.connect(path) as client:
            with pytest.raises(TimeoutError, match=r"Deaf was not answered within 0\.02 s"):
                await client.call("deaf.Deaf", "Deaf", b"late", timeout=0.02)
            gate.open.set()
            assert await client.call("test.Test", "Echo", b"next") == b"next"

    run(test())


def test_a_silent_server_costs_no_more_than_the_time_out(tmp_path: Path) -> None:
    async def test() -> None:
        async def silent(_: int, __: Request, ___: asyncio.StreamWriter) -> None:
            pass

        async with answering(tmp_path / "s", silent):
            with pytest.raises(TimeoutError, match=r"Ask was not answered within 0\.02 s"):
                await call_once(tmp_path / "s", "a.B", "Ask", b"", timeout=0.02)

    run(test())


def test_the_deadline_travels_in_nanoseconds_and_metadata_as_a_list(tmp_path: Path) -> None:
    async def test() -> None:
        got: list[Request] = []

        async def note(stream_id: int, request: Request, writer: asyncio.StreamWriter) -> None:
            got.append(request)
            writer.write(response_frame(stream_id, b""))

        async with answering(tmp_path / "s", note):
            await call_once(tmp_path / "s", "a.B", "Ask", b"p", timeout=600, metadata={"k": ["1", "2"]})
            await call_once(tmp_path / "s", "a.B", "Ask", b"p")
        assert got[0].timeout_nano == 600 * 10**9
        assert [(pair.key, pair.value) for pair in got[0].metadata] == [("k", "1"), ("k", "2")]
        assert got[1] == Request(service="a.B", method="Ask", payload=b"p")

    run(test())


def test_a_call_without_time_left_is_not_sent(tmp_path: Path) -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(gate.services, tmp_path / "s"), await Client.connect(tmp_path / "s") as client:
            with pytest.raises(TimeoutError, match="no time left to call Hold"):
                await client.call("test.Test", "Hold", b"", timeout=0)
            assert await client.call("test.Test", "Echo", b"") == b""
            assert gate.begun == 0

    run(test())


@pytest.mark.parametrize(
    ("answer", "code", "message"),
    [
        (lambda sid: error_frame(sid, Code.NOT_FOUND, "no such"), Code.NOT_FOUND, "no such"),
        (lambda sid: frame(sid, 2, b"\xff"), Code.INTERNAL, "not a ttrpc response"),
        (lambda sid: HEADER.pack(MAX_DATA + 1, sid, 2, 0) + bytes(MAX_DATA + 1), Code.RESOURCE_EXHAUSTED, "4194305"),
    ],
)
def test_an_answer_other_than_success_raises_its_status(
    tmp_path: Path, answer: Callable[[int], bytes], code: Code, message: str
) -> None:
    async def test() -> None:
        async def reply(stream_id: int, request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(answer(stream_id) if request.method == "Bad" else response_frame(stream_id, b"good"))
            await writer.drain()

        async with answering(tmp_path / "s", reply), await Client.connect(tmp_path / "s") as client:
            with pytest.raises(StatusError, match=message) as caught:
                await client.call("a.B", "Bad", b"")
            assert caught.value.code == code
            assert await client.call("a.B", "Good", b"") == b"good"

    run(test())


def test_frames_that_answer_nothing_are_ignored(tmp_path: Path) -> None:
    async def test() -> None:
        async def reply(stream_id: int, _: Request, writer: asyncio.StreamWriter) -> None:
            for noise in (
                response_frame(stream_id + 2, b"nobody's"),
                frame(stream_id, 3, b""),
                frame(stream_id, 9, b"x"),
            ):
                writer.write(noise)
            writer.write(frame(stream_id, 2, b""))  # no status at all is a success too

        async with answering(tmp_path / "s", reply):
            assert await call_once(tmp_path / "s", "a.B", "Ask", b"") == b""

    run(test())


def test_calls_under_way_fail_when_the_server_goes_and_later_ones_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async def leave(_: int, __: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(b"\0\0")  # inside a header
            writer.close()

        async with answering(tmp_path / "s", leave), await Client.connect(tmp_path / "s") as client:
            results = await asyncio.gather(*(client.call("a.B", "Ask", b"") for _ in range(3)), return_exceptions=True)
            assert [type(result) for result in results] == [ConnectionError] * 3
            with pytest.raises(ConnectionError):
                await client.call("a.B", "Ask", b"")

    run(test())


@pytest.mark.parametrize("there", [False, True])
def test_nobody_listening_is_a_connection_error_that_names_the_socket(tmp_path: Path, there: bool) -> None:
    path = tmp_path / "s"
    if there:
        path.write_text("")
    with pytest.raises(ConnectionError, match=str(path)):
        asyncio.run(call_once(path, "a.B", "Ask", b""))


def test_a_cancelled_call_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(gate.services, tmp_path / "s"), await Client.connect(tmp_path / "s") as client:
            calls = [asyncio.create_task(client.call("test.Test", "Hold", b"")) for _ in range(10)]
            await until(lambda: gate.begun == 10)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            gate.open.set()
            assert await client.call("test.Test", "Echo", b"x") == b"x"
            assert client._waiting == {}

    run(test())


def test_closing_at_once_or_twice_leaves_no_task_and_no_descriptor(tmp_path: Path) -> None:
    async def test() -> None:
        tasks = len(asyncio.all_tasks())
        async with serving({}, tmp_path / "s"):
            files = open_files()
            for _ in range(20):
                client = await Client.connect(tmp_path / "s")
                await client.close()
                await client.close()
            await until(lambda: open_files() <= files and len(asyncio.all_tasks()) == tasks)

    run(test())


def test_stream_ids_start_again_and_pass_over_those_in_use(tmp_path: Path) -> None:
    async def test() -> None:
        gate = Gate()
        async with serving(gate.services, tmp_path / "s"), await Client.connect(tmp_path / "s") as client:
            held = asyncio.create_task(client.call("test.Test", "Hold", b"first"))
            await until(lambda: gate.begun == 1)
            client._last_id = 0xFFFFFFFD
            assert await client.call("test.Test", "Echo", b"last id") == b"last id"
            assert await client.call("test.Test", "Echo", b"passed 1") == b"passed 1"
            assert client._last_id == 3
            gate.open.set()
            assert await held == b"first"

    run(test())
