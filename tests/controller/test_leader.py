"""One leader, by a Lease, on a clock of the test's."""

from __future__ import annotations

import asyncio
import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from caa.controller.api import ConflictError
from caa.controller.leader import DURATION, RENEW_DEADLINE, RETRY, Leader
from caa.kubernetes.answers import AwayError

START = datetime(2026, 1, 1, tzinfo=UTC)


class Time:
    """All replicas' clock: moves when everybody waits."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def now(self) -> datetime:
        return START + timedelta(seconds=self.seconds)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        self._sleepers.append((self.seconds + seconds, woken))
        await woken.wait()

    async def advance(self, seconds: float) -> None:
        until = self.seconds + seconds
        await settle()
        while (due := min((at for at, _ in self._sleepers), default=until + 1)) <= until:
            self.seconds = due
            for at, woken in [one for one in self._sleepers if one[0] <= due]:
                self._sleepers.remove((at, woken))
                woken.set()
            await settle()
        self.seconds = until


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


class Store:
    """A Lease behind an API server, as far as a candidate sees of it."""

    namespace = "here"

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.version = 0
        self.away = False

    async def lease(self, name: str) -> dict[str, Any] | None:
        if self.away:
            raise AwayError("away")
        await asyncio.sleep(0)
        return copy.deepcopy(self.body)

    async def write_lease(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.away:
            raise AwayError("away")
        found = self.body["metadata"]["resourceVersion"] if self.body else None
        if body["metadata"].get("resourceVersion") != found:
            raise ConflictError("another was faster")
        self.version += 1
        self.body = copy.deepcopy(body)
        self.body["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.body)


class Replica:
    def __init__(self, store: Store, name: str, time: Time) -> None:
        self.leader = Leader(store, "caa-controller", name, time)
        self.works = False
        self.task = asyncio.ensure_future(self.leader.run(self._work))

    async def _work(self) -> None:
        self.works = True
        try:
            await asyncio.Event().wait()
        finally:
            self.works = False

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


def test_of_three_that_begin_at_once_one_leads_and_keeps_it() -> None:
    async def run() -> None:
        time, store = Time(), Store()
        replicas = [Replica(store, name, time) for name in "abc"]
        leading = None
        for _ in range(60):
            await time.advance(1)
            works = [one for one in replicas if one.works]
            assert len(works) == 1
            assert leading in (None, works[0])
            leading = works[0]
        for one in replicas:
            await one.stop()

    asyncio.run(run())


def test_one_that_stops_is_followed_at_the_next_look() -> None:
    async def run() -> None:
        time, store = Time(), Store()
        first = Replica(store, "a", time)
        await time.advance(1)
        second = Replica(store, "b", time)
        await time.advance(5)
        assert (first.works, second.works) == (True, False)
        await first.stop()
        await time.advance(RETRY)
        assert second.works
        await second.stop()

    asyncio.run(run())


def test_one_that_hears_nothing_stops_before_another_one_begins() -> None:
    async def run() -> None:
        time, theirs, ours = Time(), Store(), Store()
        first = Replica(ours, "a", time)
        await time.advance(1)
        theirs.body, theirs.version = ours.body, ours.version
        second = Replica(theirs, "b", time)
        await time.advance(1)
        ours.away = True  # from now on only the second one hears the API server
        lost = taken = 0.0
        for _ in range(40):
            await time.advance(0.5)
            assert not (first.works and second.works)
            lost = lost or (0.0 if first.works else time.seconds)
            taken = taken or (time.seconds if second.works else 0.0)
        assert lost <= RENEW_DEADLINE + 2 * RETRY
        assert lost < taken <= DURATION + 2 * RETRY + 2
        assert not first.leader.leads
        await first.stop()
        await second.stop()

    asyncio.run(run())


def test_an_api_server_that_is_away_for_five_minutes_costs_the_lead_and_gives_it_back() -> None:
    async def run() -> None:
        time, store = Time(), Store()
        replica = Replica(store, "a", time)
        await time.advance(3)
        store.away = True
        await time.advance(300)
        assert not replica.works
        store.away = False
        await time.advance(RETRY)
        assert replica.works
        await replica.stop()

    asyncio.run(run())
