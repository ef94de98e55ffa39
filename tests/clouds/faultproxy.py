"""A reverse HTTP proxy that breaks one request at the moment a test chooses. Knows no cloud.

Each request passes three moments: before it is forwarded, after the backend acted, and after the client has the reply.
A rule picks requests and says what happens at one of them. The proxy runs in a thread with a loop of its own, so that a
rule may call back into the test, e.g. to kill a process at exactly that moment.

A request is read whole before it is forwarded and a reply whole before it is passed on, so "before" means that the
backend has seen nothing and "after" that it has done all.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import h11

from caa.clock import SystemClock
from caa.pki import NodeKeys
from tests.lab.streams import close_server, turns

_READ_SIZE = 1 << 16
# No emulator takes this long; a backend that hangs must not hang the test.
_BACKEND_SECONDS = 120.0
_THREAD_SECONDS = 60.0
# How often a request that is held up looks whether it may go on.
_HOLD_LOOK_SECONDS = 0.02
# Of one hop only (RFC 9110, 7.6.1); bodies are passed on whole, so their framing is made anew.
_HOP_HEADERS = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"te", b"upgrade"})


class Phase(enum.StrEnum):
    """A moment in the life of a request."""

    BEFORE = "before"  # the backend has not seen it
    AFTER = "after"  # the backend has acted and answered, the client knows nothing
    DONE = "done"  # the reply was handed to the client's socket


class Fault(enum.StrEnum):
    """What happens. Only CALL can happen at DONE."""

    RESET = "reset"  # the connection ends with a TCP reset
    DROP = "drop"  # the connection ends in order, without a reply
    HANG = "hang"  # nothing comes, until the client goes or the proxy ends
    STATUS = "status"  # this status and body instead of the backend's
    TRUNCATE = "truncate"  # half of the reply's body, then the end; at AFTER only
    DELAY = "delay"  # `seconds` later than it would be, otherwise unharmed
    HOLD = "hold"  # not before `release`, otherwise unharmed
    CALL = "call"  # `call` runs. At BEFORE and AFTER the connection is then reset: who called is taken to be dead


@dataclass(frozen=True)
class Exchange:
    """A request as a rule sees it."""

    number: int  # 1 for the first the proxy got
    method: str
    url: str  # as the client wrote it: path and query
    body: bytes
    action: str


@dataclass
class Rule:
    """Which requests, and what. The patterns are searched for, not matched whole."""

    fault: Fault
    phase: Phase
    method: str = ""
    url: str = ""
    body: str = ""
    action: str = ""
    at: int | None = None  # only the at-th request that matches, 1 for the first
    times: int | None = 1  # how often at most; None for ever
    status: int = 503
    reply: bytes = b""
    content_type: str = "text/xml"
    seconds: float = 0.0
    call: Callable[[Exchange], None] | None = None
    seen: int = 0  # requests that matched
    fired: int = 0
    released: threading.Event = field(default_factory=threading.Event, repr=False)

    def release(self) -> None:
        """Let go on what is held up, and hold up nothing any more."""
        self.released.set()

    def __post_init__(self) -> None:
        if self.phase is Phase.DONE and self.fault is not Fault.CALL:
            raise ValueError(f"at {self.phase} only {Fault.CALL} can happen, not {self.fault}")
        if self.fault is Fault.TRUNCATE and self.phase is not Phase.AFTER:
            raise ValueError(f"{Fault.TRUNCATE} needs a reply: phase {Phase.AFTER}")
        if (self.fault is Fault.CALL) != (self.call is not None):
            raise ValueError(f"call and {Fault.CALL} go together")

    def takes(self, exchange: Exchange) -> bool:
        """Whether it happens to this request. Counts the request."""
        if self.method and not re.search(self.method, exchange.method):
            return False
        if not re.search(self.url, exchange.url) or not re.search(self.body.encode(), exchange.body):
            return False
        if not re.search(self.action, exchange.action):
            return False
        self.seen += 1
        return (self.at is None or self.seen == self.at) and (self.times is None or self.fired < self.times)


@dataclass
class Record:
    """What became of one request: one line of a matrix."""

    number: int
    action: str
    phase: str = ""  # of the fault; "" for a request that went through unharmed
    outcome: str = "passed"
    status: int | None = None  # of the backend's reply; None if it never saw the request
    at: float = 0.0  # time.monotonic() when it had arrived whole
    body: bytes = field(default=b"", repr=False)
    key_id: str = ""  # of the credentials that it was signed with, as AWS has it


@dataclass
class _Reply:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class _Gone(Exception):
    """The connection to the client is over."""


def default_action(method: str, url: str, body: bytes) -> str:
    """The Action of AWS's query protocol, else method and path."""
    found = re.search(rb"(?:^|&)Action=(\w+)", body)
    return found[1].decode() if found else f"{method} {urlsplit(url).path}"


class FaultProxy:
    """Context manager. `url` is where clients go; `backend` is an http:// or https:// URL without a path."""

    def __init__(
        self,
        backend: str,
        tls: ssl.SSLContext | None = None,
        backend_tls: ssl.SSLContext | None = None,
        action: Callable[[str, str, bytes], str] = default_action,
    ) -> None:
        parts = urlsplit(backend)
        assert parts.hostname is not None
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._tls, self._backend_tls = tls, backend_tls
        self._action = action
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._records: list[Record] = []
        self._count = 0
        self._clients: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="faultproxy", daemon=True)
        self.port = 0

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        if not self._ready.wait(_THREAD_SECONDS) or not self.port:
            raise AssertionError("the fault proxy did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_THREAD_SECONDS)
        if self._thread.is_alive():
            raise AssertionError("the fault proxy did not end")

    @property
    def url(self) -> str:
        scheme, host = ("https", "localhost") if self._tls else ("http", "127.0.0.1")
        return f"{scheme}://{host}:{self.port}"

    def add(self, fault: Fault, phase: Phase, **details: object) -> Rule:
        """Add a rule with Rule's fields; the first one added that takes a request at a phase wins."""
        rule = Rule(fault, phase, **details)  # type: ignore[arg-type]
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Drop all rules and records; request numbers go on."""
        with self._lock:
            self._rules.clear()
            self._records.clear()

    @property
    def records(self) -> list[Record]:
        """Of every request so far, in order of arrival."""
        with self._lock:
            return list(self._records)

    def count(self) -> Counter[str]:
        """Requests by action."""
        return Counter(record.action for record in self.records)

    def wait_until_left(self) -> None:
        """Until no client is connected: whatever a dead one had sent has come to the backend by then, or never will."""
        deadline = time.monotonic() + _THREAD_SECONDS
        while self._clients:
            assert time.monotonic() < deadline, "there are still clients"
            time.sleep(0.02)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        await close_server(server)
        # Of clients, and of connections whose TLS handshake is not over.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await turns()  # until the transports have closed their sockets

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            writer.transport.abort()  # also of a task that was cancelled before it began
            self._clients.discard(task)

        task = self._loop.create_task(_Client(self, reader, writer).run())
        self._clients.add(task)
        task.add_done_callback(ended)

    def _begin(self, method: str, url: str, body: bytes, key_id: str) -> tuple[Exchange, Record, dict[Phase, Rule]]:
        action = self._action(method, url, body)
        with self._lock:
            self._count += 1
            exchange = Exchange(self._count, method, url, body, action)
            record = Record(exchange.number, action, at=time.monotonic(), body=body, key_id=key_id)
            self._records.append(record)
            chosen: dict[Phase, Rule] = {}
            for rule in self._rules:
                if rule.takes(exchange) and rule.phase not in chosen:
                    rule.fired += 1
                    chosen[rule.phase] = rule
        return exchange, record, chosen

    async def _forward(self, request: h11.Request, body: bytes) -> _Reply:
        """Over a connection of its own: nothing of an earlier request can be in the way."""
        async with asyncio.timeout(_BACKEND_SECONDS):
            reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._backend_tls)
            try:
                connection = h11.Connection(h11.CLIENT)
                headers = [*_end_to_end(request.headers), (b"Content-Length", str(len(body)).encode())]
                if not any(name == b"host" for name, _ in request.headers):
                    headers.append((b"Host", self._host.encode()))
                headers.append((b"Connection", b"close"))
                head = h11.Request(method=request.method, target=request.target, headers=headers)
                for event in (head, h11.Data(body), h11.EndOfMessage()):
                    writer.write(connection.send(event) or b"")
                await writer.drain()
                return await _read_reply(connection, reader)
            finally:
                writer.transport.abort()


@dataclass
class _Client:
    """One connection of a client; requests come one after another."""

    proxy: FaultProxy
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connection: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER))

    async def run(self) -> None:
        """Until the connection is over."""
        with contextlib.suppress(OSError, _Gone, asyncio.CancelledError, h11.RemoteProtocolError):
            await self._serve()
            await self._close()

    async def _serve(self) -> None:
        while isinstance(event := await self._next(), h11.Request):
            body = await self._body()
            await self._exchange(event, body)
            if self.connection.our_state is not h11.DONE or self.connection.their_state is not h11.DONE:
                return
            self.connection.start_next_cycle()

    async def _close(self) -> None:
        """In order; returns when all was sent."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def _next(self) -> object:
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                if self.connection.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                    self.writer.write(self.connection.send(go_on) or b"")
                self.connection.receive_data(await self.reader.read(_READ_SIZE))
                continue
            return event

    async def _body(self) -> bytes:
        parts = []
        while isinstance(event := await self._next(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def _exchange(self, request: h11.Request, body: bytes) -> None:
        signature = dict(request.headers).get(b"authorization", b"").decode()
        key_id = signature.partition("Credential=")[2].partition("/")[0]
        exchange, record, rules = self.proxy._begin(request.method.decode(), request.target.decode(), body, key_id)
        reply: _Reply | None = None
        before = rules.get(Phase.BEFORE)
        if before is not None:
            reply = await self._apply(before, exchange, record, None)
        if reply is None:
            try:
                reply = await self.proxy._forward(request, body)
            except (OSError, h11.RemoteProtocolError) as error:  # a time-out is an OSError as well
                record.outcome = f"backend: {type(error).__name__}"
                raise _Gone from error
            record.status = reply.status
        after = rules.get(Phase.AFTER)
        if after is not None and record.status is not None:
            reply = await self._apply(after, exchange, record, reply) or reply
        await self._send(reply)
        done = rules.get(Phase.DONE)
        if done is not None:
            self._call(done, exchange, record)

    async def _apply(self, rule: Rule, exchange: Exchange, record: Record, reply: _Reply | None) -> _Reply | None:
        """Do what the rule says; returns a reply to send instead, None to go on. Raises _Gone."""
        record.phase, record.outcome = rule.phase, rule.fault.value
        if rule.fault is Fault.DELAY:
            await asyncio.sleep(rule.seconds)
            return None
        if rule.fault is Fault.HOLD:
            while not rule.released.is_set():
                await asyncio.sleep(_HOLD_LOOK_SECONDS)
            return None
        if rule.fault is Fault.STATUS:
            return _Reply(rule.status, [(b"Content-Type", rule.content_type.encode())], rule.reply)
        if rule.fault is Fault.HANG:
            while await self.reader.read(_READ_SIZE):
                pass
            raise _Gone
        if rule.fault is Fault.DROP:
            await self._close()
            raise _Gone
        if rule.fault is Fault.TRUNCATE and reply is not None:
            await self._send(reply, keep=len(reply.body) // 2)
            raise _Gone
        if rule.fault is Fault.CALL:
            self._call(rule, exchange, record)
        reset(self.writer)
        raise _Gone

    @staticmethod
    def _call(rule: Rule, exchange: Exchange, record: Record) -> None:
        record.phase, record.outcome = rule.phase, rule.fault.value
        assert rule.call is not None
        try:
            rule.call(exchange)
        except Exception as error:  # the test's own code; it must find out, and the proxy go on
            record.outcome = f"call failed: {error!r}"

    async def _send(self, reply: _Reply, keep: int | None = None) -> None:
        headers = [*_end_to_end(reply.headers), (b"Content-Length", str(len(reply.body)).encode())]
        head = h11.Response(status_code=reply.status, headers=headers)
        data = self.connection.send(head) or b""
        if keep is not None:
            self.writer.write(data + reply.body[:keep])
            await self.writer.drain()
            await self._close()
            return
        for event in (h11.Data(reply.body), h11.EndOfMessage()):
            data += self.connection.send(event) or b""
        self.writer.write(data)
        await self.writer.drain()


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with a TCP reset, as a machine or a middlebox that dies."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _read_reply(connection: h11.Connection, reader: asyncio.StreamReader) -> _Reply:
    head: h11.Response | None = None
    parts = []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_READ_SIZE))
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            parts.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return _Reply(head.status_code, list(head.headers.raw_items()), b"".join(parts))
        elif not isinstance(event, h11.InformationalResponse):
            raise ConnectionResetError("the backend closed the connection")


def _end_to_end(headers: object) -> list[tuple[bytes, bytes]]:
    pairs: list[tuple[bytes, bytes]] = list(headers)  # type: ignore[call-overload]
    return [(name, value) for name, value in pairs if name.lower() not in _HOP_HEADERS | {b"expect"}]


def make_tls(directory: Path, name: str = "localhost") -> tuple[ssl.SSLContext, Path]:
    """A server context for `name`, and the file of the CA that clients must trust."""
    keys = NodeKeys(directory, SystemClock())
    identity = keys.issue(name)
    pair = directory / "server.pem"
    pair.touch(0o600)
    pair.write_text(identity.certificate + identity.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    return context, keys.ca_file
