"""One leader among the controller's replicas, by a Lease of coordination.k8s.io.

As client-go has it: a Lease that did not change for its whole duration, by one's own monotonic clock, is taken over. So
the clocks of machines need not agree. A leader that cannot renew for RENEW_DEADLINE stops before anybody may follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from caa.clock import Clock
from caa.controller.api import ConflictError
from caa.kubernetes.answers import AwayError

log = logging.getLogger(__name__)

# client-go's defaults, in seconds.
DURATION, RENEW_DEADLINE, RETRY = 15.0, 10.0, 2.0


class Leases(Protocol):
    """Where the Lease is: `caa.controller.api.ControllerApi`."""

    namespace: str

    async def lease(self, name: str) -> dict[str, Any] | None:
        """Read it."""
        ...

    async def write_lease(self, body: dict[str, Any]) -> dict[str, Any]:
        """Write it, unless somebody else did."""
        ...


@dataclass(slots=True)
class _Seen:
    """What the Lease was last seen to hold, and since when by our own clock."""

    version: str
    holder: str
    at: float


class Leader:
    """A candidate. `run` does the work while it leads."""

    def __init__(self, leases: Leases, name: str, identity: str, clock: Clock) -> None:
        self._leases = leases
        self._name = name
        self._identity = identity
        self._clock = clock
        self._body: dict[str, Any] | None = None
        self._seen = _Seen("", "", clock.monotonic())
        self._renewed = 0.0

    @property
    def leads(self) -> bool:
        """Whether nobody else may lead now."""
        return self._body is not None and self._clock.monotonic() - self._renewed < RENEW_DEADLINE

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Lead whenever it can be, for ever. The work is cancelled when the lead is lost; what it raises ends this too.

        At the end the Lease is given back.
        """
        try:
            while True:
                await self._acquire()
                log.info("%s leads", self._identity)
                await self._lead(work)
        finally:
            await self._give_back()

    async def _acquire(self) -> None:
        told = ""
        while not await self._try():
            if self._seen.holder != told:
                told = self._seen.holder
                log.info("%s leads, and %s waits", told, self._identity)
            await self._clock.sleep(RETRY)

    async def _lead(self, work: Callable[[], Awaitable[None]]) -> None:
        working = asyncio.ensure_future(work())
        renewing = asyncio.ensure_future(self._renew())
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            for task in (working, renewing):
                task.cancel()
            await asyncio.gather(working, renewing, return_exceptions=True)

    async def _renew(self) -> None:
        """Until the lead is lost."""
        while self.leads:
            await self._clock.sleep(RETRY)
            if not await self._try() and not self.leads:
                log.warning("%s leads no more", self._identity)
                self._body = None

    async def _try(self) -> bool:
        """Take or renew the Lease; whether that was done."""
        now = self._clock.monotonic()
        try:
            found = await self._leases.lease(self._name)
            if not self._free(found, now):
                self._body = None
                return False
            self._body = await self._leases.write_lease(self._claim(found))
        except ConflictError:
            return False
        except AwayError as error:
            log.info("the Lease %s: %s", self._name, error)
            return False
        self._renewed = now
        return True

    def _free(self, found: dict[str, Any] | None, now: float) -> bool:
        spec = (found or {}).get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        version = (found or {"metadata": {}})["metadata"].get("resourceVersion", "")
        if version != self._seen.version:
            self._seen = _Seen(version, holder, now)
        expired = now - self._seen.at > float(spec.get("leaseDurationSeconds") or DURATION)
        return holder in ("", self._identity) or expired

    def _claim(self, found: dict[str, Any] | None) -> dict[str, Any]:
        spec = (found or {}).get("spec") or {}
        now = self._clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        ours = spec.get("holderIdentity") == self._identity
        metadata = (found or {}).get("metadata") or {"name": self._name, "namespace": self._leases.namespace}
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(DURATION),
                "acquireTime": spec.get("acquireTime", now) if ours else now,
                "renewTime": now,
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (not ours and bool(found)),
            },
        }

    async def _give_back(self) -> None:
        """So that another need not wait for its expiry."""
        if self._body is not None:
            body = {**self._body, "spec": {**self._body["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}}
            self._body = None
            with contextlib.suppress(Exception):
                async with asyncio.timeout(RETRY):
                    await self._leases.write_lease(body)
