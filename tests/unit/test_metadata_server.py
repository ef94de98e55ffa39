"""The HTTP server for pods: what it takes, and how it bounds a pod."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caa.metadata import server
from caa.metadata.facts import Answer, Request, text
from caa.metadata.server import PodServer


class Echo:
    """Answers with method, path and query; `seen` has every request."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.known = True

    def answer(self, request: Request) -> Answer:
        self.seen.append(request)
        return text(200, f"{request.method} {request.path} {dict(request.query)}")

    def ready(self) -> Callable[[Request], Answer] | None:
        return self.answer if self.known else None

    async def found_out(self) -> Callable[[Request], Answer]:
        await asyncio.sleep(0)
        return self.answer


def exchange(*pieces: bytes, site: Echo | None = None, addresses: frozenset[str] = frozenset({"127.0.0.1"})) -> bytes:
    """All that comes back for these pieces, until the server closes or has answered and our side ends."""

    async def run() -> bytes:
        serving = PodServer(site or Echo(), addresses, asyncio.get_running_loop().time)
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        await serving.start([listener])
        reader, writer = await asyncio.open_connection(*address)
        try:
            with suppress(OSError):
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write_eof()
                return await asyncio.wait_for(reader.read(), 20)
            return b""
        finally:
            writer.close()
            serving.close()
            await asyncio.sleep(0)

    return asyncio.run(run())


GET = b"GET /a/b?c=d&e=f HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_request_in_any_pieces_is_one_request() -> None:
    for place in range(1, len(GET)):
        assert b"GET /a/b {'c': 'd', 'e': 'f'}" in exchange(GET[:place], GET[place:])


def test_what_must_be_looked_up_is_answered_when_it_is_known() -> None:
    site = Echo()
    site.known = False
    assert exchange(GET, site=site).startswith(b"HTTP/1.1 200 OK\r\n")


def test_connections_are_kept_and_requests_come_one_after_the_other() -> None:
    assert exchange(GET + GET).count(b"HTTP/1.1 200") == 2
    site = Echo()
    site.known = False
    # The next request before an answer is not what clients of metadata do.
    assert exchange(GET + GET, site=site).count(b"HTTP/1.1 200") <= 1


def test_a_peer_that_is_not_the_pod_gets_nothing() -> None:
    site = Echo()
    assert exchange(GET, site=site, addresses=frozenset({"10.128.0.2"})) == b""
    assert site.seen == []


@pytest.mark.parametrize(
    "request_text",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
        b"PUT / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n" + b"x" * 9000,
        b"GET / HTTP/1.1\r\nMetadata: true\r\nMetadata: true\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET /?" + b"a=b&" * 50 + b" HTTP/1.1\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_what_is_too_long_or_not_plain_is_refused_and_the_connection_closed(request_text: bytes) -> None:
    site = Echo()
    answer = exchange(request_text, site=site)
    assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
    assert site.seen == []


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_bytes_of_any_kind_do_no_harm(pieces: list[bytes]) -> None:
    answer = exchange(*pieces)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")


def test_a_pod_that_asks_too_fast_is_told_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    pod = PodServer(Echo(), frozenset(), lambda: now[0])
    assert [pod.may_ask() for _ in range(int(server.BURST) + 1)].count(False) == 1
    now[0] += 1
    assert [pod.may_ask() for _ in range(int(server.PER_SECOND) + 1)].count(False) == 1
    monkeypatch.setattr(server, "BURST", 1.0)
    assert b"HTTP/1.1 429" in exchange(GET + GET)


def test_head_has_no_body() -> None:
    assert exchange(GET.replace(b"GET", b"HEAD")).endswith(b"\r\n\r\n")


@pytest.mark.parametrize("turns", range(5))
def test_a_pod_that_connects_in_the_moment_of_the_end_is_not_left_hanging(turns: int) -> None:
    async def run() -> bytes:
        serving = PodServer(Echo(), frozenset({"127.0.0.1"}), asyncio.get_running_loop().time)
        listener = socket.create_server(("127.0.0.1", 0))
        await serving.start([listener])
        with socket.create_connection(listener.getsockname()) as pod:  # the loop sees it in one of its next turns
            for _ in range(turns):
                await asyncio.sleep(0)
            serving.close()
            pod.settimeout(20)
            with suppress(ConnectionResetError):
                return await asyncio.to_thread(pod.recv, 1)
        return b""

    assert asyncio.run(run()) == b""
