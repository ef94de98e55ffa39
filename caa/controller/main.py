"""`caa controller` from its start to SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from caa.clock import Clock, SystemClock
from caa.controller.api import ControllerApi
from caa.controller.cloudconfig import cloud
from caa.controller.images import LedgerImages
from caa.controller.leader import Leader
from caa.controller.objects import daemon_sets
from caa.controller.rounds import Rounds
from caa.controller.sharedledger import SharedLedger
from caa.controller.sweeping import Sweeper
from caa.controller.watches import watch
from caa.kubernetes.answers import ABSENT, AwayError, RefusedError
from providers.base import ConfigError, Problem

log = logging.getLogger(__name__)

LEASE = "caa-controller"
# Between looks whether the definition of KataConfig is installed.
DEFINITION_SECONDS = 2.0


async def run(namespace: str | None, image: str, manifests: Path, grace: timedelta) -> None:
    """`image` "" is that of this container. `grace` is how long a node is gone before its VMs are ended.

    Raises ConfigError when it cannot begin, and RefusedError when the API server refuses the Lease."""
    clock = SystemClock()
    async with _api(namespace) as api:
        wanted = daemon_sets(manifests, api.namespace, image or await _own_image(api, clock))
        leader = Leader(api, LEASE, f"{socket.gethostname()}-{uuid.uuid4()}", clock)
        leading = asyncio.ensure_future(leader.run(lambda: _work(api, wanted, grace, clock, leader)))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, leading.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await leading


@contextlib.asynccontextmanager
async def _api(namespace: str | None) -> AsyncIterator[ControllerApi]:
    api = ControllerApi(namespace)
    try:
        yield api
    finally:
        await api.close()


async def _work(
    api: ControllerApi,
    wanted: dict[str, dict[str, Any]],
    grace: timedelta,
    clock: Clock,
    leader: Leader,
) -> None:
    """What the leader does, for ever."""
    await _defined(api, clock)
    ledger = SharedLedger()
    images = LedgerImages(api, ledger)
    rounds = Rounds(api, wanted, images, clock, lambda: leader.leads)
    images.wake = rounds.wake
    sweeper = Sweeper(api, cloud, ledger, clock, lambda: leader.leads, grace)
    parts = (watch(api.namespace, rounds.wake, clock), rounds.run(), sweeper.run())
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        images.close()
        ledger.close()


async def _own_image(api: ControllerApi, clock: Clock) -> str:
    """What this container runs, for nodes to run the same. Raises ConfigError when this is no Pod of the namespace."""
    pod = os.environ.get("HOSTNAME", "").strip() or socket.gethostname()
    while True:
        try:
            image = await api.image_of(pod)
            break
        except AwayError as error:
            log.warning("waiting for the API server: %s", error)
        await clock.sleep(DEFINITION_SECONDS)
    if not image:
        text = f"'' is not allowed where {api.namespace}/{pod} is no Pod: must be the image that nodes are to run"
        raise ConfigError([Problem("CAA_IMAGE", text)])
    return image


async def _defined(api: ControllerApi, clock: Clock) -> None:
    """Wait for the definition of KataConfig: kopf looks for it once, when it begins."""
    told = False
    while True:
        try:
            await api.kata_configs()
            return
        except RefusedError as error:
            if error.status != ABSENT:
                raise
            if not told:
                log.warning("there is no definition of KataConfig; waiting for docker/kubernetes/controller")
                told = True
        except AwayError as error:
            log.warning("waiting for the API server: %s", error)
        await clock.sleep(DEFINITION_SECONDS)
