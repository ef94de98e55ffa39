"""A relay before libvirt's socket that breaks the connection at a chosen message."""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from pathlib import Path

LIBVIRT_SOCKET = "/run/libvirt/libvirt-sock"


class Cut(enum.Enum):
    """Where the chosen message is lost."""

    REQUEST = "before libvirt gets the request"
    REPLY = "after libvirt got the request, before its reply comes through"


class Relay:
    """Counts the client's messages (each begins with its length in 4 bytes) over all connections."""

    def __init__(self, path: Path, cut_at: int = 0, cut: Cut = Cut.REQUEST) -> None:
        self.path = path
        self.messages = 0
        self.connections = 0
        self.frozen = threading.Event()  # set: nothing is passed on any more, yet nothing is closed
        self._cut_at, self._cut = cut_at, cut
        self._open: list[socket.socket] = []
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(str(path))
        self._server.listen(8)
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?socket={self.path}"

    def cut_now(self) -> None:
        for end in self._open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()  # or it might open another one behind our back
        self._server.close()
        self.cut_now()
        for thread in self._threads:
            thread.join(5)
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            libvirt = socket.socket(socket.AF_UNIX)
            libvirt.connect(LIBVIRT_SOCKET)
            self.connections += 1
            self._open += [client, libvirt]
            muted = threading.Event()
            for target, args in ((self._upward, (client, libvirt, muted)), (self._downward, (libvirt, client, muted))):
                thread = threading.Thread(target=target, args=args, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _upward(self, client: socket.socket, libvirt: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while head := _exactly(client, 4):
                message = head + _exactly(client, int.from_bytes(head) - 4)
                if self.frozen.is_set():
                    continue
                self.messages += 1
                chosen = self.messages == self._cut_at
                if chosen and self._cut is Cut.REQUEST:
                    break
                if chosen:
                    muted.set()
                libvirt.sendall(message)
        for end in (client, libvirt):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _downward(self, libvirt: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while piece := libvirt.recv(65536):
                if muted.is_set():
                    break
                if not self.frozen.is_set():
                    client.sendall(piece)
        for end in (client, libvirt):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _exactly(end: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        piece = end.recv(size - len(got))
        if not piece:
            return b""
        got += piece
    return got
