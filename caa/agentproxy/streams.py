"""A connected socket, plain or TLS, driven by the event loop's readiness. Knows nothing of frames.

Why not asyncio's transports: they are as fast, but their TLS takes a buffer of up to 256 KiB for each connection,
and what waits inside it is not counted. Here one buffer serves all sandboxes, and what is unsent is known exactly.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable

log = logging.getLogger(__name__)

# One turn of the event loop reads at most this much from one socket, so that no sandbox starves the others. It is
# about what a unix socket holds. One buffer serves all sockets, for what is read is used up before the next read.
READ_BYTES = 256 << 10
# The largest TLS record. A shorter read means that there was no more.
_TLS_RECORD = 16 << 10
# With this much unsent, the other side is no longer read: two reads' worth keeps a fast pair busy.
CONGESTED_BYTES = 512 << 10
# With this little unsent it is read again: early enough that the line does not run dry meanwhile.
DRAINED_BYTES = 128 << 10

_buffer = memoryview(bytearray(READ_BYTES))

DataHandler = Callable[[memoryview], None]
"""Takes what was read. The view is valid during the call only."""


class Stream:
    """Owns `sock`, which is connected, non-blocking and past its TLS handshake. All handlers may be set anew.

    `on_data` gets what was read, `on_lost` the reason once when the peer ended or broke the connection (never after
    `close`), `on_drained` is called when `congested` turns false.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._tls = isinstance(sock, ssl.SSLSocket)
        self._unsent: deque[memoryview] = deque()
        self._reading = False
        self._closed = False
        self._broken: OSError | None = None  # why nothing can be sent any more
        self.buffered = 0
        self.congested = False
        self.on_data: DataHandler = lambda view: None
        self.on_lost: Callable[[Exception], None] = lambda error: None
        self.on_drained: Callable[[], None] = lambda: None
        self.set_reading(True)

    @property
    def closed(self) -> bool:
        """True from `close` or the loss of the connection on."""
        return self._closed

    def set_reading(self, wanted: bool) -> None:
        """Read, or leave the peer's data in the kernel so that the peer must wait."""
        if wanted == self._reading or self._closed:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._fd, self._readable)
        else:
            self._loop.remove_reader(self._fd)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send what the kernel takes, the rest (copied) as it drains. Never fails: a loss goes to `on_lost`."""
        if self._closed or self._broken:
            return
        view = memoryview(data)
        if not self._unsent:
            view = self._send(view)
            if not view or self._broken:
                return
            self._loop.add_writer(self._fd, self._writable)
        self._unsent.append(memoryview(bytes(view)))
        self.buffered += len(view)
        if self.buffered > CONGESTED_BYTES:
            self.congested = True

    def close(self) -> None:
        """End the connection at once; what is unsent is dropped. May be called again."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._unsent.clear()
        self.buffered = 0
        self._sock.close()

    def _send(self, view: memoryview) -> memoryview:
        """Send as much as the kernel takes; returns what is left."""
        try:
            while view:
                view = view[self._sock.send(view) :]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            # What the peer sent before it broke the connection may say why, so read that first.
            self._broken = error
            self._unsent.clear()
            self.buffered = 0
            self._loop.remove_writer(self._fd)
            self._loop.call_soon(self._readable)
        return view

    def _writable(self) -> None:
        while self._unsent:
            head = self._unsent[0]
            left = self._send(head)
            if self._broken:
                return
            self.buffered -= len(head) - len(left)
            if left:
                self._unsent[0] = left
                break
            self._unsent.popleft()
        else:
            self._loop.remove_writer(self._fd)
        if self.congested and self.buffered <= DRAINED_BYTES:
            self.congested = False
            self._guarded(self.on_drained)

    def _readable(self) -> None:
        if self._closed:
            return
        got = 0
        ended: Exception | None = None
        try:
            while True:
                count = self._sock.recv_into(_buffer[got:])
                got += count
                if count == 0:
                    ended = ConnectionError("the peer ended the connection")
                    break
                # What is left stays readable: in the kernel always, and inside TLS only if a record was cut.
                if not self._tls or count < _TLS_RECORD or READ_BYTES - got < _TLS_RECORD:
                    break
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        except OSError as error:
            ended = error
        if got:
            self._guarded(lambda: self.on_data(_buffer[:got]))
        ended = ended or self._broken
        if ended is not None:
            self._lose(ended)

    def _guarded(self, handler: Callable[[], None]) -> None:
        """A defect met by one connection ends that connection, never the process."""
        try:
            handler()
        except Exception as error:
            log.exception("closing a connection after an unexpected error")
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        if not self._closed:
            self.close()
            # Not from within `write`: its caller is in the middle of its own work.
            self._loop.call_soon(self.on_lost, error)
