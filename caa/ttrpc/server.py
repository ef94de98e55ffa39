"""The ttrpc server: services on unix sockets, every call its own task.

It answers as the Go server of containerd does, with one difference: stream ids need not increase, for
ttrpc-rust clients take an id and send later. ttrpc has no cancel message, so a caller shows that it gave up only by
its deadline and by the end of its connection: both cancel the handler. A handler that must finish
shields its work; every handler that was called gets to run up to its first suspension, whatever the caller does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from caa.ttrpc.frames import (
    DATA,
    HEADER,
    MAX_DATA,
    REQUEST,
    Code,
    Request,
    StatusError,
    error_frame,
    response_frame,
)
from caa.ttrpc.protobuf import DecodeError
from caa.ttrpc.streams import Frame, close_writer, read_frame

log = logging.getLogger(__name__)

# Open calls a connection may have. A pod holds about three long polls a container (wait, stdout, stderr), so
# this serves over 300 containers and sessions on one connection.
MAX_IN_FLIGHT = 1024
# How long answers already written may take to leave when their connection is being closed.
_FLUSH_SECONDS = 1.0
# How long `close` waits for handlers to end once they were cancelled.
_CANCEL_SECONDS = 5.0
# sun_path holds 108 bytes with its closing zero.
_SOCKET_PATH_LIMIT = 107
_NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """What came with a call beside its payload. `timeout` is seconds from its arrival, None for none.

    Metadata keys are lower case, as Go writes them. `peer_pid` is the process that connected, where the kernel tells.
    """

    service: str
    method: str
    timeout: float | None
    metadata: dict[str, list[str]]
    peer_pid: int | None = None


_UCRED = struct.Struct("3i")  # pid, uid and gid, as SO_PEERCRED gives them

Handler = Callable[[bytes, Call], Awaitable[bytes]]
"""Takes the request message, returns the response message. Raises StatusError to answer with a status."""


class Server:
    """Serves `services` (service name -> method name -> handler) on any number of sockets."""

    def __init__(self, services: Mapping[str, Mapping[str, Handler]]) -> None:
        self._services = services
        self._listeners: list[tuple[asyncio.Server, _SocketFile]] = []
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._closing = False

    async def listen(self, path: str | Path, mode: int = 0o600) -> None:
        """Serve on the unix socket `path`. Its directory is made with 0700 if missing.

        A socket file that nobody listens on is replaced. Raises OSError that says what is wrong: EADDRINUSE when
        somebody listens or the file is no socket, ENAMETOOLONG when the path is too long for a socket.
        """
        listening, file = _bind(Path(path), mode)
        server = await asyncio.start_unix_server(self._accept, sock=listening)
        self._listeners.append((server, file))

    async def serve_socket(self, sock: socket.socket) -> None:
        """Serve one connected stream socket until it ends. Takes the socket over."""
        task = self._serve(*await asyncio.open_unix_connection(sock=sock))
        try:
            await asyncio.wait([task])
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def close(self, grace_seconds: float) -> None:
        """Stop: refuse new calls at once, let those under way end within `grace_seconds`, cancel the rest."""
        self._closing = True
        listeners, self._listeners = self._listeners, []
        for server, file in listeners:
            file.unlink_if_ours()
            for listener in server.sockets:
                asyncio.get_running_loop().remove_reader(listener)
        # What was accepted in the turn before becomes a connection in this one. A server that is closed already would
        # lose it: open, and its caller without an answer.
        await asyncio.sleep(0)
        for server, _ in listeners:
            server.close()
        calls = [task for connection in self._connections.values() for task in connection.calls.values()]
        if calls:
            await asyncio.wait(calls, timeout=grace_seconds)
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
            if stuck:
                log.warning("%d connections still have handlers that do not end when cancelled", len(stuck))

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._closing:  # accepted by the kernel before the listener was closed
            writer.transport.abort()
        else:
            self._serve(reader, writer)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> asyncio.Task[None]:
        connection = _Connection(reader, writer, self._services, lambda: self._closing)
        task = asyncio.create_task(connection.run())
        self._connections[task] = connection

        def ended(task: asyncio.Task[None]) -> None:
            del self._connections[task]
            writer.transport.abort()  # a task cancelled before its first step closed nothing

        task.add_done_callback(ended)
        return task


class _Connection:
    """One connection: reads frames, starts calls, and ends them all with itself."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        services: Mapping[str, Mapping[str, Handler]],
        closing: Callable[[], bool],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._services = services
        self._closing = closing
        self.calls: dict[int, asyncio.Task[None]] = {}  # by stream id
        self._peer_pid = _peer_pid(writer)

    async def run(self) -> None:
        try:
            while (frame := await read_frame(self._reader)) is not None:
                await self._take(frame)
                await self._writer.drain()  # who does not read its answers gets no more calls served
        except OSError as error:
            log.debug("connection broke: %s", error)
        finally:
            calls = list(self.calls.values())
            for call in calls:
                call.cancel()
            await close_writer(self._writer, _FLUSH_SECONDS)
            if calls:
                await asyncio.wait(calls)

    async def _take(self, frame: Frame) -> None:
        if frame.type not in (REQUEST, DATA) and frame.data is not None and frame.stream_id % 2:
            log.debug("ignored a frame of type %d on stream %d", frame.type, frame.stream_id)  # for types to come
            return
        try:
            call, handler, payload = self._open(frame)
        except StatusError as error:
            await self._send(error_frame(frame.stream_id, error.code, str(error)))
            return
        task = asyncio.create_task(self._answer(frame.stream_id, handler, payload, call))
        self.calls[frame.stream_id] = task
        task.add_done_callback(lambda _: self.calls.pop(frame.stream_id))
        # A task cancelled before its first step never runs, and the connection may end with this very frame:
        # so let the handler begin before the next read.
        await asyncio.sleep(0)

    def _open(self, frame: Frame) -> tuple[Call, Handler, bytes]:
        """Check a frame, in the order of the Go server, and find its handler."""
        if frame.data is None:
            raise StatusError(
                Code.RESOURCE_EXHAUSTED, f"message length {frame.length} exceed maximum message size of {MAX_DATA}"
            )
        if frame.stream_id % 2 == 0:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"stream id {frame.stream_id} is even; streams of a client have odd ids"
            )
        if frame.type == DATA:
            raise StatusError(Code.INVALID_ARGUMENT, f"stream {frame.stream_id} takes no data; all methods are unary")
        if frame.stream_id in self.calls:
            raise StatusError(Code.INVALID_ARGUMENT, f"stream id {frame.stream_id} is in use by a call under way")
        if self._closing():
            raise StatusError(Code.UNAVAILABLE, "the service is stopping")
        if len(self.calls) >= MAX_IN_FLIGHT:
            raise StatusError(Code.RESOURCE_EXHAUSTED, f"more than {MAX_IN_FLIGHT} calls at once on one connection")
        return self._resolve(frame.data)

    def _resolve(self, data: bytes) -> tuple[Call, Handler, bytes]:
        try:
            request = Request.decode(data)
        except DecodeError as error:
            raise StatusError(Code.INVALID_ARGUMENT, f"not a ttrpc request: {error}") from error
        methods = self._services.get(request.service)
        if methods is None:
            raise StatusError(Code.UNIMPLEMENTED, f"service {request.service}")
        handler = methods.get(request.method)
        if handler is None:
            raise StatusError(Code.UNIMPLEMENTED, f"method {request.method}")
        if request.timeout_nano < 0:
            raise StatusError(Code.DEADLINE_EXCEEDED, "the deadline passed before the call arrived")
        metadata: dict[str, list[str]] = {}
        for item in request.metadata:
            metadata.setdefault(item.key.lower(), []).append(item.value)
        timeout = request.timeout_nano / _NANO if request.timeout_nano else None
        return Call(request.service, request.method, timeout, metadata, self._peer_pid), handler, request.payload

    async def _answer(self, stream_id: int, handler: Handler, payload: bytes, call: Call) -> None:
        """Run one call to its answer. Only a cancellation from outside leaves it without one."""
        try:
            answer = response_frame(stream_id, await _handle(handler, payload, call))
        except StatusError as error:
            answer = error_frame(stream_id, error.code, str(error))
        length = len(answer) - HEADER.size
        if length > MAX_DATA:
            log.error("the response of %s/%s is too long: %d bytes", call.service, call.method, length)
            text = f"response length {length} exceed maximum message size of {MAX_DATA}"
            answer = error_frame(stream_id, Code.RESOURCE_EXHAUSTED, text)
        await self._send(answer)

    async def _send(self, data: bytes) -> None:
        """Write one whole frame and wait until the peer's backlog is small again. A peer that is gone is no error."""
        if self._writer.is_closing():
            return
        self._writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()


async def _handle(handler: Handler, payload: bytes, call: Call) -> bytes:
    """The handler's response; whatever goes wrong becomes a StatusError."""
    try:
        async with asyncio.timeout(call.timeout) as deadline:
            return await handler(payload, call)
    except StatusError:
        raise
    except DecodeError as error:
        raise StatusError(Code.INTERNAL, f"ttrpc: error unmarshalling payload: {error}") from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StatusError(Code.CANCELLED, f"{call.method} was cancelled") from None
    except Exception as error:
        if isinstance(error, TimeoutError) and deadline.expired():
            raise StatusError(
                Code.DEADLINE_EXCEEDED, f"{call.method} did not end within its deadline of {call.timeout:g} s"
            ) from None
        # The exception may hold anything, so its text goes to the log only.
        log.exception("%s/%s failed", call.service, call.method)
        raise StatusError(Code.UNKNOWN, f"internal error in {call.method}; the service's log has the details") from None


@dataclass(frozen=True, slots=True)
class _SocketFile:
    """A socket file as we made it. The open socket keeps its inode number from being used again."""

    path: Path
    device: int
    inode: int

    def unlink_if_ours(self) -> None:
        """Remove the file unless another took its place. To be called before the socket is closed."""
        with contextlib.suppress(FileNotFoundError):
            now = self.path.lstat()
            if (now.st_dev, now.st_ino) == (self.device, self.inode):
                self.path.unlink()


def _bind(path: Path, mode: int) -> tuple[socket.socket, _SocketFile]:
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        raise OSError(errno.ENAMETOOLONG, f"a unix socket path has at most {_SOCKET_PATH_LIMIT} bytes", str(path))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locked(path.parent):
            _remove_stale(path)
            sock.bind(os.fspath(path))
            # Nobody can connect before `listen`, so the mode holds from the first moment on.
            path.chmod(mode)
            sock.listen(socket.SOMAXCONN)
            made = path.lstat()
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock, _SocketFile(path, made.st_dev, made.st_ino)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keeps two servers that start at once from replacing each other's socket. Held for a few system calls."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EADDRINUSE, "is there already and is no socket", str(path))
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a listener with a full backlog answers EAGAIN: somebody is there
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another process is listening on this socket", str(path))


def _peer_pid(writer: asyncio.StreamWriter) -> int | None:
    """As of the connection's beginning; None on what is no unix socket."""
    sock = writer.get_extra_info("socket")
    try:
        pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except (AttributeError, OSError):
        return None
    return int(pid) or None  # 0: of another pid namespace
