"""HTTP/1.1 for pods: small requests, quick answers, and a bound on everything a pod may do.

A web framework takes more time for a request than all else here together, so this is a protocol of asyncio's on the
parser that uvicorn uses.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, cast
from urllib.parse import parse_qsl

import httptools

from caa.metadata.facts import Answer, Request, text

log = logging.getLogger(__name__)

# Requests have a token and the client's name; what is longer is something else.
HEAD_BYTES = 8 << 10
BODY_BYTES = 4 << 10
# Half a request, or none for as long, and the connection is closed.
REQUEST_SECONDS = 5.0
# Each pod: what its SDKs keep open at the most, and how fast it may ask. The service has more to do.
CONNECTIONS = 64
PER_SECOND, BURST = 200.0, 400.0

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_TOO_MANY = text(429, "too many requests")


class Site(Protocol):
    """What one pod sees."""

    def ready(self) -> Callable[[Request], Answer] | None:
        """What answers at once; None while that must be found out."""
        ...

    async def found_out(self) -> Callable[[Request], Answer]:
        """The same, when it is known."""
        ...


class PodServer:
    """Serves one pod on the listeners that only it reaches."""

    def __init__(self, site: Site, addresses: frozenset[str], monotonic: Callable[[], float]) -> None:
        self.site = site
        self.addresses = addresses
        self.connections: set[_Connection] = set()
        self._monotonic = monotonic
        self._tokens, self._filled = BURST, monotonic()
        self._servers: list[asyncio.Server] = []
        self.closed = False

    async def start(self, listeners: list[socket.socket]) -> None:
        """Serve on these; they are closed with the server."""
        loop = asyncio.get_running_loop()
        for listener in listeners:
            self._servers.append(await loop.create_server(lambda: _Connection(self), sock=listener))

    def close(self) -> None:
        """Close every connection, and the listeners in the next turn of the loop.

        What was accepted in the turn before becomes a connection in this one. A server that is closed already would
        lose it: open, and its pod without an answer.
        """
        self.closed = True
        loop = asyncio.get_running_loop()
        for server in self._servers:
            for listener in server.sockets:
                loop.remove_reader(listener)
            loop.call_soon(server.close)
        self._servers.clear()
        for connection in list(self.connections):
            connection.abort()

    def may_ask(self) -> bool:
        """Whether the pod has a request left at this moment."""
        now = self._monotonic()
        self._tokens = min(BURST, self._tokens + (now - self._filled) * PER_SECOND)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class _Connection(asyncio.Protocol):
    def __init__(self, server: PodServer) -> None:
        self._server = server
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._size = 0
        self._ended = False
        self._reset()

    # Of asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer, server = transport.get_extra_info("peername"), self._server
        unknown = peer is None or peer[0] not in server.addresses
        if server.closed or unknown or len(server.connections) >= CONNECTIONS:
            self._transport.abort()
            return
        self._server.connections.add(self)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        if self._timer:
            self._timer.cancel()
        if self._waiting:
            self._waiting.cancel()

    def data_received(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > HEAD_BYTES + BODY_BYTES or self._waiting:
            # Nobody sends the next request before this one is answered.
            self._refuse(431 if self._waiting is None else 400)
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade, ValueError):
            self._refuse(400)

    def eof_received(self) -> bool:
        # Who has said everything may still listen.
        self._ended = True
        return self._waiting is not None

    def abort(self) -> None:
        """End the connection at once."""
        if self._transport:
            self._transport.abort()

    # Of httptools

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        if key in self._headers and key not in ("accept", "user-agent"):
            raise ValueError(f"{key} is there twice")
        self._headers[key] = value.decode("latin-1").strip()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > BODY_BYTES:
            raise ValueError("the body is too long")

    def on_message_complete(self) -> None:
        if self._waiting:
            raise ValueError("the request before this one is not answered yet")
        request = _request(self._parser.get_method(), self._url, self._headers, bytes(self._body))
        keep = self._parser.should_keep_alive() and "expect" not in self._headers
        self._reset()
        self._size = 0
        if not self._server.may_ask():
            self._send(_TOO_MANY, request.method, keep)
            return
        answering = self._server.site.ready()
        if answering is None:
            self._waiting = asyncio.get_running_loop().create_task(self._later(request, keep))
            return
        self._send(answering(request), request.method, keep)

    async def _later(self, request: Request, keep: bool) -> None:
        answering = await self._server.site.found_out()
        self._waiting = None
        self._send(answering(request), request.method, keep and not self._ended)

    def _send(self, answer: Answer, method: str, keep: bool) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if answer.hops:
            _limit_hops(transport.get_extra_info("socket"), answer.hops)
        more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
        head = (
            f"Content-Type: {answer.content_type}\r\nContent-Length: {len(answer.body)}\r\n"
            f"Cache-Control: no-store\r\n{more}Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
        )
        transport.write(_LINES[answer.status] + head.encode("latin-1") + (b"" if method == "HEAD" else answer.body))
        if keep:
            self._watch()
        else:
            transport.close()

    def _refuse(self, status: int) -> None:
        self._send(text(status, HTTPStatus(status).phrase), "", keep=False)

    def _reset(self) -> None:
        self._url, self._headers, self._body = b"", cast(dict[str, str], {}), bytearray()

    def _watch(self) -> None:
        """Another while for the next request."""
        if self._timer:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(REQUEST_SECONDS, self.abort)


def _request(method: bytes, url: bytes, headers: dict[str, str], body: bytes) -> Request:
    """Raises ValueError for what is no path of this server."""
    target = url.decode("ascii")
    path, _, query = target.partition("?")
    if not path.startswith("/"):
        raise ValueError("the target is no path")
    return Request(method.decode("latin-1"), path, dict(parse_qsl(query, max_num_fields=20)), headers, body)


def _limit_hops(connection: Any, hops: int) -> None:
    """For the rest of the connection: what is sent once may be sent again by the kernel at any time."""
    try:
        if connection.family == socket.AF_INET6:
            connection.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hops)
        else:
            connection.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hops)
    except OSError as error:  # the connection is gone, and its answer with it
        log.debug("no hop limit: %s", error)
