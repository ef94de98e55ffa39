"""A quick start of `caa serve`: a process that has imported what it needs, and forks it on request.

    with ForkServer() as forks:
        service = ForkedService(forks, directory, environ)

What is forked is an ordinary process that runs the real entry point with an environment and a log file of its own; only
the second of imports is not paid again. The fork server has one thread, so nothing is lost in a fork. It ends, and its
children with it, when the other end of its socket does: it outlives no test process, however that ends.

    python -m tests.lab.forkserver FD      requests come on FD, one at a time: a line of JSON each way
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab.service import ServiceProcess

_ROOT = Path(__file__).parents[2]
# The imports take a second here; a loaded machine gets many times that.
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
# One request: an environment and a few paths.
_LARGEST = 1 << 20
# Everything that a service on an emulated cloud imports, also what it imports only when it is first used.
_PRELOADED = (
    "alembic.command",
    "caa.cli.main",
    "caa.service",
    "imagebuilder.publish.aws",
    "providers.aws.provider",
    "providers.azure.provider",
    "providers.ibmcloud.provider",
    "psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite.pysqlite",
    "uvicorn.lifespan.on",
    "uvicorn.protocols.http.h11_impl",
)


class ForkedProcess:
    """A child of the fork server, with what `subprocess.Popen` offers for one's own child."""

    def __init__(self, server: ForkServer, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server
        self._pidfd = pidfd
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises subprocess.TimeoutExpired. Several threads may wait."""
        with self._lock:
            if self.returncode is None:
                if not _readable(self._pidfd, timeout):
                    raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout or 0.0)
                self.returncode = self._server.reap(self.pid)
                os.close(self._pidfd)
            return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing, if it has been waited for."""
        # Without the lock, which somebody may hold who waits for what this signal does. Until it is reaped the pid is
        # its own; a signal to a dead child does nothing.
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError, OSError):
                signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Context manager around the process. `fork` may be called by several threads."""

    def __enter__(self) -> ForkServer:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.lab.forkserver", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                cwd=_ROOT,
            )
        self._socket = ours
        self._lock = threading.Lock()
        if not _readable(ours.fileno(), _START_SECONDS) or not ours.recv(_LARGEST):
            self.__exit__(None, None, None)
            raise AssertionError("the fork server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Of the fork server."""
        return self._process.pid

    def serve(self, environ: dict[str, str], log_file: Path) -> ForkedProcess:
        """Start `caa serve` with this environment and no other; its output is added to the file."""
        request = {"environ": environ, "log_file": str(log_file), "cwd": os.getcwd()}
        with self._lock:
            answer, descriptors = self._ask(request)
            return ForkedProcess(self, answer["pid"], descriptors[0])

    def reap(self, pid: int) -> int:
        """The exit code of a child that has ended."""
        with self._lock:
            return int(self._ask({"reap": pid})[0]["code"])

    def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        line, descriptors, _, _ = socket.recv_fds(self._socket, _LARGEST, 1)
        if not line:
            raise AssertionError("the fork server has ended")
        return json.loads(line), descriptors


class ForkedService(ServiceProcess):
    """A service that starts by a fork."""

    def __init__(self, forks: ForkServer, directory: Path, environ: dict[str, str]) -> None:
        super().__init__(directory, environ)
        self._forks = forks

    def start(self) -> None:
        self.process = self._forks.serve(self.environ, self.log_file)

    def kill(self) -> None:
        """SIGKILL; nothing, if it does not run."""
        if self.process is not None:
            super().kill()


def _readable(descriptor: int, timeout: float | None) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(None if timeout is None else timeout * 1000))


class _Requests:
    """The fork server's side. `serve` returns in each child, with its request, and once all is over, with None."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._children: set[int] = set()

    def serve(self) -> dict[str, Any] | None:
        self._connection.sendall(b"ready\n")
        with self._connection.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                if "reap" in request:
                    self._reap(request["reap"])
                elif self._fork() == 0:
                    self._connection.detach()  # or its end would close whatever has its number by then
                    return dict(request)
        return None

    def end_children(self) -> None:
        """None of them has been waited for, so their pids are still theirs."""
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)

    def _fork(self) -> int:
        pid = os.fork()
        if pid:
            self._children.add(pid)
            pidfd = os.pidfd_open(pid)
            socket.send_fds(self._connection, [json.dumps({"pid": pid}).encode()], [pidfd])
            os.close(pidfd)
        return pid

    def _reap(self, pid: int) -> None:
        _, status = os.waitpid(pid, 0)
        self._children.discard(pid)
        self._connection.sendall(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())


def _become(request: dict[str, Any]) -> None:
    """In the child: what exec would have given it."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    log = os.open(request["log_file"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environ"])
    time.tzset()
    sys.argv = ["caa", "serve"]


def main() -> int:
    """The fork server, and in a child what it was forked for."""
    for name in _PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no collection in a child touches, and so copies, what it shares with the others
    if len(os.listdir("/proc/self/task")) != 1:
        raise AssertionError("an import has started a thread, which a fork would lose")
    requests = _Requests(socket.socket(fileno=int(sys.argv[1])))
    request = requests.serve()
    if request is None:
        requests.end_children()
        return 0
    _become(request)
    from caa.cli.main import main as caa

    return caa(["serve"])


if __name__ == "__main__":
    sys.exit(main())
