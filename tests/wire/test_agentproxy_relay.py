"""The relay as a shim and a pod VM see it: real process, real unix sockets, real mutual TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import pytest

from caa.agentproxy.rewrite import CDI_ALL_GPUS, CDI_ANNOTATION, GPU_ANNOTATION
from caa.ttrpc.client import Client
from caa.ttrpc.frames import HEADER, REQUEST, Code, Request, StatusError, frame, response_frame
from tests.wire.agentproxy_guest import PATIENCE, Guest, GuestConnection, World, echo, eventually, world
from tests.wire.test_agentproxy_rewrite import CreateContainerRequest, Spec

AGENT = "grpc.AgentService"


async def check(shim: Client) -> bytes:
    return await shim.call("grpc.Health", "Check", b"", PATIENCE)


async def arrived(guest: Guest, method: str, times: int = 1) -> None:
    await eventually(lambda: guest.asked.count(method) >= times, f"{method} arrives {times} times")


def test_calls_reach_the_guest_on_the_warm_link_with_the_shim_s_own_stream_ids() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            await eventually(lambda: len(w.guest.connections) == 2, "the link for the shim is there")
            async with await Client.connect(path) as shim:
                assert await check(shim) == b"\x08\x01"
                with pytest.raises(StatusError, match="no such thing") as caught:
                    await shim.call(AGENT, "Fail", b"", PATIENCE)
                assert caught.value.code == 5
            probe, warm = w.guest.connections  # none was made for the shim
            assert probe.methods() == ["Check"]
            assert [(stream_id, one.method) for stream_id, one in warm.requests] == [(1, "Check"), (3, "Fail")]

    asyncio.run(main())


def test_many_streams_at_once_and_a_file_chunk_of_a_mebibyte() -> None:
    async def main() -> None:
        async with world() as w, await Client.connect(await w.up()) as shim:

            async def one(index: int) -> None:
                payload = index.to_bytes(4, "big") * (index * 7)
                assert await shim.call(AGENT, "StatsContainer", payload, PATIENCE) == payload

            await asyncio.gather(*(one(index) for index in range(300)))
            chunk = bytes(range(256)) * 4096
            assert await shim.call(AGENT, "CopyFile", chunk, PATIENCE) == chunk
            largest = bytes(4 * 1024 * 1024 - 100)
            assert await shim.call(AGENT, "CopyFile", largest, PATIENCE) == largest

    asyncio.run(main())


def test_only_create_container_is_changed_and_unknown_methods_pass() -> None:
    async def main() -> None:
        async with world() as w:
            spec = Spec(version="1.1.0", annotations={GPU_ANNOTATION: "1"})
            payload = CreateContainerRequest(container_id="c", oci=spec).encode()
            async with await Client.connect(await w.up()) as shim:
                for service, method in ((AGENT, "NeverHeardOf"), ("x.Y", "CreateContainer"), (AGENT, "StartContainer")):
                    assert await shim.call(service, method, payload, PATIENCE) == payload
                changed = await shim.call(AGENT, "CreateContainer", payload, PATIENCE)
            after = CreateContainerRequest.decode(changed)
            assert after.oci is not None
            assert after.oci.annotations == {GPU_ANNOTATION: "1", CDI_ANNOTATION: CDI_ALL_GPUS}
            assert after.container_id == "c"

    asyncio.run(main())


def test_a_silent_connection_gets_no_link_and_no_byte() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            async with await Client.connect(path) as shim:
                await check(shim)
                links = len(w.guest.connections)
                with socket.socket(socket.AF_UNIX) as silent:
                    silent.connect(str(path))
                    silent.setblocking(False)
                    for _ in range(20):
                        await check(shim)
                    w.guest.connections[-1].cut()  # nor when the other's link is lost
                    await check(shim)
                    await shim.call(AGENT, "Echo", b"", PATIENCE)
                    with pytest.raises(BlockingIOError):
                        silent.recv(1)
                    assert (await w.control.list())[0].shim_connections == 2
                assert len(w.guest.connections) == links + 1

    asyncio.run(main())


def test_a_second_speaking_connection_has_its_own_link() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            async with await Client.connect(path) as one, await Client.connect(path) as two:
                assert await one.call(AGENT, "Echo", b"1", PATIENCE) == b"1"
                assert await two.call(AGENT, "Echo", b"2", PATIENCE) == b"2"
            carriers = [connection.methods() for connection in w.guest.connections]
            assert carriers == [["Check"], ["Echo"], ["Echo"]]

    asyncio.run(main())


def test_when_the_link_is_cut_long_polls_go_on_and_calls_of_unknown_outcome_are_told_so() -> None:
    async def main() -> None:
        async with world() as w:
            hold = asyncio.Event()

            async def respond(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                if request.method == "WaitProcess" and connection.methods().count("WaitProcess") and hold.is_set():
                    return response_frame(stream_id, b"\x08\x07")
                if request.method in ("CreateContainer", "ReadStdout"):
                    return None
                return await echo(connection, stream_id, request)

            w.guest.respond = respond
            async with await Client.connect(await w.up()) as shim:
                waiting = asyncio.create_task(shim.call(AGENT, "WaitProcess", b"wait", None))
                reading = asyncio.create_task(shim.call(AGENT, "ReadStdout", b"read", None))
                creating = asyncio.create_task(shim.call(AGENT, "CreateContainer", b"", 60))
                await arrived(w.guest, "CreateContainer")
                hold.set()
                w.guest.connections[-1].cut()
                with pytest.raises(StatusError, match="lost during CreateContainer; its outcome is unknown") as caught:
                    await asyncio.wait_for(creating, PATIENCE)
                assert caught.value.code == Code.UNAVAILABLE
                assert await asyncio.wait_for(waiting, PATIENCE) == b"\x08\x07"
                await arrived(w.guest, "ReadStdout", 2)
                assert not reading.done()
                again = w.guest.connections[-1].requests
                assert [(one.method, one.payload) for _, one in again] == [
                    ("WaitProcess", b"wait"),
                    ("ReadStdout", b"read"),
                ]
                assert [stream_id for stream_id, _ in again] == sorted(stream_id for stream_id, _ in again)
                assert w.guest.asked.count("CreateContainer") == 1
                reading.cancel()

    asyncio.run(main())


def test_while_the_link_is_down_checks_are_answered_and_new_calls_wait() -> None:
    async def main() -> None:
        async with world() as w, await Client.connect(await w.up()) as shim:
            waiting = asyncio.create_task(shim.call(AGENT, "WaitProcess", b"", None))
            await arrived(w.guest, "WaitProcess")
            await w.guest.stop()
            for _ in range(3):
                assert await check(shim) == b"\x08\x01"
            starting = asyncio.create_task(shim.call(AGENT, "StartContainer", b"start", PATIENCE))
            copying = asyncio.create_task(shim.call(AGENT, "CopyFile", bytes(3 << 20), PATIENCE))
            assert await check_or_wait(shim, copying)
            assert not (await w.control.list())[0].connected
            before = w.guest.asked.count("Check")
            await w.guest.start()
            assert await starting == b"start"
            assert await copying == bytes(3 << 20)
            assert await check(shim) == b"\x08\x01"
            assert w.guest.asked.count("Check") == before + 1
            assert w.guest.asked.count("WaitProcess") == 2
            assert (await w.control.list())[0].connected
            waiting.cancel()

    async def check_or_wait(shim: Client, copying: asyncio.Task[bytes]) -> bool:
        """The 3 MiB are more than the queue takes, so the shim must wait: nothing is lost, nothing ends."""
        done, _ = await asyncio.wait([copying], timeout=0.3)
        return not done

    asyncio.run(main())


def test_a_check_that_was_under_way_when_the_link_broke_is_answered() -> None:
    async def main() -> None:
        async with world() as w, await Client.connect(await w.up()) as shim:
            await check(shim)

            async def silent(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                return None

            w.guest.respond = silent
            seen = w.guest.asked.count("Check")
            checking = asyncio.create_task(check(shim))
            await arrived(w.guest, "Check", seen + 1)
            await w.guest.stop()
            assert await asyncio.wait_for(checking, PATIENCE) == b"\x08\x01"

    asyncio.run(main())


def test_a_request_cut_in_the_middle_is_told_so_and_its_rest_does_not_spoil_the_next_link() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_UNIX) as shim:
                shim.setblocking(False)
                await loop.sock_connect(shim, str(path))
                copy = frame(1, REQUEST, Request(service=AGENT, method="CopyFile", payload=bytes(1 << 20)).encode())
                await loop.sock_sendall(shim, copy[: 600 << 10])
                await eventually(lambda: len(w.guest.connections) == 2, "the link is up")
                await eventually(lambda: w.guest.connections[-1].begun == 1, "the request's first half is there")
                w.guest.connections[-1].cut()
                first = await read_frame(loop, shim)
                assert first[0] == 1
                assert b"outcome is unknown" in first[1]
                after = frame(3, REQUEST, Request(service=AGENT, method="Echo", payload=b"after").encode())
                await loop.sock_sendall(shim, copy[600 << 10 :] + after)
                assert await read_frame(loop, shim) == (3, response_frame(3, b"after")[HEADER.size :])
            assert w.guest.asked == ["Check", "Echo"]

    asyncio.run(main())


async def read_frame(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> tuple[int, bytes]:
    data = b""
    length = None
    while length is None or len(data) < HEADER.size + length:
        got = await asyncio.wait_for(loop.sock_recv(sock, 65536), PATIENCE)
        assert got, "the proxy closed the connection"
        data += got
        if length is None and len(data) >= HEADER.size:
            length = HEADER.unpack_from(data)[0]
    assert len(data) == HEADER.size + length
    return HEADER.unpack_from(data)[1], data[HEADER.size :]


def test_a_response_cut_in_the_middle_never_reaches_the_shim_in_part() -> None:
    async def main() -> None:
        async with world() as w:
            answers = 0

            async def respond(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                nonlocal answers
                if request.method != "ReadStdout":
                    return await echo(connection, stream_id, request)
                answers += 1
                answer = response_frame(stream_id, bytes(200_000))
                if answers == 1:
                    connection.writer.write(answer[:150_000])
                    await connection.writer.drain()
                    connection.writer.close()
                    return None
                return answer

            w.guest.respond = respond
            async with await Client.connect(await w.up()) as shim:
                assert await shim.call(AGENT, "ReadStdout", b"", PATIENCE) == bytes(200_000)
                assert await shim.call(AGENT, "Echo", b"ok", PATIENCE) == b"ok"
            assert answers == 2

    asyncio.run(main())


def test_after_the_window_the_shim_s_connection_is_closed_and_other_sandboxes_live_on() -> None:
    async def main() -> None:
        async with world(redial_seconds=3.0) as w:
            other = Guest(w.keys)
            await other.start()
            try:
                path = await w.open("two")
                await w.control.connect("two", ["127.0.0.1"], other.port, PATIENCE)
                async with await Client.connect(await w.up()) as shim, await Client.connect(path) as neighbour:
                    await check(shim)
                    loop = asyncio.get_running_loop()
                    began = loop.time()
                    waiting = asyncio.create_task(shim.call(AGENT, "WaitProcess", b"", None))
                    await arrived(w.guest, "WaitProcess")
                    await w.guest.stop()
                    assert await check(shim) == b"\x08\x01"
                    with pytest.raises(ConnectionError):
                        await asyncio.wait_for(waiting, PATIENCE)
                    assert loop.time() - began >= 3.0
                    assert await neighbour.call(AGENT, "Echo", b"alive", PATIENCE) == b"alive"
                    assert w.socket_path().exists()  # for the next shim, until close
            finally:
                await other.stop()

    asyncio.run(main())


def test_a_guest_that_only_accepts_and_hangs_up_does_not_renew_the_window() -> None:
    async def main() -> None:
        async with world(redial_seconds=1.0) as w, await Client.connect(await w.up()) as shim:
            await check(shim)

            async def hang_up(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                connection.cut()
                return None

            w.guest.respond = hang_up
            before = len(w.guest.connections)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(shim.call(AGENT, "WaitProcess", b"", None), PATIENCE)
            assert 1 <= len(w.guest.connections) - before < 12

    asyncio.run(main())


def test_a_shim_that_comes_when_the_unused_link_has_died_gets_a_new_one() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            await eventually(lambda: len(w.guest.connections) == 2, "the link for the shim is there")
            await w.guest.stop()

            async def unlinked() -> bool:
                return not (await w.control.list())[0].connected

            await eventually(unlinked, "the proxy noticed")
            await w.guest.start()
            async with await Client.connect(path) as shim:
                assert await check(shim) == b"\x08\x01"

    asyncio.run(main())


def test_calls_of_a_link_that_is_cut_again_and_again_are_answered_rightly_or_told_unknown() -> None:
    async def main() -> None:
        async with world() as w, await Client.connect(await w.up()) as shim:
            chance = random.Random(7)
            done = asyncio.Event()
            unknown = answered = 0

            async def caller(method: str) -> None:
                nonlocal unknown, answered
                while not done.is_set():
                    payload = chance.randbytes(chance.choice((10, 1000, 15_000, 300_000)))
                    if method in ("StatsContainer", "GetMetrics"):
                        payload = payload[:15_000]  # what is longer is not kept for a second time
                    try:
                        assert await shim.call(AGENT, method, payload, PATIENCE) == payload
                        answered += 1
                    except StatusError as error:
                        if error.code != Code.UNAVAILABLE or method not in ("CopyFile", "Echo"):
                            raise
                        unknown += 1

            methods = ("StatsContainer", "GetMetrics", "CopyFile", "Echo") * 4
            calling = [asyncio.create_task(caller(method)) for method in methods]
            for cut in range(12):
                before = answered
                await eventually(lambda before=before: answered > before + 20, "calls go on")  # type: ignore[misc]
                if cut % 3 == 0:  # also in the middle of a write
                    w.guest.connections[-1].writer.close()
                else:
                    w.guest.connections[-1].cut()
            done.set()
            await asyncio.wait_for(asyncio.gather(*calling), PATIENCE)
            assert answered > 240
            assert unknown > 0

    asyncio.run(main())


@pytest.mark.parametrize("slow", ["guest", "shim", "no guest"])
def test_a_slow_reader_makes_the_other_side_wait_and_the_proxy_holds_little(slow: str) -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            stopped, go_on = asyncio.Event(), asyncio.Event()

            async def respond(connection: GuestConnection, stream_id: int, request: Request) -> bytes | None:
                if request.method == "CopyFile":
                    stopped.set()
                    await go_on.wait()
                    return response_frame(stream_id, b"")
                if request.method == "Flood":
                    return response_frame(stream_id, bytes(1 << 20))
                return await echo(connection, stream_id, request)

            w.guest.respond = respond
            method, size = ("Flood", 0) if slow == "shim" else ("CopyFile", 1 << 20)
            calls = 64
            before = w.proxy.rss_bytes()
            if slow == "no guest":
                await eventually(lambda: len(w.guest.connections) == 2, "the link for the shim is there")
                await w.guest.stop()
                go_on.set()
            async with slow_reader(w, path, method, size, calls) as (sending, receive):
                if slow == "guest":
                    await stopped.wait()
                await settled(w)
                assert w.proxy.rss_bytes() - before < 16 << 20
                if slow != "shim":
                    assert not sending.done()
                if slow == "no guest":
                    await w.guest.start()
                go_on.set()
                assert await asyncio.wait_for(receive(), PATIENCE) == calls
                await sending

    asyncio.run(main())


@contextlib.asynccontextmanager
async def slow_reader(w: World, path: object, method: str, size: int, calls: int):  # type: ignore[no-untyped-def]
    """Sends `calls` requests at once; yields the sending task, and a function that reads and counts all answers."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    request = Request(service=AGENT, method=method, payload=bytes(size)).encode()

    async def send() -> None:
        for index in range(calls):
            writer.write(frame(2 * index + 1, REQUEST, request))
            await writer.drain()

    async def receive() -> int:
        for _ in range(calls):
            length = HEADER.unpack(await reader.readexactly(HEADER.size))[0]
            await reader.readexactly(length)
        return calls

    sending = asyncio.create_task(send())
    try:
        yield sending, receive
    finally:
        sending.cancel()
        writer.transport.abort()


async def settled(w: World) -> None:
    """Wait until the proxy's memory has stopped growing."""
    last = 0
    while (now := w.proxy.rss_bytes()) != last:
        last = now
        await asyncio.sleep(0.3)


def test_control_clients_come_and_go_without_an_error_for_the_shim() -> None:
    async def main() -> None:
        async with world() as w:
            path = await w.up()
            done = asyncio.Event()

            async def agent_calls() -> int:
                count = 0
                async with await Client.connect(path) as shim:
                    while not done.is_set():
                        assert await check(shim) == b"\x08\x01"
                        assert await shim.call(AGENT, "Echo", b"x", PATIENCE) == b"x"
                        count += 1
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(done.wait(), 0.1)
                return count

            calling = asyncio.create_task(agent_calls())
            for index in range(10):
                client = await Client.connect(w.proxy.run_dir / "proxy.sock")
                await client.call("caa.AgentProxy", "List", b"", PATIENCE)
                hanging = asyncio.create_task(
                    w.control.connect("sb", ["127.0.0.1"], w.guest.port, PATIENCE)
                    if index % 2
                    else client.call("caa.AgentProxy", "NoSuchVerb", b"\xff", PATIENCE)
                )
                await asyncio.sleep(0.05)
                hanging.cancel()
                await client.close()
                with contextlib.suppress(StatusError, asyncio.CancelledError):
                    await hanging
            done.set()
            assert await asyncio.wait_for(calling, PATIENCE) >= 3
            assert len(w.guest.connections) == 2  # one probe, one link, never lost

    asyncio.run(main())
