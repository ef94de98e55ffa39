"""Takes over a changed ConfigMap or Secret while the service runs, whole or not at all.

The directories, or what the API server told of the two objects, are looked at every second. What changed is checked
like a configuration at start, the cloud asked included. If all of it is right, the next start uses it; if anything is
wrong, nothing of it applies, and log and status name the keys. Keys that need a restart keep their values until there
is one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from caa import configuring
from caa.errors import UnavailableError
from caa.knownkeys import suspects
from caa.logs import set_up_logging
from caa.node import Node
from caa.settings import Settings
from caa.sources import Identity, Merged, Sources
from providers.base import ConfigError, Problem, ProviderError

log = logging.getLogger(__name__)

# Kubernetes brings a changed object to a node within a minute or so; a second more is nothing.
POLL_SECONDS = 1.0
# What was refused may be right later without a change: an image that becomes available, a right that is granted.
RETRY_SECONDS = 60.0
# A cloud or a ledger that could not answer may do so soon.
BUSY_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Refused:
    """A change that was not taken over."""

    at: datetime
    keys: tuple[str, ...]
    """What it would have changed; empty when it could not be read."""
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Status:
    """Which configuration applies. `generation` counts from 1 when the service starts."""

    generation: int
    since: datetime
    directories: tuple[str, ...]
    restart_needed: tuple[str, ...] = ()
    """Keys that differ from what the service runs with, and wait for a restart."""
    warnings: tuple[str, ...] = ()
    refused: Refused | None = None
    """The change that is there now and does not apply; None when all applies."""
    last_refused: Refused | None = None
    """The newest change that was refused, also when it is gone meanwhile."""


class Reload:
    """The configuration of a running service. `merged` is what it was started with."""

    def __init__(
        self,
        sources: Sources,
        merged: Merged,
        node: Node,
        make: Callable[[Mapping[str, str]], configuring.Configured] = configuring.build,
        overlay: Callable[[Mapping[str, str]], Mapping[str, str]] = lambda values: values,
    ) -> None:
        self._sources = sources
        self._node = node
        self._make = make
        self._overlay = overlay
        self._considering = asyncio.Lock()
        self._started_with = overlay(merged.values)
        self._running = self._started_with
        self._kept = configuring.restart_keys(node.current.settings.cloud_provider)
        self._known = configuring.known_names()
        # Not what the directories are now: they may have changed since they were read.
        self._looked: Identity | None = None
        self._look_again_at: float | None = None
        self._status = Status(1, node.clock.now(), sources.places, warnings=self._warnings(merged))
        _tell(self._status.warnings)

    @property
    def status(self) -> Status:
        """As of now."""
        return self._status

    async def run(self) -> None:
        """Look for changes, for ever. Returns at once when there is nothing that can change."""
        while self._sources.places:
            try:
                await self.look()
            except Exception:  # a defect here must not end the service, nor go unseen
                log.exception("the changed configuration could not be looked at")
            await self._node.clock.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Take over what changed since the last look, if anything did."""
        identity, now = await asyncio.to_thread(self._sources.identity), self._node.clock.monotonic()
        due = self._look_again_at is not None and now >= self._look_again_at
        if identity == self._looked and not due:
            return
        self._looked, self._look_again_at = identity, None
        try:
            merged = await asyncio.to_thread(self._sources.read)
        except ConfigError as error:
            await self._refuse((), error.problems, RETRY_SECONDS)
            return
        await self._consider(merged)

    async def take_over(self) -> bool:
        """The overlay changed. Whether it applies now; if not, the status says why."""
        await self._consider(await asyncio.to_thread(self._sources.read))
        return self._status.refused is None

    async def _consider(self, merged: Merged) -> None:
        async with self._considering:
            await self._consider_alone(merged)

    async def _consider_alone(self, merged: Merged) -> None:
        warnings = self._warnings(merged)
        wanted = self._overlay(merged.values)
        _tell(one for one in warnings if one not in self._status.warnings)
        effective, waiting = configuring.keep(self._started_with, wanted, self._kept)
        changed = configuring.differing(self._running, effective, self._known)
        self._status = replace(self._status, warnings=warnings)
        if not changed and not waiting:
            self._accept(waiting)
            return
        try:
            # All of it, also what waits for a restart: that must not fail then.
            await asyncio.to_thread(configuring.read, wanted)
            if changed:
                await self._take_over(effective)
        except ConfigError as error:
            await self._refuse((*changed, *waiting), merged.hidden(error.problems), RETRY_SECONDS)
        except (ProviderError, UnavailableError) as error:
            problem = Problem("", f"it cannot be checked now: {error}")
            await self._refuse((*changed, *waiting), [problem], BUSY_SECONDS)
        else:
            if changed:
                self._status = replace(
                    self._status, generation=self._status.generation + 1, since=self._node.clock.now()
                )
            self._accept(waiting)  # in the same moment, so that nobody sees the one without the other
            if changed:
                log.info("configuration %d applies from now on: %s", self._status.generation, _changes(changed))
                await self._record("ConfigurationApplied", _changes(changed), changed)

    async def _take_over(self, effective: Mapping[str, str]) -> None:
        """Check it against the cloud and exchange. Raises ConfigError, ProviderError, UnavailableError."""
        made = await asyncio.to_thread(self._make, effective)
        try:
            problems = await self._node.cloud.examine(made.provider)
            if problems:
                raise ConfigError(problems)
        except BaseException:
            await asyncio.to_thread(made.provider.close)
            raise
        _set_up_logging(self._node.current.settings, made.settings)
        self._node.reconfigure(made.settings, made.provider)
        self._running = effective

    def _accept(self, waiting: list[str]) -> None:
        if waiting and tuple(waiting) != self._status.restart_needed:
            log.warning("changed keys that apply only after a restart of the service: %s", ", ".join(waiting))
        self._status = replace(self._status, restart_needed=tuple(waiting), refused=None)

    async def _refuse(self, keys: tuple[str, ...], problems: Iterable[Problem], again_after: float) -> None:
        self._look_again_at = self._node.clock.monotonic() + again_after
        refused = Refused(self._node.clock.now(), keys, tuple(problems))
        before = self._status.refused
        self._status = replace(self._status, refused=refused, last_refused=refused)
        if before is None or before.problems != refused.problems:
            log.error("the changed configuration is refused, and the one before still applies:")
            told = list(configuring.lines(refused.problems))
            for line in told:
                log.error("%s", line)
            await self._record("ConfigurationRefused", "; ".join(told), keys)

    async def _record(self, kind: str, message: str, keys: Iterable[str]) -> None:
        """An event of the node. What applies or not is settled already, with or without a ledger."""
        try:
            await self._node.record("", kind, message, keys=",".join(keys), generation=self._status.generation)
        except UnavailableError as error:
            log.warning("%s is in no event: %s", kind, error)

    def _warnings(self, merged: Merged) -> tuple[str, ...]:
        return tuple(map(str, suspects(merged.sources, self._known)))


def _changes(keys: list[str]) -> str:
    return ", ".join(keys) + " changed"


def _set_up_logging(before: Settings, after: Settings) -> None:
    if (before.log_format, before.log_level) != (after.log_format, after.log_level):
        set_up_logging(after.log_format, after.log_level)


def _tell(warnings: Iterable[str]) -> None:
    for warning in warnings:
        log.warning("%s", warning)
