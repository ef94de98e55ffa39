"""Dials a pod VM that may still be booting: TCP attempts that overlap, then TLS.

A VM that is booting drops SYN packets, and the kernel sends them again after 1, 3, 7, 15 … seconds, so a single long
attempt finds the VM many seconds late. Short attempts that start often find it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from caa.agentproxy import tls

log = logging.getLogger(__name__)

# One attempt lives this long: enough for the first SYN and its first repetition across any distance.
ATTEMPT_SECONDS = 1.0
# A new one starts this often, which bounds how late a VM that begins to answer is noticed.
ATTEMPT_EVERY_SECONDS = 0.25
# After a refusal or a broken handshake: the VM is up, and what listens on the port is about to.
REFUSED_RETRY_SECONDS = 0.05

# How fast a VM that fell silent is noticed: well below the 30 s that the shim waits for a health check, with room for a
# new connection. Idle: 5 s, then probes every 2 s, three of them. Unanswered data: 10 s.
KEEPALIVE_IDLE_SECONDS, KEEPALIVE_INTERVAL_SECONDS, KEEPALIVE_PROBES = 5, 2, 3
UNANSWERED_MILLISECONDS = 10_000


class PermanentDialError(Exception):
    """The VM answers, but is not the one expected or does not accept us. Dialling again cannot help."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to dial, and as whom."""

    addresses: tuple[str, ...]  # IP addresses
    port: int
    server_name: str
    context: ssl.SSLContext


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection past its handshake; times are those of the event loop."""

    sock: ssl.SSLSocket
    address: str
    tcp_at: float
    tls_at: float


class LastError:
    """What went wrong most recently, for the message when the time is up."""

    def __init__(self) -> None:
        self.text = "no address is known"

    def note(self, address: str, error: BaseException) -> None:
        self.text = f"{address}: {describe(error)}"


def describe(error: BaseException) -> str:
    """A short text for people; an OSError's without its number."""
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer"
    if isinstance(error, ssl.SSLError):
        return error.reason or str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


async def dial(target: Callable[[], Target], last_error: LastError) -> Dialled:
    """Dial until it succeeds; whoever gives up cancels. `target` is asked before each attempt, so it may change.

    Raises PermanentDialError.
    """
    loop = asyncio.get_running_loop()
    while True:
        sock, address = await _connect_first(target, last_error)
        tcp_at = loop.time()
        now = target()
        try:
            connected = await tls.handshake(sock, now.context, now.server_name)
        except OSError as error:
            raise_if_permanent(error, address, now)
            last_error.note(address, error)
            await asyncio.sleep(REFUSED_RETRY_SECONDS)
        else:
            return Dialled(connected, address, tcp_at, loop.time())


def raise_if_permanent(error: BaseException, address: str, target: Target) -> None:
    """Turn a failure that cannot heal into a PermanentDialError."""
    reason = tls.permanent_failure(error)
    if reason is not None:
        raise PermanentDialError(
            f"the pod VM {target.server_name} at {address} port {target.port} cannot be used: {reason}"
        ) from error


async def _connect_first(target: Callable[[], Target], last_error: LastError) -> tuple[socket.socket, str]:
    """Start an attempt to each address again and again; the first that connects wins."""
    loop = asyncio.get_running_loop()
    running: dict[asyncio.Task[socket.socket], str] = {}
    next_start = loop.time()
    try:
        while True:
            if loop.time() >= next_start:
                next_start = loop.time() + ATTEMPT_EVERY_SECONDS
                now = target()
                for address in now.addresses:
                    running[asyncio.create_task(_attempt(address, now.port))] = address
            pause = max(0.0, next_start - loop.time())
            if not running:
                await asyncio.sleep(pause)
                continue
            done, _ = await asyncio.wait(running, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    return task.result(), running.pop(task)
                last_error.note(running.pop(task), error)
                if not isinstance(error, TimeoutError):
                    next_start = min(next_start, loop.time() + REFUSED_RETRY_SECONDS)
    finally:
        _discard(running)


def _discard(tasks: Iterable[asyncio.Task[socket.socket]]) -> None:
    def close(task: asyncio.Task[socket.socket]) -> None:
        if not task.cancelled() and task.exception() is None:
            task.result().close()

    for task in tasks:
        task.cancel()
        task.add_done_callback(close)


async def _attempt(address: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        _set_options(sock)
        async with asyncio.timeout(ATTEMPT_SECONDS):
            await asyncio.get_running_loop().sock_connect(sock, (address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _set_options(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a call is one small write that must not wait
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MILLISECONDS)


def check_address(address: str) -> None:
    """Raise ValueError unless it is an IP address: names would need a resolver, which blocks."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            socket.inet_pton(family, address)
            return
    raise ValueError(f"addresses has {address!r}; allowed: IPv4 and IPv6 addresses")
