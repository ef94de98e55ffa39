"""The pod VM image as the controller sees it: in the ledger that the nodes share. Where each has its own, it sees none.

It only looks. At the end of a KataConfig it has `caa image delete` run, a process of its own as all work on images.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from caa import configuring
from caa.controller.api import ControllerApi
from caa.controller.cloudconfig import values
from caa.controller.sharedledger import SharedLedger
from caa.controller.world import Build, Image
from caa.images import setup
from caa.images.image import ImageState, PodVmImage
from caa.images.imaging import WriteBackError
from caa.images.writeback import ConfigMapWriteBack
from caa.kubernetes.answers import AwayError, RefusedError
from caa.kubernetes.configobjects import CONFIG_MAP
from caa.kubernetes.configpatch import WatchedConfigMap
from caa.ledger import LedgerError
from providers.base import ConfigError

log = logging.getLogger(__name__)

# Between two tries to delete; what a cloud refuses now it refuses for a while.
AGAIN_SECONDS = 15.0
_REMAINING = frozenset(ImageState) - {ImageState.DELETED}


class LedgerImages:
    """See `caa.controller.rounds.Images`."""

    def __init__(self, api: ControllerApi, ledger: SharedLedger) -> None:
        self._api = api
        self._ledger = ledger
        self.wake: Callable[[], None] = lambda: None
        """Called when a deletion is over."""
        self._deleting: asyncio.Task[None] | None = None
        self.trouble = ""

    async def look(self) -> Image:
        """How it is. Never raises."""
        try:
            return await asyncio.to_thread(self._look)
        except ConfigError as error:
            return Image(Build.INCOMPLETE, "; ".join(str(error).splitlines()))
        except LedgerError as error:
            return Image(Build.UNKNOWN, f"the ledger cannot be asked: {error}")

    def _look(self) -> Image:
        found = self._ledger.get()
        if found is None:
            return Image()
        settings, ledger = found
        return seen(ledger.images.all(settings.cluster_id))

    def delete(self) -> None:
        """Begin to delete all that were built, unless that is under way."""
        if self._deleting is None or self._deleting.done():
            self._deleting = asyncio.ensure_future(self._delete())

    async def _delete(self) -> None:
        try:
            # First, for nobody finds a name by an image that is gone.
            if await self._api.config_map(CONFIG_MAP) is not None:
                await asyncio.to_thread(self._forget)
            self._tell(await _ran("image", "delete", "--json"))
        except (AwayError, RefusedError, ConfigError, WriteBackError) as error:
            self._tell(str(error))
        if self.trouble:
            await asyncio.sleep(AGAIN_SECONDS)

    def _tell(self, text: str) -> None:
        """What went wrong, "" for nothing."""
        trouble = f"the pod VM image could not be deleted: {text}" if text else ""
        if trouble and trouble != self.trouble:
            log.error("%s", trouble)
        self.trouble = trouble
        self.wake()

    def _forget(self) -> None:
        """Take the id out of the ConfigMap, if it was written there by us. Raises WriteBackError, ConfigError."""
        given = values()
        if given is None:
            return
        settings = configuring.read(given)
        if setup.supported(settings):
            with setup.publisher(settings, given) as publisher:
                config_map = WatchedConfigMap(self._api.namespace)
                ConfigMapWriteBack(config_map, publisher.key, publisher.latest_key).written("")

    def close(self) -> None:
        """A deletion that is under way is left to the next leader."""
        if self._deleting is not None:
            self._deleting.cancel()


async def _ran(*arguments: str) -> str:
    """Run a command of ours; what it complained of, "" when it did not."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "caa.cli.main", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, told = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()  # it gives its lease back, and the next leader goes on
    text = told.decode(errors="replace").strip().removeprefix("caa: ")[-500:]
    return (text or f"exit code {process.returncode}") if process.returncode else ""


def seen(images: list[PodVmImage]) -> Image:
    """What a cluster's images come to. Pure."""
    remaining = [one for one in images if one.state in _REMAINING]
    for state, build in (
        (ImageState.BUILDING, Build.RUNNING),
        (ImageState.FAILED, Build.FAILED),
        (ImageState.READY, Build.READY),
    ):
        for one in remaining:
            if one.state is state:
                return Image(build, one.told(), ours=True)
    return Image(ours=bool(remaining))
