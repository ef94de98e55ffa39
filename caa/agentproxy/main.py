"""The process `caa proxy`: the data plane of one worker node. See `run`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from caa import __version__
from caa.agentproxy import messages
from caa.agentproxy.dial import check_address
from caa.agentproxy.relay import REDIAL_SECONDS
from caa.agentproxy.sandbox import OpenSandbox
from caa.ttrpc.frames import Code, StatusError
from caa.ttrpc.server import Call, Server

log = logging.getLogger(__name__)

LOCK_NAME = "proxy.lock"
# Answers already given may leave before the control socket closes.
_CLOSE_GRACE_SECONDS = 0.2


class AlreadyRunningError(Exception):
    """Another process is the proxy of this run directory."""


class AgentProxy:
    """The control service: the open sandboxes by id, and a handler for each verb."""

    def __init__(self, redial_seconds: float) -> None:
        self._redial_seconds = redial_seconds
        self._sandboxes: dict[str, OpenSandbox] = {}
        self.stopping = asyncio.Event()
        self.services = {
            messages.SERVICE: {
                "Open": self._open,
                "Connect": self._connect,
                "Close": self._close,
                "List": self._list,
                "Version": self._version,
                "Shutdown": self._shutdown,
            }
        }

    def close(self) -> None:
        """End all sandboxes."""
        while self._sandboxes:
            self._sandboxes.popitem()[1].close()

    async def _open(self, payload: bytes, call: Call) -> bytes:
        request = messages.OpenRequest.decode(payload)
        for name in ("sandbox_id", "socket_path", "server_name", "ca_file", "cert_file", "key_file"):
            if not getattr(request, name):
                raise StatusError(Code.INVALID_ARGUMENT, f"{name} is missing")
        known = self._sandboxes.get(request.sandbox_id)
        if known is not None:
            if known.request == request:
                return b""
            text = f"sandbox {request.sandbox_id} is open with other arguments; close it first"
            raise StatusError(Code.ALREADY_EXISTS, text)
        if any(other.request.socket_path == request.socket_path for other in self._sandboxes.values()):
            raise StatusError(Code.ALREADY_EXISTS, f"socket_path {request.socket_path} belongs to another sandbox")
        self._sandboxes[request.sandbox_id] = OpenSandbox(request, self._redial_seconds)
        log.info("sandbox %s: listening on %s", request.sandbox_id, request.socket_path)
        return b""

    async def _connect(self, payload: bytes, call: Call) -> bytes:
        request = messages.ConnectRequest.decode(payload)
        began = asyncio.get_running_loop().time()
        sandbox = self._sandboxes.get(request.sandbox_id)
        if sandbox is None:
            raise StatusError(Code.NOT_FOUND, f"sandbox {request.sandbox_id} is not open")
        try:
            _check_connect(request)
        except ValueError as error:
            raise StatusError(Code.INVALID_ARGUMENT, str(error)) from error
        reached = await sandbox.connect(tuple(request.addresses), request.port, request.timeout_milliseconds / 1000)
        answer = messages.ConnectResponse(
            address=reached.address,
            tcp_microseconds=_microseconds(reached.tcp_at - began),
            tls_microseconds=_microseconds(reached.tls_at - began),
            agent_microseconds=_microseconds(reached.agent_at - began),
        )
        log.info(
            "sandbox %s: the agent at %s answers after %.3f s (TCP %.3f s, TLS %.3f s)",
            request.sandbox_id,
            answer.address,
            answer.agent_microseconds / 1e6,
            answer.tcp_microseconds / 1e6,
            answer.tls_microseconds / 1e6,
        )
        return answer.encode()

    async def _close(self, payload: bytes, call: Call) -> bytes:
        request = messages.CloseRequest.decode(payload)
        sandbox = self._sandboxes.pop(request.sandbox_id, None)
        if sandbox is not None:
            sandbox.close()
            log.info("sandbox %s: closed", request.sandbox_id)
        return b""

    async def _list(self, payload: bytes, call: Call) -> bytes:
        sandboxes = [
            messages.SandboxStatus(
                id=sandbox_id,
                shim_connections=sandbox.shim_connections,
                agent_seen=sandbox.agent_seen,
                idle_milliseconds=int(sandbox.idle_seconds * 1000),
                connected=sandbox.connected,
                address=sandbox.address,
            )
            for sandbox_id, sandbox in self._sandboxes.items()
        ]
        return messages.ListResponse(sandboxes=sandboxes).encode()

    async def _version(self, payload: bytes, call: Call) -> bytes:
        return messages.VersionResponse(version=__version__, pid=os.getpid()).encode()

    async def _shutdown(self, payload: bytes, call: Call) -> bytes:
        log.info("asked to shut down")
        self.stopping.set()
        return b""


def _check_connect(request: messages.ConnectRequest) -> None:
    if not request.addresses:
        raise ValueError("addresses is empty; allowed: one or more IPv4 and IPv6 addresses")
    for address in request.addresses:
        check_address(address)
    if not 0 < request.port <= 65535:
        raise ValueError(f"port is {request.port}; allowed: 1 to 65535")
    if request.timeout_milliseconds <= 0:
        raise ValueError(f"timeout_milliseconds is {request.timeout_milliseconds}; allowed: more than 0")


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


async def serve(run_dir: Path, redial_seconds: float) -> None:
    """Serve the control socket until SIGTERM, SIGINT or Shutdown."""
    proxy = AgentProxy(redial_seconds)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, proxy.stopping.set)
    server = Server(proxy.services)
    await server.listen(run_dir / messages.SOCKET_NAME, 0o600)
    log.info("agent proxy %s serves on %s", __version__, run_dir / messages.SOCKET_NAME)
    try:
        await proxy.stopping.wait()
    finally:
        await server.close(_CLOSE_GRACE_SECONDS)
        proxy.close()
    log.info("agent proxy stopped")


def run(run_dir: str, state_dir: str, redial_seconds: float = REDIAL_SECONDS) -> int:
    """Run the agent proxy of `run_dir` until it is told to stop; returns the exit code.

    0 also when another one runs there already, which is as good; 1 when the directories cannot be used. `state_dir`
    becomes the working directory, so that a detached process holds no mount, and only root reads a core dump.
    """
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    os.umask(0o077)
    try:
        directory = Path(run_dir).absolute()
        for made in (directory, Path(state_dir)):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chdir(state_dir)
        with _only_one(directory / LOCK_NAME):
            _raise_file_limit()
            asyncio.run(serve(directory, redial_seconds))
    except AlreadyRunningError as error:
        log.warning("%s", error)
    except OSError as error:
        log.error("agent proxy cannot run: %s", error)
        return 1
    return 0


@contextlib.contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold the lock file, which the kernel gives back when the process ends in whatever way."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunningError(f"another agent proxy runs already: it holds {lock}") from None
        yield
    finally:
        os.close(descriptor)


def _raise_file_limit() -> None:
    """A sandbox takes four descriptors or more, so the usual soft limit of 1024 would end at some 250."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
