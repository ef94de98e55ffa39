"""Connections to libvirt: opened when needed, kept, opened anew when they died, never waited on without bound."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import libvirt

from providers.base import DeniedError, ProviderError
from providers.libvirt.errors import translate, unreachable
from providers.libvirt.settings import LibvirtKeys

# An ssh connection to a host far away takes some seconds; past this the host is taken for unreachable.
OPEN_SECONDS = 20.0
# A peer silent for 5 x 4 = 20 s is dead: every call that waits on it then fails.
KEEPALIVE_SECONDS = 5
KEEPALIVE_PROBES = 3
# Below the 10 logins at once that sshd takes by default; also as much as one libvirt host does in parallel with profit.
MAX_CONNECTIONS = 8

_loop_lock = threading.Lock()
_loop: threading.Thread | None = None


def _start_event_loop() -> None:
    """Run libvirt's event loop in this process, once: keepalive and the notice of a dead peer live in it."""
    global _loop
    with _loop_lock:
        if _loop is not None:
            return
        # libvirt prints each error to stderr by default; every one of them reaches us as an exception too.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        libvirt.virEventRegisterDefaultImpl()

        def run() -> None:
            while True:
                with contextlib.suppress(libvirt.libvirtError):
                    libvirt.virEventRunDefaultImpl()

        _loop = threading.Thread(target=run, name="libvirt-events", daemon=True)
        _loop.start()


class Connections:
    """Hands out connections, each to one thread at a time.

    libvirt allows one connection for several threads, but its client (seen with 9.0) crashes the process when such a
    connection dies of a keepalive time-out while more than one thread waits on it.
    """

    def __init__(self, keys: LibvirtKeys) -> None:
        self._keys = keys
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[libvirt.virConnect] = []
        self._failure: ProviderError | None = None
        self._failures = 0

    @contextlib.contextmanager
    def borrow(self) -> Iterator[libvirt.virConnect]:
        """A live connection. Raises UnavailableError or DeniedError on entry, having asked libvirt for nothing."""
        seen = self._failures
        with self._slots:
            if self._failure is not None and self._failures != seen:
                raise self._failure  # a try failed while this caller waited for a slot: one wait is enough
            conn = self._take() or self._open_counted()
            try:
                yield conn
            finally:
                if alive(conn):
                    with self._lock:
                        self._idle.append(conn)
                else:
                    _close(conn)

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            idle, self._idle = self._idle, []
        for conn in idle:
            _close(conn)

    def _take(self) -> libvirt.virConnect | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                conn = self._idle.pop()
            if alive(conn):
                return conn
            _close(conn)

    def _open_counted(self) -> libvirt.virConnect:
        try:
            return self._open()
        except ProviderError as error:
            with self._lock:
                self._failure, self._failures = error, self._failures + 1
            raise

    def _open(self) -> libvirt.virConnect:
        """Open in a thread of its own: libvirt's open has no time limit, and a hung daemon still accepts."""
        _start_event_loop()
        done = threading.Event()
        settle = threading.Lock()
        opened: list[libvirt.virConnect] = []
        failed: list[libvirt.libvirtError] = []
        given_up = False

        def work() -> None:
            try:
                conn = libvirt.open(self._keys.uri)
                conn.setKeepAlive(KEEPALIVE_SECONDS, KEEPALIVE_PROBES)
            except libvirt.libvirtError as error:
                failed.append(error)
            else:
                with settle:
                    if given_up:
                        _close(conn)
                    else:
                        opened.append(conn)
            done.set()

        threading.Thread(target=work, name="libvirt-open", daemon=True).start()
        done.wait(OPEN_SECONDS)
        with settle:
            if opened:
                return opened[0]
            given_up = True
        if not failed:
            raise unreachable(self._keys, f"no answer within {OPEN_SECONDS:g} s")
        refusal = translate(failed[0], self._keys)
        raise refusal if isinstance(refusal, DeniedError) else unreachable(self._keys, failed[0])


def alive(conn: libvirt.virConnect) -> bool:
    """Whether the connection is open and its peer answers keepalives."""
    try:
        return bool(conn.isAlive())
    except libvirt.libvirtError:
        return False


def _close(conn: libvirt.virConnect) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        conn.close()
