"""The server towards orderly callers: calls, deadlines, ends of connections, sockets, stopping."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from caa.ttrpc.client import Client, call_once
from caa.ttrpc.frames import HEADER, MAX_DATA, Code, Request, StatusError
from caa.ttrpc.server import MAX_IN_FLIGHT, Call, Handler, Server
from tests.wire.ttrpc_peer import DEADLINE, Peer, peer_of, request, serving, until


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, DEADLINE * 2))


class Gate:
    """Handlers that tell what happened to them. `hold` answers only once `open` is set."""

    def __init__(self) -> None:
        self.begun = self.ended = self.cancelled = 0
        self.open = asyncio.Event()
        self.calls: list[Call] = []

    async def hold(self, payload: bytes, call: Call) -> bytes:
        self.begun += 1
        self.calls.append(call)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.ended += 1
        return payload

    @property
    def services(self) -> dict[str, dict[str, Handler]]:
        return {"test.Test": {"Hold": self.hold, "Echo": echo}}


async def echo(payload: bytes, _: Call) -> bytes:
    return payload


async def refuse(payload: bytes, _: Call) -> bytes:
    raise StatusError(Code.NOT_FOUND, payload.decode())


async def break_down(_: bytes, __: Call) -> bytes:
    raise RuntimeError("the password is hunter2")


async def decode(payload: bytes, _: Call) -> bytes:
    Request.decode(payload)
    return b""


async def swell(payload: bytes, _: Call) -> bytes:
    return bytes(int(payload))


async def cancel_itself(_: bytes, __: Call) -> bytes:
    raise asyncio.CancelledError


SERVICES: dict[str, dict[str, Handler]] = {
    "test.Test": {
        "Echo": echo,
        "Refuse": refuse,
        "BreakDown": break_down,
        "Decode": decode,
        "Swell": swell,
        "CancelItself": cancel_itself,
    }
}


def test_many_calls_on_one_connection_run_at_once_and_end_in_any_order(tmp_path: Path) -> None:
    async def test() -> None:
        gate, path = Gate(), tmp_path / "s"
        async with serving(gate.services, path), await Client.connect(path) as client:
            held = [asyncio.create_task(client.call("test.Test", "Hold", b"%d" % n)) for n in range(100)]
            await until(lambda: gate.begun == 100)
            echoes = await asyncio.gather(*(client.call("test.Test", "Echo", b"e%d" % n) for n in range(500)))
            assert echoes == [b"e%d" % n for n in range(500)]
            gate.open.set()
            assert await asyncio.gather(*held) == [b"%d" % n for n in range(100)]

    run(test())


def test_a_connection_per_call_works_as_the_go_shim_does_it(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        async with serving(SERVICES, path):
            calls = [call_once(path, "test.Test", "Echo", b"%d" % n, timeout=DEADLINE) for n in range(100)]
            assert await asyncio.gather(*calls) == [b"%d" % n for n in range(100)]

    run(test())


def test_the_handler_is_told_deadline_and_metadata_with_lower_case_keys() -> None:
    async def test() -> None:
        gate = Gate()
        gate.open.set()
        async with peer_of(gate.services) as peer:
            pairs = [("Name", "a"), ("name", "b"), ("other", "")]
            await peer.ask(request(1, "Hold", timeout_nano=1_500_000_000_000, metadata=pairs))
            await peer.ask(request(3, "Hold"))
        assert gate.calls == [
            Call("test.Test", "Hold", 1500.0, {"name": ["a", "b"], "other": [""]}, os.getpid()),
            Call("test.Test", "Hold", None, {}, os.getpid()),
        ]

    run(test())


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        (request(1, "Echo", service="no.Such"), Code.UNIMPLEMENTED, "service no.Such"),
        (request(1, "NoSuch"), Code.UNIMPLEMENTED, "method NoSuch"),
        (request(1, "N" * 4_194_280), Code.UNIMPLEMENTED, "method NNN"),
        (request(1, "Refuse", b"no sandbox x"), Code.NOT_FOUND, "no sandbox x"),
        (request(1, "Decode", b"\x0a\x05ab"), Code.INTERNAL, "ttrpc: error unmarshalling payload: field 1 ends"),
        (request(1, "Swell", b"4194305"), Code.RESOURCE_EXHAUSTED, "exceed maximum message size of 4194304"),
        (request(1, "CancelItself"), Code.CANCELLED, "CancelItself"),
        (request(1, "Echo", timeout_nano=-1), Code.DEADLINE_EXCEEDED, "deadline"),
        (request(2, "Echo"), Code.INVALID_ARGUMENT, "stream id 2 is even"),
        (HEADER.pack(0, 1, 3, 1), Code.INVALID_ARGUMENT, "stream 1 takes no data"),
        (HEADER.pack(3, 1, 1, 0) + b"\xff\xff\xff", Code.INVALID_ARGUMENT, "not a ttrpc request"),
    ],
)
def test_each_refusal_says_why_and_leaves_the_connection_usable(frame: bytes, code: Code, message: str) -> None:
    async def test() -> None:
        async with peer_of(SERVICES) as peer:
            reply = await peer.ask(frame)
            assert (reply.stream_id, reply.code) == (2 if "even" in message else 1, code)
            assert message in reply.message
            assert reply.payload == b""
            assert len(reply.message) < 20_000
            assert (await peer.ask(request(9, "Echo", b"still here"))).payload == b"still here"

    run(test())


def test_a_defect_in_a_handler_tells_the_log_all_and_the_caller_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with peer_of(SERVICES) as peer:
            reply = await peer.ask(request(1, "BreakDown"))
            assert reply.code == Code.UNKNOWN
            assert "BreakDown" in reply.message
            assert "hunter2" not in reply.message

    with caplog.at_level(logging.ERROR):
        run(test())
    assert "hunter2" in caplog.text
    assert "Traceback" in caplog.text


def test_the_largest_request_and_response_pass(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        envelope = len(Request(service="test.Test", method="Echo", payload=b"x" * 4_000_000).encode()) - 4_000_000
        largest = os.urandom(MAX_DATA - envelope)
        async with serving(SERVICES, path), await Client.connect(path) as client:
            assert await client.call("test.Test", "Echo", largest) == largest
            with pytest.raises(StatusError, match="request length 4194305") as caught:
                await client.call("test.Test", "Echo", largest + b"x")
            assert caught.value.code == Code.RESOURCE_EXHAUSTED

    run(test())


def test_a_frame_that_is_too_long_is_thrown_away_and_refused() -> None:
    async def test() -> None:
        async with peer_of(SERVICES) as peer:
            await peer.send(HEADER.pack(MAX_DATA + 70_000, 5, 1, 0) + bytes(MAX_DATA + 70_000))
            reply = await peer.ask(request(7, "Echo", b"next"))
            assert (reply.stream_id, reply.code) == (5, Code.RESOURCE_EXHAUSTED)
            assert reply.message == f"message length {MAX_DATA + 70_000} exceed maximum message size of {MAX_DATA}"
            assert (await peer.reply()).payload == b"next"

    run(test())


def test_stream_ids_need_not_increase_but_must_not_be_in_use() -> None:
    async def test() -> None:
        gate = Gate()
        async with peer_of(gate.services) as peer:
            await peer.send(request(5, "Hold", b"five"))
            assert (await peer.ask(request(3, "Echo", b"three"))).payload == b"three"
            assert (await peer.ask(request(3, "Echo", b"again"))).payload == b"again"
            refusal = await peer.ask(request(5, "Echo"))
            assert (refusal.stream_id, refusal.code) == (5, Code.INVALID_ARGUMENT)
            assert "stream id 5 is in use" in refusal.message
            gate.open.set()
            assert (await peer.reply()).payload == b"five"

    run(test())


def test_a_handler_is_cancelled_at_its_deadline_and_the_caller_is_told() -> None:
    async def test() -> None:
        gate = Gate()
        async with peer_of(gate.services) as peer:
            reply = await peer.ask(request(1, "Hold", timeout_nano=30_000_000))
            assert reply.code == Code.DEADLINE_EXCEEDED
            assert "0.03 s" in reply.message
            assert (gate.begun, gate.cancelled) == (1, 1)

    run(test())


def test_the_end_of_a_connection_cancels_its_handlers_and_no_others(tmp_path: Path) -> None:
    async def test() -> None:
        gate, path = Gate(), tmp_path / "s"
        async with serving(gate.services, path), await Client.connect(path) as other:
            held = asyncio.create_task(other.call("test.Test", "Hold", b"other"))
            peer = await Peer.connect(path)
            await peer.send(b"".join(request(n, "Hold") for n in (1, 3, 5)))
            await until(lambda: gate.begun == 4)
            await peer.hang_up()
            await until(lambda: gate.cancelled == 3)
            gate.open.set()
            assert await held == b"other"

    run(test())


def test_a_caller_that_only_finishes_sending_counts_as_gone() -> None:
    async def test() -> None:
        gate = Gate()
        async with peer_of(gate.services) as peer:
            await peer.send(request(1, "Hold"))
            await until(lambda: gate.begun == 1)
            peer.finish_sending()
            assert await peer.at_end()
            assert gate.cancelled == 1

    run(test())


def test_a_handler_begins_even_if_its_caller_hung_up_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        path, kept = tmp_path / "s", []

        async def keep(payload: bytes, _: Call) -> bytes:
            kept.append(payload)  # before the first suspension, so it may be relied upon
            await asyncio.Event().wait()
            return b""

        async with serving({"test.Test": {"Keep": keep}}, path):
            for n in range(50):
                with socket.socket(socket.AF_UNIX) as caller:
                    caller.connect(str(path))
                    caller.sendall(request(1, "Keep", b"%d" % n))
            await until(lambda: len(kept) == 50)

    run(test())


def test_a_handler_begins_even_if_the_end_was_there_before_its_call_was_read(tmp_path: Path) -> None:
    async def test() -> None:
        path, kept = tmp_path / "s", []

        async def keep(payload: bytes, _: Call) -> bytes:
            kept.append(payload)
            await asyncio.Event().wait()
            return b""

        async with serving({"test.Test": {"Keep": keep, "Swell": swell, "Echo": echo}}, path):
            peer = await Peer.connect(path)
            # The big answers hold up the reading of what follows until we take them.
            await peer.send(b"".join(request(n, "Swell", b"4000000") for n in (1, 3)) + request(5, "Keep", b"x"))
            peer.finish_sending()
            for _ in range(20):
                await call_once(path, "test.Test", "Echo", b"", timeout=DEADLINE)
            assert kept == []
            assert [(await peer.reply()).code for _ in range(2)] == [Code.OK] * 2
            assert await peer.at_end()
            assert kept == [b"x"]
            await peer.hang_up()

    run(test())


def test_a_caller_that_does_not_read_holds_up_only_itself(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        answered = 0

        async def big(_: bytes, __: Call) -> bytes:
            nonlocal answered
            answered += 1
            return bytes(1 << 20)

        async with serving({"test.Test": {"Big": big, "Echo": echo}}, path):
            peer = await Peer.connect(path)
            await peer.send(b"".join(request(2 * n + 1, "Big") for n in range(100)))
            for _ in range(100):
                assert await call_once(path, "test.Test", "Echo", b"x", timeout=DEADLINE) == b"x"
            assert 0 < answered < 10  # what one connection's buffers take, not what was asked
            assert [(await peer.reply()).code for _ in range(100)] == [Code.OK] * 100
            await peer.send(b"".join(request(2 * n + 1, "Big") for n in range(100)))
            await peer.hang_up()

    run(test())


def test_a_connection_has_a_limit_of_open_calls_and_says_so() -> None:
    async def test() -> None:
        gate = Gate()
        async with peer_of(gate.services) as peer:
            await peer.send(b"".join(request(2 * n + 1, "Hold") for n in range(MAX_IN_FLIGHT)))
            await until(lambda: gate.begun == MAX_IN_FLIGHT)
            refusal = await peer.ask(request(2 * MAX_IN_FLIGHT + 1, "Echo"))
            assert refusal.code == Code.RESOURCE_EXHAUSTED
            assert str(MAX_IN_FLIGHT) in refusal.message
            gate.open.set()
            for _ in range(MAX_IN_FLIGHT):
                await peer.reply()
            assert (await peer.ask(request(2 * MAX_IN_FLIGHT + 1, "Echo"))).code == Code.OK

    run(test())


def test_the_socket_is_for_its_owner_alone_in_a_directory_made_so(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "made" / "s"
        async with serving(SERVICES, path):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    old = os.umask(0o022)
    try:
        run(test())
    finally:
        os.umask(old)


def test_a_socket_file_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()

    async def test() -> None:
        async with serving(SERVICES, path):
            assert await call_once(path, "test.Test", "Echo", b"x", timeout=DEADLINE) == b"x"

    run(test())


def test_a_socket_somebody_listens_on_is_left_alone(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        async with serving(SERVICES, path):
            second = Server({})
            with pytest.raises(OSError, match=r"another process is listening.*/s'"):
                await second.listen(path)
            await second.close(0)
            assert await call_once(path, "test.Test", "Echo", b"x", timeout=DEADLINE) == b"x"

    run(test())


def test_a_listener_with_a_full_backlog_counts_as_somebody(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(OSError, match="another process is listening"):
            asyncio.run(Server({}).listen(path))
    assert path.is_socket()


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(OSError, match="is no socket"):
        asyncio.run(Server({}).listen(path))
    assert path.read_text() == "precious"


def test_a_path_too_long_for_a_socket_is_refused_by_its_length(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="at most 107 bytes"):
        asyncio.run(Server({}).listen(tmp_path / ("x" * 108)))


def test_closing_leaves_a_socket_that_another_server_put_in_place(tmp_path: Path) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        first, second = Server({}), Server(SERVICES)
        await first.listen(path)
        path.unlink()
        await second.listen(path)
        await first.close(0)
        assert await call_once(path, "test.Test", "Echo", b"x", timeout=DEADLINE) == b"x"
        await second.close(0)
        assert not path.exists()

    run(test())


def test_closing_lets_calls_finish_and_refuses_new_ones(tmp_path: Path) -> None:
    async def test() -> None:
        gate, path = Gate(), tmp_path / "s"
        server = Server(gate.services)
        await server.listen(path)
        async with await Client.connect(path) as client:
            held = asyncio.create_task(client.call("test.Test", "Hold", b"held"))
            await until(lambda: gate.begun == 1)
            closing = asyncio.create_task(server.close(DEADLINE))
            await until(lambda: not path.exists())
            with pytest.raises(StatusError, match="stopping") as caught:
                await client.call("test.Test", "Echo", b"")
            assert caught.value.code == Code.UNAVAILABLE
            gate.open.set()
            assert await held == b"held"
            await closing

    run(test())


def test_closing_cancels_what_does_not_end_in_its_grace_time(tmp_path: Path) -> None:
    async def test() -> None:
        gate, path = Gate(), tmp_path / "s"
        server = Server(gate.services)
        await server.listen(path)
        async with await Client.connect(path) as client:
            held = asyncio.create_task(client.call("test.Test", "Hold", b""))
            await until(lambda: gate.begun == 1)
            await server.close(0.02)
            assert gate.cancelled == 1
            with pytest.raises(ConnectionError):
                await held

    run(test())


@pytest.mark.parametrize("turns", range(5))
def test_a_connection_accepted_while_closing_is_not_kept(tmp_path: Path, turns: int) -> None:
    async def test() -> None:
        path = tmp_path / "s"
        tasks = len(asyncio.all_tasks())
        server = Server(SERVICES)
        await server.listen(path)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(path))  # in the backlog; the loop sees it in one of its next turns
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.close(0)
            caller.settimeout(DEADLINE)
            data = await asyncio.to_thread(_received, caller)
        assert data == b""
        await until(lambda: len(asyncio.all_tasks()) == tasks)

    run(test())


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(1)
    except ConnectionResetError:
        return b""
