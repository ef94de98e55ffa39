"""The service's part in its pod VM image: has it built, uses it as soon as it is there, and tells how far it is.

Where the configuration names no image, the one that the ledger has is used as if it were named. It is built by
`caa image ensure`, in a process of its own: however the service ends meanwhile, the build goes on or is taken up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping

from caa.clock import Clock
from caa.errors import CallError, NotFoundError, UnavailableError
from caa.images.image import ImageState, PodVmImage
from caa.images.imaging import ImageInUseError, Imaging
from caa.images.setup import lacking, make
from caa.ledger import Ledger, LedgerError
from caa.ledgerthreads import LedgerThreads
from caa.settings import Settings
from imagebuilder.publish.base import Publisher
from providers.base import ProviderError

log = logging.getLogger(__name__)

# A database read each; so a new image is used a second after it is ready, on every node.
LOOK_SECONDS = 1.0
# A builder that ends as soon as it begins is not started all the time.
AGAIN_SECONDS = 5.0
# How long after an image the configuration has to name it; then, and ever less often, its id is written there again.
ANNOUNCE_SECONDS = 5.0
# How often it is looked whether an image that was replaced is still needed.
TEND_SECONDS = 30.0
# How often it is looked whether the cloud still has the image: somebody may delete it past us.
VERIFY_SECONDS = 300.0
# A builder that is told to end gives its lease back first.
STOP_SECONDS = 5.0


class ImageWatch:
    """The image of this cluster, for one service. `values` is its configuration, a builder gets it over `environ`."""

    def __init__(
        self,
        settings: Settings,
        values: Mapping[str, str],
        environ: Mapping[str, str],
        publisher: Publisher | None,
        ledger: Ledger,
        threads: LedgerThreads,
        clock: Clock,
    ) -> None:
        self._key = publisher.key if publisher else ""
        self._cloud = settings.cloud_provider
        self._environ = environ
        self._values = values
        self._publisher = publisher
        self._imaging: Imaging | None = None
        if publisher is not None:
            self._imaging = make(settings, {**environ, **values}, publisher, ledger.images)
        self._threads = threads
        self._clock = clock
        self._builder: asyncio.subprocess.Process | None = None
        self.watcher: Callable[[PodVmImage], None] = lambda _image: None
        """Told of the image that is being built, and of each new one, again and again."""
        self.needed = False
        """The configuration's image is missing, so one has to be built before the first sandbox can start."""
        self.image_id = ""
        """The image in use that was built here; "" when the configuration names one, or there is none yet."""
        self._seen: PodVmImage | None = None
        self._ours: set[str] = set()
        self._deleted = False
        self._lacking = ""
        self._tend_at = clock.monotonic() + TEND_SECONDS
        self._begun_at = clock.monotonic() - AGAIN_SECONDS
        self._verify_at = clock.monotonic() + VERIFY_SECONDS
        self._announce_wait = ANNOUNCE_SECONDS
        self._announce_at = clock.monotonic() + ANNOUNCE_SECONDS
        self._configured = values.get(self._key, "").strip()
        self._named = self._names_another(values)

    async def find(self) -> None:
        """Take the image that the ledger has, if the cloud still has it."""
        if self._imaging is None:
            return
        images = await self.images()
        self._ours = {image.image_id for image in images if image.image_id}
        ready = next((image for image in images if image.state is ImageState.READY), None)
        if ready is not None and await asyncio.to_thread(self._imaging.publisher.exists, ready.image_id):
            self.image_id = ready.image_id

    def overlay(self, values: Mapping[str, str]) -> Mapping[str, str]:
        """The configuration with the image that was built here, unless it names one that was not."""
        if self._lacking and values != self._values:
            self._tend_at = self._clock.monotonic()
        self._values = values
        self._configured = values.get(self._key, "").strip()
        self._named = self._names_another(values)
        if self._named or values.get(self._key, "").strip() == self.image_id:
            return values
        return {**values, self._key: self.image_id}

    def _names_another(self, values: Mapping[str, str]) -> bool:
        """Whether a user named the image. One of ours may have been written back, and be gone meanwhile."""
        value = values.get(self._key, "").strip()
        return bool(value) and value not in self._ours

    def built(self) -> str:
        """The image that was built here and is in use, by the cloud's id; "" where the configuration names one."""
        return "" if self._named else self.image_id

    def refusal(self) -> CallError | None:
        """Why no sandbox can start for want of an image, if that is so."""
        if not self.needed:
            return None
        image = self._seen
        if image is None and self._deleted:
            text = "the pod VM image was deleted; `caa image ensure` builds one"
            return UnavailableError(text, reason="ImageMissing")
        if image is None and self._lacking:
            return UnavailableError(f"the pod VM image cannot be built: {self._lacking}", reason="ImageNotConfigured")
        if image is None:
            return UnavailableError("the pod VM image is being built", reason="ImageBuilding")
        failed = image.state is ImageState.FAILED
        return UnavailableError(f"the pod VM image {image.told()}", reason="ImageFailed" if failed else "ImageBuilding")

    # For the REST interface

    @property
    def key(self) -> str:
        """The key that names the image."""
        return self._key

    async def images(self) -> list[PodVmImage]:
        """Every image that was built for this cluster here, oldest first."""
        if self._imaging is None:
            return []
        return await self._threads.run(self._imaging.store.all, self._imaging.cluster, self._imaging.account)

    async def retry(self) -> PodVmImage:
        """Have the image that failed built again. Raises NotFoundError."""
        if self._imaging is None or not await self._threads.run(self._imaging.retry):
            raise NotFoundError("no image failed", reason="NoFailedImage")
        await self._build()
        image = await self._open()
        assert image is not None
        return image

    # The loop

    async def run(self, changed: Callable[[], Awaitable[bool]]) -> None:
        """Watch, for ever. `changed` has the service use the overlay of now; whether it does so."""
        if self._imaging is None:
            return
        if self.needed:
            await self._build()
        while True:
            try:
                await self._look(changed)
                await self._announce()
                if self._clock.monotonic() >= self._tend_at:
                    self._tend_at = self._clock.monotonic() + TEND_SECONDS
                    await self._tend()
            except (UnavailableError, ProviderError, LedgerError, ImageInUseError) as error:
                log.warning("the pod VM image cannot be looked after now: %s", error)
            except Exception:  # a defect here must not end the service, nor go unseen
                log.exception("the pod VM image could not be looked after")
            await self._clock.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """End the builder that this service started, if it still runs; another goes on where it was."""
        builder = self._builder
        if builder is not None and builder.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                builder.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(builder.wait(), STOP_SECONDS)
        if self._publisher is not None:
            await asyncio.to_thread(self._publisher.close)

    async def _look(self, changed: Callable[[], Awaitable[bool]]) -> None:
        assert self._imaging is not None
        self._seen = await self._open()
        if self._seen is not None:
            self.watcher(self._seen)
        if self._seen is not None and self._seen.state is ImageState.BUILDING:
            await self._take_up()
        if self._named and not self.needed:
            return
        ready = await self._threads.run(self._imaging.store.ready, self._imaging.cluster, self._imaging.account)
        if ready is None and self.image_id and not self.needed:
            log.warning("the pod VM image %s was deleted", self.image_id)
            self.needed = self._deleted = True  # and not to be built again before somebody says so
        if ready is None or (ready.image_id == self.image_id and not self.needed):
            return
        self._ours.add(ready.image_id)
        before, self.image_id = self.image_id, ready.image_id
        if await changed():
            self.needed = self._deleted = False
            log.info("pod VMs boot the image %s from now on", ready.image_id)
            self.watcher(ready)
        else:
            self.image_id = before

    async def _announce(self) -> None:
        """Have the image's id written to where the configuration is from, if it is not there."""
        assert self._imaging is not None
        if self.built() in ("", self._configured) or self._running():
            self._announce_wait = ANNOUNCE_SECONDS
            self._announce_at = self._clock.monotonic() + self._announce_wait
        elif self._clock.monotonic() >= self._announce_at:
            await asyncio.to_thread(self._imaging.announce, self.image_id)
            self._announce_wait = min(self._announce_wait * 2, VERIFY_SECONDS)
            self._announce_at = self._clock.monotonic() + self._announce_wait

    async def _take_up(self) -> None:
        """A build that nobody is at any more, or that somebody wants to be tried again."""
        assert self._imaging is not None
        now = self._clock.monotonic()
        if self._running() or now < self._begun_at + AGAIN_SECONDS:
            return
        name = self._imaging.lease_name
        if await self._threads.run(self._imaging.store.holder, name, self._clock.now()) is None:
            await self._build()

    async def _tend(self) -> None:
        """Go on with what nobody does any more, and remove what nobody needs."""
        assert self._imaging is not None
        if self.needed and not self._deleted and await self._open() is None:
            await self._build()
        if self.image_id and not self.needed and self._clock.monotonic() >= self._verify_at:
            self._verify_at = self._clock.monotonic() + VERIFY_SECONDS
            if not await asyncio.to_thread(self._imaging.publisher.exists, self.image_id):
                log.warning("the pod VM image %s is gone from the cloud", self.image_id)
                self.needed = True
                await self._build()
        if not self._running():
            await asyncio.to_thread(self._imaging.sweep)

    async def _open(self) -> PodVmImage | None:
        assert self._imaging is not None
        return await self._threads.run(self._imaging.store.open, self._imaging.cluster, self._imaging.account)

    def _running(self) -> bool:
        return self._builder is not None and self._builder.returncode is None

    async def _build(self) -> None:
        if self._running():
            return
        environ = {**self._environ, **self._values}
        self._lacking = await asyncio.to_thread(lacking, self._cloud, environ)
        if self._lacking:
            log.warning("the pod VM image cannot be built: %s", self._lacking)
            return
        log.info("the pod VM image is being built")
        self._begun_at = self._clock.monotonic()
        self._builder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "caa.cli.main", "image", "ensure"),
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
