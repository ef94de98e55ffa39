"""One shared connection to libvirt: opened when needed, opened anew when it died, never waited on without bound."""

from __future__ import annotations

import contextlib
import threading

import libvirt

from providers.base import DeniedError, ProviderError
from providers.libvirt.errors import translate, unreachable
from providers.libvirt.settings import LibvirtKeys

# An ssh connection to a host far away takes some seconds; past this the host is taken for unreachable.
OPEN_SECONDS = 20.0
# A peer silent for 5 x 4 = 20 s is dead: every call that waits on it then fails.
KEEPALIVE_SECONDS = 5
KEEPALIVE_PROBES = 3

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


class Connection:
    """Hands out the connection. Thread-safe: libvirt runs the calls of several threads over one connection."""

    def __init__(self, keys: LibvirtKeys) -> None:
        self._keys = keys
        self._lock = threading.Lock()
        self._conn: libvirt.virConnect | None = None
        self._failure: ProviderError | None = None
        self._failures = 0

    def get(self) -> libvirt.virConnect:
        """A live connection. Raises UnavailableError or DeniedError, having asked libvirt for nothing."""
        seen = self._failures
        with self._lock:
            if self._conn is not None and alive(self._conn):
                return self._conn
            if self._failure is not None and self._failures != seen:
                raise self._failure  # of the try that this caller was waiting for: one wait is enough
            self._conn = None  # not closed here: another thread may still be failing in a call on it
            try:
                self._conn = self._open()
            except ProviderError as error:
                self._failure, self._failures = error, self._failures + 1
                raise
            return self._conn

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            conn, self._conn = self._conn, None
        if conn is not None:
            with contextlib.suppress(libvirt.libvirtError):
                conn.close()

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
                        conn.close()
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
