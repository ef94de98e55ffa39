"""Building, refreshing and deleting the pod VM image of a cluster, by whoever has the lease.

Whatever is done is written down before and after. So anybody who comes after a crash goes on where it ended, and what
was half done is finished or removed. Synchronous, in a process of its own: `caa image`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol

from caa.images.holder import is_dead
from caa.images.image import Held, ImageState, PodVmImage
from caa.images.work import AT_REST, LEASE_SECONDS, CancelledError, DeadlineExceededError, Keeper, Time, Work
from caa.ledger import LeaseLostError, StaleWriteError
from caa.ledger.images import ImageStore
from imagebuilder.errors import ImageError
from imagebuilder.publish.base import ImageName, Publisher
from imagebuilder.sources import Disk, Progress
from providers.base import DeniedError, InvalidRequestError, ProviderError

log = logging.getLogger(__name__)

MAX_FAILURES = 5
"""Failures in a row of one image. With the waits below the last try comes some three minutes after the first."""
MAX_ATTEMPTS = 50
"""How often an image may be begun, counting builders that died: a build that kills its process ends some day, too."""
FIRST_WAIT, LONGEST_WAIT = 10.0, 300.0
# A build that was cancelled notices within a renewal of its lease, and then removes what it made.
_CANCEL_SECONDS = 900.0
_LOOK_SECONDS = 1.0

# They would say the same for ever.
PERMANENT = (DeniedError, InvalidRequestError)


class ImageFailedError(Exception):
    """There is no image, and nobody tries to build one any more."""

    def __init__(self, image: PodVmImage) -> None:
        super().__init__(f"the pod VM image {image.told()}")
        self.image = image


class ImageInUseError(Exception):
    """The image cannot be deleted now."""


class WriteBackError(Exception):
    """Where the id belongs it could not be written."""


class Source(Protocol):
    """What images are made from."""

    @property
    def name(self) -> str:
        """For people; without secrets."""
        ...

    def obtain(self, progress: Progress) -> Disk:
        """The disk, made or fetched now. Raises ImageError."""
        ...

    def clear(self) -> None:
        """Remove what `obtain` left on this machine."""
        ...


class WriteBack(Protocol):
    """Where the image's id is kept beside the ledger. The key is the publisher's, such as PODVM_AMI_ID."""

    def written(self, image_id: str) -> None:
        """The image that pod VMs boot from now on; "" when there is none any more. Raises WriteBackError.

        May be called again.
        """
        ...


class OnlyLedger:
    """No other place than the ledger."""

    def written(self, image_id: str) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Imaging:
    """The images of one cluster in one account."""

    store: ImageStore
    publisher: Publisher
    source: Source
    cluster: str
    holder: str
    time: Time
    write_back: WriteBack = OnlyLedger()  # noqa: RUF009  # it has no state
    tell: Callable[[PodVmImage], None] = lambda _image: None

    @property
    def account(self) -> str:
        """Where the images are."""
        return self.publisher.account

    def ensure(self) -> PodVmImage:
        """The image that pod VMs boot, built now if there is none. Waits for whoever builds already.

        Not for when the configuration names one (`Publisher.configured`). Raises ConfigError,
        ImageFailedError, ProviderError, LedgerError.
        """
        while True:
            ready = self.store.ready(self.cluster, self.account)
            if ready is not None and self.publisher.exists(ready.image_id):
                self.announce(ready.image_id)  # whoever built it may have ended before it came to that
                return ready
            self._raise_failed()
            self.publisher.check()
            with self._lease() as lease:
                if lease is not None:
                    self._remove_missing(lease)
                    with contextlib.suppress(LeaseLostError, StaleWriteError):
                        return self._build(lease)
            self.time.sleep(_LOOK_SECONDS)

    def refresh(self) -> PodVmImage:
        """Build the image anew; the one before stays until no sandbox needs it. One with the same content is kept."""
        self.publisher.check()
        before = self.store.ready(self.cluster, self.account)
        while True:
            self._raise_failed()
            with self._lease() as lease:
                if lease is not None:
                    with contextlib.suppress(LeaseLostError, StaleWriteError):
                        return self._build(lease)
            ready = self.store.ready(self.cluster, self.account)
            if ready is not None and (before is None or ready.id != before.id):
                return ready  # whoever had the lease built it
            self.time.sleep(_LOOK_SECONDS)

    def retry(self) -> bool:
        """Let the image that failed be tried again. Whether there is one."""
        image = self.store.open(self.cluster, self.account)
        return image is not None and self.store.retry(image.id, self.time.now())

    def delete(self) -> list[PodVmImage]:
        """Remove every image of this cluster's, what is being built included; returns those that were.

        Raises ImageInUseError while sandboxes use one, ProviderError when the cloud refuses: call again to go on.
        """
        for image in self._remaining():
            if image.image_id and (count := self._users(image)):
                raise ImageInUseError(f"{count} sandboxes use the image {image.image_id}; stop them first")
        until = self.time.monotonic() + _CANCEL_SECONDS
        while True:
            for image in self._remaining():
                self.store.cancel(image.id)
            with self._lease() as lease:
                if lease is not None:
                    remaining = self._remaining()
                    for image in remaining:
                        self._remove(image, lease)
                    self.announce("")
                    return remaining
            if self.time.monotonic() > until:
                raise ImageInUseError("whoever builds the image does not end; try again later")
            self.time.sleep(_LOOK_SECONDS)

    def sweep(self) -> list[PodVmImage]:
        """Remove images that a newer one replaced and no sandbox needs any more. Nothing while somebody builds."""
        useless = [image for image in self._remaining() if self._is_useless(image)]
        if not useless:
            return []
        with self._lease() as lease:
            if lease is None:
                return []
            for image in useless:
                self._remove(image, lease)
        return useless

    # The lease

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Keeper | None]:
        """The lease, kept; or None while somebody else has it."""
        taken = self.store.take_lease(self.lease_name, self.holder, LEASE_SECONDS, self.time.now(), is_dead)
        if isinstance(taken, Held):
            image = self.store.open(self.cluster, self.account)
            if image is not None:
                self.tell(image)
            yield None
            return
        with Keeper(self.store, taken, self.time) as keeper:
            yield keeper

    @property
    def lease_name(self) -> str:
        """Of the lease that its builder has."""
        return f"image of {self.cluster} in {self.account}"

    # Building

    def _raise_failed(self) -> None:
        image = self.store.open(self.cluster, self.account)
        if image is not None and image.state is ImageState.FAILED:
            raise ImageFailedError(image)

    def _build(self, lease: Keeper) -> PodVmImage:
        image = self.store.open(self.cluster, self.account) or self._add(lease)
        work = Work(self.store, image, lease, self.time, self.tell)
        try:
            while not self._attempt(work):
                pass
        except CancelledError as error:
            self._give_up(work, "Cancelled", str(error))
            self._remove(work.image, lease)
            raise ImageFailedError(work.image) from error
        if work.image.state is ImageState.DELETED:  # its content is that of the image there is
            ready = self.store.ready(self.cluster, self.account)
            assert ready is not None
            return ready
        return work.image

    def _add(self, lease: Keeper) -> PodVmImage:
        now = self.time.now()
        image = PodVmImage(
            id=f"image-{secrets.token_hex(8)}",
            cluster=self.cluster,
            account=self.account,
            source=self.source.name,
            state=ImageState.BUILDING,
            created_at=now,
            changed_at=now,
        )
        return self.store.add(image, lease.lease)

    def _attempt(self, work: Work) -> bool:
        """One try. Whether it is over; else another may follow. Raises ImageFailedError when none may."""
        image = work.image
        if image.attempts >= MAX_ATTEMPTS:
            self._fail(work, "Interrupted", f"it was begun {image.attempts} times, and its builder ended each time")
        if image.retry_at is not None:
            work.sleep((image.retry_at - self.time.now()).total_seconds())
        work.restart()
        work.save(attempts=image.attempts + 1, retry_at=None, reason="", failure="", **AT_REST)
        try:
            self._make(work)
        except (ProviderError, ImageError, OSError, DeadlineExceededError) as raised:
            work.check_lease()
            error = work.late or raised  # a tool that took too long was ended, and says only that
            reason = _reason(error)
            if _is_permanent(error) or work.image.failures + 1 >= MAX_FAILURES:
                self._fail(work, reason, str(error))
            wait = min(LONGEST_WAIT, FIRST_WAIT * 2**work.image.failures)
            log.warning("the pod VM image is tried again in %.0f s: %s", wait, error)
            work.restart()
            work.save(
                failures=work.image.failures + 1,
                retry_at=self.time.now() + timedelta(seconds=wait),
                reason=reason,
                failure=str(error),
            )
            return False
        return True

    def _make(self, work: Work) -> None:
        work.phase("source")
        disk = self.source.obtain(work.step)
        work.check()
        if work.image.digest not in ("", disk.digest):
            # An earlier try made another disk of the same source; what it left must not be mixed with this one.
            self._remove_resources(work.image)
            work.save(resources={}, blocks=b"")
        work.save(digest=disk.digest, arch=disk.arch, measurements=dict(disk.measurements))
        ready = self.store.ready(self.cluster, self.account)
        if ready is not None and ready.digest == disk.digest:
            work.save(state=ImageState.DELETING)
            work.save(state=ImageState.DELETED)
            self.source.clear()
            return
        image_id = self.publisher.publish(disk, ImageName(self.cluster, disk.digest), work)
        work.phase("switch")
        work.save(state=ImageState.READY, image_id=image_id, failures=0, **AT_REST)
        self.announce(image_id)
        self.source.clear()

    def announce(self, image_id: str) -> None:
        """The ledger has the image already; whoever cannot be told now is told by the next `ensure`, or the service."""
        try:
            self.write_back.written(image_id)
        except WriteBackError as error:
            log.warning("the image %s could not be written to where it is configured: %s", image_id, error)

    def _fail(self, work: Work, reason: str, failure: str) -> None:
        """For good, with nothing left in the cloud as far as it lets us."""
        self._give_up(work, reason, failure)
        raise ImageFailedError(work.image)

    def _give_up(self, work: Work, reason: str, failure: str) -> None:
        try:
            self._remove_resources(work.image)
        except ProviderError as error:
            failure += f"; what was made is still there, for {error}"
        else:
            work.save(resources={}, blocks=b"")
        work.save(state=ImageState.FAILED, reason=reason, failure=failure, retry_at=None, **AT_REST)
        self.source.clear()

    # Removing

    def _remaining(self) -> list[PodVmImage]:
        images = self.store.all(self.cluster, self.account)
        return [image for image in images if image.state is not ImageState.DELETED]

    def _users(self, image: PodVmImage) -> int:
        users = self.store.users(image.image_id)
        return users or int(self.publisher.in_use(image.image_id))

    def _is_useless(self, image: PodVmImage) -> bool:
        if image.state is ImageState.DELETING:
            return True
        return image.state is ImageState.RETIRED and not self._users(image)

    def _remove_missing(self, lease: Keeper) -> None:
        """An image that somebody deleted past us: what is left of it goes, so that it can be built again."""
        ready = self.store.ready(self.cluster, self.account)
        if ready is not None and not self.publisher.exists(ready.image_id):
            log.warning("the pod VM image %s is gone from %s; it is built again", ready.image_id, self.account)
            self._remove(ready, lease)

    def _remove(self, image: PodVmImage, lease: Keeper) -> None:
        """Marked first, so that nobody uses it while it goes, and whoever comes after a crash goes on."""
        current = self.store.image(image.id)
        assert current is not None
        if current.state is ImageState.DELETED:
            return
        current = self._mark(current, ImageState.DELETING, lease)
        self._remove_resources(current)
        self._mark(current, ImageState.DELETED, lease)

    def _mark(self, image: PodVmImage, state: ImageState, lease: Keeper) -> PodVmImage:
        return self.store.save(replace(image, state=state, changed_at=self.time.now()), lease.lease)

    def _remove_resources(self, image: PodVmImage) -> None:
        if not image.digest:
            return
        same = (one for one in self._remaining() if one.id != image.id and one.digest == image.digest)
        if next(same, None) is None:  # the same disk has the same names
            self.publisher.delete(ImageName(self.cluster, image.digest), image.resources)


def _is_permanent(error: Exception) -> bool:
    return isinstance(error, PERMANENT) or (isinstance(error, ImageError) and error.permanent)


def _reason(error: Exception) -> str:
    if isinstance(error, ProviderError | ImageError):
        return error.reason
    return "DeadlineExceeded" if isinstance(error, DeadlineExceededError) else "FileError"
