"""A stand-in for kata-agent, for images that carry no real one. It runs no container.

It speaks the agent's protocol for a normal pod (grpc.Health, grpc.AgentService) so that everything up to the agent
can be tried end to end, says "stand-in" wherever it says who it is, and writes one JSON line per call.
A "process" of it only waits to be signalled.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from caa.guest.copyfile import CopyFileRequest, copy_file
from caa.guest.log import log
from caa.guest.rewrite import bind_sources
from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST, Code, Request, StatusError, error_frame, response_frame
from caa.ttrpc.protobuf import DecodeError, Message, field, read_fields

SOCKET = Path("/run/kata-containers/agent.sock")
RECORD = Path("/run/kata-containers/standin-agent.jsonl")
SHARED = Path("/run/kata-containers/shared")
VERSION = "stand-in"

# What the guest says its memory blocks are; the shim only asks in order to hot-plug, which a pod VM never does.
_MEMORY_BLOCK_BYTES = 128 << 20
_ENDING_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGKILL, signal.SIGTERM})


class ProcessRequest(Message):
    """The fields that all calls about one process share by number."""

    container_id: str = field(1)
    exec_id: str = field(2)


class SignalRequest(Message):
    """SignalProcessRequest."""

    container_id: str = field(1)
    exec_id: str = field(2)
    signal: int = field(3)


class WriteStreamRequest(Message):
    """WriteStreamRequest."""

    container_id: str = field(1)
    exec_id: str = field(2)
    data: bytes = field(3)


class CreateSandboxRequest(Message):
    """The fields of CreateSandboxRequest that are recorded."""

    hostname: str = field(1)
    dns: list[str] = field(2)
    sandbox_id: str = field(5)


class Version(Message):
    """VersionCheckResponse."""

    grpc_version: str = field(1)
    agent_version: str = field(2)


class Number(Message):
    """Answers that are one number: HealthCheckResponse, WaitProcessResponse, WriteStreamResponse."""

    value: int = field(1)


class AgentDetails(Message):
    """The part of AgentDetails that is answered."""

    version: str = field(1)


class GuestDetails(Message):
    """GuestDetailsResponse."""

    mem_block_size_bytes: int = field(1)
    agent_details: AgentDetails | None = field(2)


class _Process:
    """Something that waits for its end."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.status = 0

    def end(self, status: int) -> None:
        if not self.ended.is_set():
            self.status = status
            self.ended.set()


class StandinAgent:
    """All sandboxes, connections and calls share one state, as in the real agent. Arguments are for tests."""

    def __init__(self, path: Path = SOCKET, record: Path = RECORD, shared: Path = SHARED) -> None:
        self._path = path
        self._record_path = record
        self._shared = shared
        self._lock = threading.Lock()
        self._processes: dict[tuple[str, str], _Process] = {}  # (container id, exec id); the container's own has ""
        self._sandbox = _Process()

    def run(self) -> NoReturn:
        """Serve for ever. Raises OSError when the socket cannot be made."""
        self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._record = os.open(self._record_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        self._path.chmod(0o600)
        # The messages' fields are worked out at first use; who listens is ready to answer at once.
        Request.decode(b"")
        response_frame(1, _health("Check"))
        listener.listen(16)
        log(f"STAND-IN agent, runs no containers: serving on {self._path}")
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        link = _Link(connection)
        with connection:
            try:
                while frame := link.read():
                    stream_id, frame_type, data = frame
                    if data is None:
                        link.write(error_frame(stream_id, Code.INVALID_ARGUMENT, "message is too long"))
                    elif frame_type == REQUEST:
                        threading.Thread(target=self._call, args=(link, stream_id, data), daemon=True).start()
            except OSError as error:
                log(f"connection lost: {error.strerror}")
        link.gone.set()

    def _call(self, link: _Link, stream_id: int, data: bytes) -> None:
        try:
            try:
                link.write(response_frame(stream_id, self._answer(link, stream_id, data)))
            except StatusError as error:
                link.write(error_frame(stream_id, error.code, str(error)))
            except DecodeError as error:
                link.write(error_frame(stream_id, Code.INVALID_ARGUMENT, str(error)))
        except OSError:  # the caller is gone; its connection's own thread says so
            pass

    def _answer(self, link: _Link, stream_id: int, data: bytes) -> bytes:
        if stream_id % 2 == 0:
            raise StatusError(Code.INVALID_ARGUMENT, "stream id must be odd")
        request = Request.decode(data)
        self._write_record(request)
        if request.service == "grpc.Health":
            return _health(request.method)
        if request.service != "grpc.AgentService":
            raise StatusError(Code.INVALID_ARGUMENT, f"{request.service} service does not exist")
        if request.method in _ACCEPTED:
            return b""
        handler = _HANDLERS.get(request.method)
        if handler is None:
            raise StatusError(Code.UNIMPLEMENTED, f"{request.method} method")
        deadline = time.monotonic() + request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        return handler(self, _Call(link, request.payload, deadline))

    def _write_record(self, request: Request) -> None:
        line = {"t": time.time(), "service": request.service, "method": request.method}
        line |= {"timeout_nano": request.timeout_nano, "length": len(request.payload)}
        summary = _SUMMARIES.get(request.method)
        if summary is not None:
            line |= summary(request)
        os.write(self._record, json.dumps(line).encode() + b"\n")  # one write, so lines never mix

    # --- the calls -------------------------------------------------------------------------------------------

    def create_sandbox(self, _: _Call) -> bytes:
        with self._lock:
            self._sandbox = _Process()
        return b""

    def destroy_sandbox(self, _: _Call) -> bytes:
        with self._lock:
            ended = [self._sandbox, *self._processes.values()]
            self._processes.clear()
        for process in ended:
            process.end(128 + signal.SIGKILL)
        return b""

    def guest_details(self, _: _Call) -> bytes:
        return GuestDetails(
            mem_block_size_bytes=_MEMORY_BLOCK_BYTES, agent_details=AgentDetails(version=VERSION)
        ).encode()

    def copy(self, call: _Call) -> bytes:
        copy_file(CopyFileRequest.decode(call.payload), self._shared)
        return b""

    def create_container(self, call: _Call) -> bytes:
        asked = ProcessRequest.decode(call.payload)
        with self._lock:
            if (asked.container_id, "") in self._processes:
                raise StatusError(Code.ALREADY_EXISTS, f"container {asked.container_id} exists")
            self._processes[asked.container_id, ""] = _Process()
        return b""

    def start_container(self, call: _Call) -> bytes:
        self._find(ProcessRequest.decode(call.payload))
        return b""

    def exec_process(self, call: _Call) -> bytes:
        asked = ProcessRequest.decode(call.payload)
        self._find(ProcessRequest(container_id=asked.container_id))
        with self._lock:
            process = self._processes[asked.container_id, asked.exec_id] = _Process()
        process.end(0)  # nothing runs, so it has ended well at once
        return b""

    def remove_container(self, call: _Call) -> bytes:
        asked = ProcessRequest.decode(call.payload)
        self._find(ProcessRequest(container_id=asked.container_id))
        with self._lock:
            gone = [key for key in self._processes if key[0] == asked.container_id]
            processes = [self._processes.pop(key) for key in gone]
        for process in processes:
            process.end(128 + signal.SIGKILL)
        return b""

    def signal_process(self, call: _Call) -> bytes:
        asked = SignalRequest.decode(call.payload)
        process = self._find(ProcessRequest(container_id=asked.container_id, exec_id=asked.exec_id))
        if asked.signal in _ENDING_SIGNALS:
            process.end(128 + asked.signal)
        return b""

    def wait_process(self, call: _Call) -> bytes:
        process = self._find(ProcessRequest.decode(call.payload))
        call.wait(process.ended)
        return Number(value=process.status).encode()

    def read_stream(self, call: _Call) -> bytes:
        call.wait(self._find(ProcessRequest.decode(call.payload)).ended)
        return b""  # no data: the stream has ended

    def write_stdin(self, call: _Call) -> bytes:
        return Number(value=len(WriteStreamRequest.decode(call.payload).data)).encode()

    def oom_event(self, call: _Call) -> bytes:
        with self._lock:
            sandbox = self._sandbox
        call.wait(sandbox.ended)
        raise StatusError(Code.INTERNAL, "the sandbox has ended")

    def _find(self, asked: ProcessRequest) -> _Process:
        # The shim names a container's own process by "" or by the container's id.
        exec_id = "" if asked.exec_id == asked.container_id else asked.exec_id
        with self._lock:
            process = self._processes.get((asked.container_id, exec_id))
        if process is None:
            raise StatusError(Code.NOT_FOUND, f"no process {exec_id or 'of its own'} in container {asked.container_id}")
        return process


class _Link:
    """One connection: whole frames in, whole frames out."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._file = connection.makefile("rb")
        self._write_lock = threading.Lock()
        self.gone = threading.Event()

    def read(self) -> tuple[int, int, bytes | None] | None:
        """(stream id, type, data), data None when it was too long; None at the end."""
        header = self._file.read(HEADER.size)
        if len(header) < HEADER.size:
            return None
        size, stream_id, frame_type, _ = HEADER.unpack(header)
        if size > MAX_DATA:
            while size and (piece := self._file.read(min(size, 1 << 20))):
                size -= len(piece)
            return stream_id, frame_type, None
        data = self._file.read(size)
        return (stream_id, frame_type, data) if len(data) == size else None

    def write(self, frame: bytes) -> None:
        with self._write_lock:
            self._connection.sendall(frame)


class _Call:
    """One call's payload, and how long it may wait."""

    def __init__(self, link: _Link, payload: bytes, deadline: float | None) -> None:
        self._link = link
        self.payload = payload
        self._deadline = deadline

    def wait(self, event: threading.Event) -> None:
        """Until the event, the call's deadline (DEADLINE_EXCEEDED) or the end of its connection (CANCELLED)."""
        # One second is how long a call of a closed connection may keep its thread.
        while not event.wait(1.0 if self._deadline is None else min(1.0, max(0.0, self._deadline - time.monotonic()))):
            if self._link.gone.is_set():
                raise StatusError(Code.CANCELLED, "the connection has ended")
            if self._deadline is not None and time.monotonic() >= self._deadline:
                raise StatusError(Code.DEADLINE_EXCEEDED, "timeout")


def _health(method: str) -> bytes:
    if method == "Check":
        return Number(value=1).encode()  # SERVING
    if method == "Version":
        return Version(grpc_version="0.0.1", agent_version=VERSION).encode()
    raise StatusError(Code.UNIMPLEMENTED, f"{method} method")


def _namespaces(request: Request) -> list[list[str]]:
    """[type, path] of each namespace of a CreateContainer call: payload field OCI 6, Linux 8, Namespaces 6."""
    found = [request.payload]
    for number in (6, 8, 6):
        found = [bytes(v) for data in found for n, w, v in read_fields(data) if n == number and not isinstance(v, int)]
    texts = [{n: str(v, "utf-8") for n, w, v in read_fields(one) if not isinstance(v, int)} for one in found]
    return [[text.get(1, ""), text.get(2, "")] for text in texts]


def _summary_of(message: type[Message]) -> Callable[[Request], dict[str, Any]]:
    return lambda request: dict(vars(message.decode(request.payload)))


def _container_summary(request: Request) -> dict[str, Any]:
    return {
        "container_id": ProcessRequest.decode(request.payload).container_id,
        "namespaces": _namespaces(request),
        "bind_sources": list(bind_sources(request.encode())),
    }


def _copy_summary(request: Request) -> dict[str, Any]:
    asked = CopyFileRequest.decode(request.payload)
    return {"path": asked.path, "offset": asked.offset, "file_size": asked.file_size}


# What is recorded beside the call's name. Never contents, arguments or environments: they may hold secrets.
_SUMMARIES: dict[str, Callable[[Request], dict[str, Any]]] = {
    "CreateSandbox": _summary_of(CreateSandboxRequest),
    "CreateContainer": _container_summary,
    "CopyFile": _copy_summary,
    "SignalProcess": _summary_of(SignalRequest),
} | dict.fromkeys(
    ("StartContainer", "ExecProcess", "RemoveContainer", "WaitProcess", "ReadStdout", "ReadStderr"),
    _summary_of(ProcessRequest),
)

_HANDLERS: dict[str, Callable[[StandinAgent, _Call], bytes]] = {
    "CreateSandbox": StandinAgent.create_sandbox,
    "DestroySandbox": StandinAgent.destroy_sandbox,
    "GetGuestDetails": StandinAgent.guest_details,
    "CopyFile": StandinAgent.copy,
    "CreateContainer": StandinAgent.create_container,
    "StartContainer": StandinAgent.start_container,
    "ExecProcess": StandinAgent.exec_process,
    "RemoveContainer": StandinAgent.remove_container,
    "SignalProcess": StandinAgent.signal_process,
    "WaitProcess": StandinAgent.wait_process,
    "ReadStdout": StandinAgent.read_stream,
    "ReadStderr": StandinAgent.read_stream,
    "WriteStdin": StandinAgent.write_stdin,
    "GetOOMEvent": StandinAgent.oom_event,
}

# Calls of a normal pod that change nothing here and answer with an empty message.
_ACCEPTED = frozenset(
    (
        "SetPolicy",
        "UpdateContainer",
        "StatsContainer",
        "CloseStdin",
        "TtyWinResize",
        "RemoveStaleVirtiofsShareMounts",
        "GetMetrics",
    )
)
