"""One build under way: keeps its lease, its time limits, and the record of what it did.

The lease is renewed from a thread, so that a long step of the builder does not lose it. Whatever ends the build (a
lease that is lost, a cancellation, a phase that takes too long) is raised at the builder's next step.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol

from caa.images.image import Lease, PodVmImage
from caa.ledger import LeaseLostError, LedgerError, StaleWriteError
from caa.ledger.images import ImageStore
from imagebuilder.tools import end_running

log = logging.getLogger(__name__)

LEASE_SECONDS = 30.0
"""How long a builder that died holds up the next one."""
# Five renewals may fail before the lease is lost.
RENEW_SECONDS = 5.0
# How often progress is written down for others to see, at most.
PROGRESS_SECONDS = 1.0

DEADLINES: Mapping[str, float] = {
    "source": 3600.0,  # a slow mirror; from nothing it takes about 90 s here
    "convert": 1800.0,
    "upload": 3 * 3600.0,  # 400 MB at 40 kB/s
    "import": 1800.0,  # what the cloud's own tools wait for
    "register": 900.0,
    "switch": 300.0,
}
"""Seconds that each phase may take, of one try."""


AT_REST: Mapping[str, Any] = {"phase": "", "step": "", "done": 0, "total": None, "rate": 0.0}
"""How far an image is that nobody builds."""


class CancelledError(Exception):
    """Somebody asked for the end of this build."""


class DeadlineExceededError(Exception):
    """A phase took longer than it may."""

    def __init__(self, phase: str) -> None:
        super().__init__(f"the phase {phase!r} took longer than {DEADLINES[phase]:.0f} s")


class Time(Protocol):
    """The clock of a builder, which has no event loop."""

    def now(self) -> datetime: ...

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class Keeper:
    """Keeps a lease for as long as the context lasts, and looks whether somebody cancelled what is `watched`.

    A tool that the builder waits for cannot look up; when the build must end, it is ended from here.
    """

    def __init__(self, store: ImageStore, lease: Lease, time: Time) -> None:
        self.lease = lease
        self.why: Exception | None = None
        """Why nothing more may be done under this lease."""
        self.watched = ""
        self.is_late: Callable[[], bool] = lambda: False
        self._store = store
        self._time = time
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Keeper:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._store.give_back_lease(self.lease)

    def look_at(self, image: PodVmImage | None) -> None:
        """See whether somebody cancelled it."""
        if image is not None and image.cancelled and self.why is None:
            self.why = CancelledError("somebody asked for the end of this build")

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._store.renew_lease(self.lease, LEASE_SECONDS, self._time.now())
                self.look_at(self._store.image(self.watched) if self.watched else None)
            except LeaseLostError as error:
                self.why = error
                end_running()
                return
            except LedgerError as error:
                log.warning("the lease cannot be renewed now: %s", error)
            if self.why is not None or self.is_late():
                end_running()


class Work:
    """The build of one image under one lease.

    `tell` is called with the image whenever what others may see of it has changed.
    """

    def __init__(
        self, store: ImageStore, image: PodVmImage, keeper: Keeper, time: Time, tell: Callable[[PodVmImage], None]
    ) -> None:
        self._store = store
        self._image = image
        self._keeper = keeper
        self._time = time
        self._tell = tell
        self._lock = threading.RLock()
        self._began = self._since = time.monotonic()  # of the phase, and of what is counted
        self._base, self._written_at = 0, 0.0
        self._late: DeadlineExceededError | None = None
        keeper.watched, keeper.is_late = image.id, self._is_late

    @property
    def image(self) -> PodVmImage:
        """As it was written down last."""
        return self._image

    # What publishers use: imagebuilder.publish.base.Work

    @property
    def token(self) -> str:
        """The id of the image."""
        return self._image.id

    @property
    def resources(self) -> Mapping[str, str]:
        """Kind -> the cloud's id."""
        return self._image.resources

    @property
    def blocks(self) -> bytes:
        """Which parts of the disk the cloud has."""
        return self._image.blocks

    def phase(self, name: str, total: int | None = None, done: int = 0) -> None:
        """A phase begins, and with it its time."""
        self.check()
        with self._lock:
            self._began = self._since = self._time.monotonic()
            self._base = done
            self.save(phase=name, step="", total=total, done=done, rate=0.0)

    def step(self, name: str, done: int, total: int | None) -> None:
        """Of the phase this is done now; steps of the recipe are counted together, and so have one total."""
        self.check()
        with self._lock:
            if (name, total) == (self._image.step, self._image.total):
                self.progress(done)
                return
            if total != self._image.total:
                self._since, self._base = self._time.monotonic(), done
            self._try_to_save(step=name, total=total, done=done, rate=self._rate(done))

    def progress(self, done: int) -> None:
        """Written down once a second at most."""
        self.check()
        with self._lock:
            if self._time.monotonic() - self._written_at >= PROGRESS_SECONDS:
                self._try_to_save(done=done, rate=self._rate(done))

    def _try_to_save(self, **changes: Any) -> None:
        """Where it cannot be written down how far it is, the work goes on: it may be what fills the disk."""
        try:
            self.save(**changes)
        except LedgerError as error:
            self._written_at = self._time.monotonic()
            log.warning("how far the image is cannot be written down now: %s", error)

    def note(self, kind: str, identity: str) -> None:
        """Write a resource down."""
        with self._lock:
            others = {key: value for key, value in self._image.resources.items() if key != kind}
            self.save(resources=others | ({kind: identity} if identity else {}))

    def save_blocks(self, blocks: bytes, done: int) -> None:
        """Write down which parts of the disk the cloud has."""
        with self._lock:
            self.save(blocks=blocks, done=done, rate=self._rate(done))

    def check(self) -> None:
        """Raise why the build must end, if it must."""
        why = self._keeper.why or self.late
        if why is not None:
            raise why

    def check_lease(self) -> None:
        """Raise why nothing more may be done, however this try ends."""
        if self._keeper.why is not None:
            raise self._keeper.why

    @property
    def late(self) -> DeadlineExceededError | None:
        """That a phase of this try took too long, if one did."""
        if self._late is None and self._is_late():
            self._late = DeadlineExceededError(self._image.phase)
        return self._late

    def _is_late(self) -> bool:
        phase = self._image.phase
        return bool(phase) and self._time.monotonic() - self._began > DEADLINES[phase]

    def sleep(self, seconds: float) -> None:
        """Wait, a second at a time, for the end may come meanwhile."""
        until = self._time.monotonic() + seconds
        while (left := until - self._time.monotonic()) > 0:
            self.check()
            self._time.sleep(min(left, 1.0))
        self.check()

    # What the builder uses

    def save(self, **changes: Any) -> PodVmImage:
        """Write the image down with these changes. Raises LeaseLostError, and for good after that."""
        with self._lock:
            changed = replace(self._image, **changes, changed_at=self._time.now())
            try:
                self._image = self._store.save(changed, self._keeper.lease)
            except (LeaseLostError, StaleWriteError) as error:
                self._keeper.why = error
                raise
            self._written_at = self._time.monotonic()
            self._keeper.look_at(self._image)
        self._tell(self._image)
        return self._image

    def restart(self) -> None:
        """A new try begins, with its own time."""
        self._late = None
        self._began = self._time.monotonic()

    def _rate(self, done: int) -> float:
        seconds = self._time.monotonic() - self._since
        return max(0.0, (done - self._base) / seconds) if seconds > 0 else 0.0
