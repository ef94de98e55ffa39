"""The cloud's descriptions of instances, kept for a while: pods ask often, and the cloud's calls are few."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from caa.clock import Clock
from caa.errors import UnavailableError
from providers.base import ProviderError

log = logging.getLogger(__name__)

# Of what may change while a VM runs there is its public address, its groups and its tags.
GOOD_SECONDS = 600.0
# While the cloud does not say, the ledger's word has to do, and the cloud is not asked more often than this.
RETRY_SECONDS = 30.0
# SDKs give up after a second; until the cloud has answered they get what the ledger knows.
PATIENCE_SECONDS = 0.7
# Starts wait for calls of the same class; after a restart a node's hundreds of pods must not all be before them.
AT_ONCE = 2

Describe = Callable[[str], Awaitable[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class _Known:
    description: Mapping[str, Any]
    good_until: float


class Descriptions:
    """Of instances by their id."""

    def __init__(self, describe: Describe, clock: Clock) -> None:
        self._describe = describe
        self._clock = clock
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def get(self, instance_id: str) -> Mapping[str, Any]:
        """The newest one known; empty when there is none yet and the cloud takes its time."""
        known = self._known.get(instance_id)
        if known is None or known.good_until <= self._clock.monotonic():
            task = self._asking.get(instance_id)
            if task is None:
                task = self._asking[instance_id] = asyncio.create_task(self._ask(instance_id))
                task.add_done_callback(lambda _: self._asking.pop(instance_id, None))
            if known is None:
                await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
                known = self._known.get(instance_id)
        return known.description if known else {}

    def close(self) -> None:
        """Ask no more."""
        for task in self._asking.values():
            task.cancel()

    async def _ask(self, instance_id: str) -> None:
        known = self._known.get(instance_id)
        try:
            async with self._slots:
                description, seconds = await self._describe(instance_id), GOOD_SECONDS
        except (ProviderError, UnavailableError) as error:
            log.warning(
                "instance %s cannot be described now; its pod sees what the ledger knows: %s", instance_id, error
            )
            description, seconds = known.description if known else {}, RETRY_SECONDS
        now = self._clock.monotonic()
        self._known = {one: value for one, value in self._known.items() if value.good_until + GOOD_SECONDS > now}
        self._known[instance_id] = _Known(description, now + seconds)
