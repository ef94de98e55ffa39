"""One worker connection and its own agent connection: bytes both ways, frames seen on the way in.

One thread runs one link with non-blocking sockets, for an OpenSSL connection must not be read and written by two
threads at once. Each direction holds at most HIGH_WATER bytes (plus one frame) and is read no further until they are
gone, so a slow side slows the other instead of filling the memory.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress

from caa.guest.log import log
from caa.guest.rewrite import Work
from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST, Code, StatusError, error_frame, frame

HIGH_WATER = 256 << 10
_CHUNK = 64 << 10
# How long the rest of one side's bytes may take after the other side ended.
_DRAIN_SECONDS = 5.0


Change = Callable[[bytes], bytes | Work]


class Later:
    """Requests that take their time, each in a thread of its own: the link goes on, for its health is asked all along.

    What comes of them is taken by the link's thread, which `ear` wakes: it is readable when something is done.
    """

    def __init__(self) -> None:
        self._done: queue.SimpleQueue[tuple[bytes, bytes]] = queue.SimpleQueue()
        self.ear, self._bell = socket.socketpair()
        self.ear.setblocking(False)
        self._running = 0

    def start(self, work: Work, stream_id: int, flags: int) -> None:
        """Do it, and never wait for it."""
        self._running += 1
        threading.Thread(target=self._do, args=(work, stream_id, flags), daemon=True).start()

    def _do(self, work: Work, stream_id: int, flags: int) -> None:
        agent = worker = b""
        try:
            agent = frame(stream_id, REQUEST, work(), flags)
        except StatusError as error:
            log(f"a call is refused: {error}")
            worker = error_frame(stream_id, error.code, str(error))
        except Exception as error:  # the caller must hear of it, or it waits for ever
            log(f"a call failed: {error!r}")
            worker = error_frame(stream_id, Code.INTERNAL, f"the pod VM failed: {type(error).__name__}")
        self._done.put((agent, worker))
        with suppress(OSError):  # the link has ended
            self._bell.send(b"1")

    def take(self) -> tuple[bytes, bytes]:
        """What is done: whole frames for the agent, and for the worker."""
        if not self._running:
            return b"", b""
        with suppress(BlockingIOError):
            self.ear.recv(_CHUNK)
        agent, worker = b"", b""
        while True:
            try:
                more_agent, more_worker = self._done.get_nowait()
            except queue.Empty:
                return agent, worker
            self._running -= 1
            agent += more_agent
            worker += more_worker

    def close(self) -> None:
        """The link has ended; what is still done is for nobody."""
        self.ear.close()
        self._bell.close()


class FrameRewriter:
    """Takes the worker's bytes in any pieces, gives the agent's bytes: requests changed, all else as it came."""

    def __init__(self, change: Change, start: Callable[[Work, int, int], None]) -> None:
        self._change = change
        self._start = start
        self._held = bytearray()
        self._raw = 0  # bytes of an over-long frame still to pass

    @property
    def inside_frame(self) -> bool:
        """What went to the agent so far ends in the middle of a frame."""
        return self._raw > 0

    def feed(self, data: bytes) -> bytes:
        """All bytes that can go to the agent now."""
        self._held += data
        out: list[bytes] = []
        while self._held:
            if self._raw:
                piece = bytes(self._held[: self._raw])
                self._raw -= len(piece)
            elif len(self._held) < HEADER.size:
                break
            else:
                size, stream_id, frame_type, flags = HEADER.unpack_from(self._held)
                if size > MAX_DATA:  # the agent refuses it by itself, and needs all of it to stay in step
                    self._raw = size
                    piece = bytes(self._held[: HEADER.size])
                elif len(self._held) < HEADER.size + size:
                    break
                else:
                    piece = bytes(self._held[: HEADER.size + size])
                    del self._held[: len(piece)]
                    out.append(self._frame(piece, stream_id, frame_type, flags))
                    continue
            del self._held[: len(piece)]
            out.append(piece)
        return b"".join(out)

    def _frame(self, whole: bytes, stream_id: int, frame_type: int, flags: int) -> bytes:
        if frame_type != REQUEST:
            return whole
        data = whole[HEADER.size :]
        changed = self._change(data)
        if changed is data:
            return whole
        if not isinstance(changed, bytes):
            self._start(changed, stream_id, flags)
            return b""
        return HEADER.pack(len(changed), stream_id, frame_type, flags) + changed


class FrameEnds:
    """Follows a stream that passes as it comes, to know when it is between two frames."""

    def __init__(self) -> None:
        self._header = bytearray()
        self._left = 0  # bytes of the frame begun

    @property
    def inside_frame(self) -> bool:
        """The stream so far ends in the middle of a frame."""
        return bool(self._header or self._left)

    def feed(self, data: bytes) -> None:
        """What passed."""
        at = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                step = min(HEADER.size - len(self._header), len(data) - at)
                self._header += data[at : at + step]
                if len(self._header) == HEADER.size:
                    self._left = HEADER.unpack(self._header)[0]
                    self._header.clear()
            at += step


class _Side:
    """A non-blocking socket, what waits to be sent on it, and whether it has ended."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.out = bytearray()
        self.ended = False
        self.broken = False
        self.wants_write = False  # TLS may need to write in order to read

    def receive(self) -> bytes:
        """What has arrived; empty when nothing has, or when the side ended."""
        self.wants_write = False
        try:
            data = self.sock.recv(_CHUNK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return b""
        except ssl.SSLWantWriteError:
            self.wants_write = True
            return b""
        except OSError:  # SSLError is one
            self.broken = self.ended = True
            return b""
        self.ended = not data
        return data

    def send(self) -> int:
        """Send what can be sent; how many bytes."""
        if not self.out or self.broken:
            return 0
        try:
            with memoryview(self.out) as view, view[:_CHUNK] as piece:
                sent = self.sock.send(piece)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except OSError:
            self.broken = self.ended = True
            return 0
        del self.out[:sent]
        return sent


def relay(worker: ssl.SSLSocket, agent: socket.socket, change: Change) -> None:
    """Carry bytes until one side ends, then what is left of them, then close both."""
    later = Later()
    with worker, agent, closing(later):
        sides = _Side(worker), _Side(agent)
        for side in sides:
            side.sock.setblocking(False)
        _carry(*sides, FrameRewriter(change, later.start), later)
        for side in sides:
            _drain(side, time.monotonic() + _DRAIN_SECONDS)


def _carry(worker: _Side, agent: _Side, rewriter: FrameRewriter, later: Later) -> None:
    answers = FrameEnds()
    for_agent, for_worker = b"", b""
    while not (worker.ended or agent.ended):
        moved = worker.send() + agent.send()
        if len(agent.out) < HIGH_WATER and (data := worker.receive()):
            agent.out += rewriter.feed(data)
            moved += len(data)
        if len(worker.out) < HIGH_WATER and (data := agent.receive()):
            worker.out += data
            answers.feed(data)
            moved += len(data)
        more_agent, more_worker = later.take()
        for_agent, for_worker = for_agent + more_agent, for_worker + more_worker
        # What was made here goes between two frames of the other side, never into one.
        if for_agent and not rewriter.inside_frame:
            agent.out += for_agent
            moved, for_agent = 1, b""
        if for_worker and not answers.inside_frame:
            worker.out += for_worker
            moved, for_worker = 1, b""
        # The sockets are asked only when nothing moved: TLS may hold bytes that its socket no longer shows.
        if not moved and not (worker.ended or agent.ended):
            _wait(worker, agent, later)


def _wait(worker: _Side, agent: _Side, later: Later) -> None:
    # select, not epoll: a side that is neither read nor written now must not wake us by its hang-up.
    readers = [side.sock for side, other in ((worker, agent), (agent, worker)) if len(other.out) < HIGH_WATER]
    writers = [side.sock for side in (worker, agent) if side.out or side.wants_write]
    select.select([*readers, later.ear], writers, [])


def _drain(side: _Side, deadline: float) -> None:
    while side.out and not side.broken and (left := deadline - time.monotonic()) > 0:
        if not side.send():
            select.select([], [side.sock], [], left)
