"""One worker connection and its own agent connection: bytes both ways, frames seen on the way in.

One thread runs one link with non-blocking sockets, for an OpenSSL connection must not be read and written by two
threads at once. Each direction holds at most HIGH_WATER bytes (plus one frame) and is read no further until they are
gone, so a slow side slows the other instead of filling the memory.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Callable

from caa.ttrpc.frames import HEADER, MAX_DATA, REQUEST

HIGH_WATER = 256 << 10
_CHUNK = 64 << 10
# How long the rest of one side's bytes may take after the other side ended.
_DRAIN_SECONDS = 5.0


class FrameRewriter:
    """Takes the worker's bytes in any pieces, gives the agent's bytes: requests changed, all else as it came."""

    def __init__(self, change: Callable[[bytes], bytes]) -> None:
        self._change = change
        self._held = bytearray()
        self._raw = 0  # bytes of an over-long frame still to pass

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
        return HEADER.pack(len(changed), stream_id, frame_type, flags) + changed


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


def relay(worker: ssl.SSLSocket, agent: socket.socket, change: Callable[[bytes], bytes]) -> None:
    """Carry bytes until one side ends, then what is left of them, then close both."""
    with worker, agent:
        sides = _Side(worker), _Side(agent)
        for side in sides:
            side.sock.setblocking(False)
        _carry(*sides, FrameRewriter(change).feed)
        for side in sides:
            _drain(side, time.monotonic() + _DRAIN_SECONDS)


def _carry(worker: _Side, agent: _Side, rewrite: Callable[[bytes], bytes]) -> None:
    while not (worker.ended or agent.ended):
        moved = worker.send() + agent.send()
        if len(agent.out) < HIGH_WATER and (data := worker.receive()):
            agent.out += rewrite(data)
            moved += len(data)
        if len(worker.out) < HIGH_WATER and (data := agent.receive()):
            worker.out += data
            moved += len(data)
        # The sockets are asked only when nothing moved: TLS may hold bytes that its socket no longer shows.
        if not moved and not (worker.ended or agent.ended):
            _wait(worker, agent)


def _wait(worker: _Side, agent: _Side) -> None:
    # select, not epoll: a side that is neither read nor written now must not wake us by its hang-up.
    readers = [side.sock for side, other in ((worker, agent), (agent, worker)) if len(other.out) < HIGH_WATER]
    writers = [side.sock for side in (worker, agent) if side.out or side.wants_write]
    select.select(readers, writers, [])


def _drain(side: _Side, deadline: float) -> None:
    while side.out and not side.broken and (left := deadline - time.monotonic()) > 0:
        if not side.send():
            select.select([], [side.sock], [], left)
