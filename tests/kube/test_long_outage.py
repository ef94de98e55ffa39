"""An API server that is away for five minutes, on a clock that the test drives: nothing is lost, with few tries."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from caa.images.image import ImageState, PodVmImage
from caa.kubernetes import configobjects
from caa.kubernetes.api import KubernetesApi
from caa.kubernetes.configobjects import ConfigObjects
from caa.kubernetes.objects import RESOURCE
from caa.kubernetes.reports import LONGEST_WAIT, KubernetesReports
from caa.ledger import Ledger, open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from caa.sandbox import Attempt, AttemptState, Event, SandboxState
from providers.base import Offering, OwnerScope
from tests.clouds.podworld import CLUSTER, NODE
from tests.kube.apiserver import PATIENCE_SECONDS, KubeApiServer, eventually
from tests.kube.test_watched_configuration import CONFIG, SPACE
from tests.unit.test_podevents import sandbox

OUTAGE_SECONDS = 300
# In real time; the loopback needs less to refuse a connection. Slower machines make fewer tries, not others.
REAL_SECONDS = 0.004
# The same where a second is short for what is to be done: all that an outage left, on a machine that does other things.
WORKING_SECONDS = 0.05


class Clock:
    """Whoever sleeps does until the test has let that much time pass."""

    def __init__(self) -> None:
        self.passed = 0.0
        self.slept: list[float] = []
        self._begun = datetime.now(UTC)
        self._asleep: list[tuple[float, int, asyncio.Event]] = []

    def now(self) -> datetime:
        return self._begun + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return self.passed

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        woken = asyncio.Event()
        heapq.heappush(self._asleep, (self.passed + seconds, len(self.slept), woken))
        await woken.wait()

    async def let_pass(self, seconds: float = 1.0, each: float = REAL_SECONDS) -> None:
        until = self.passed + seconds
        while self.passed < until:
            self.passed = min(self.passed + 1.0, until)
            while self._asleep and self._asleep[0][0] <= self.passed:
                heapq.heappop(self._asleep)[2].set()
            await asyncio.sleep(each)

    async def until(self, holds: Callable[[], bool]) -> float:
        """Let time pass until that holds; how much it was."""
        begun, deadline = self.passed, time.monotonic() + PATIENCE_SECONDS
        while not await asyncio.to_thread(holds):
            assert time.monotonic() < deadline
            await self.let_pass(each=WORKING_SECONDS)
        return self.passed - begun


@dataclass
class World:
    """The workers that speak to the API server, and the ledger that the service writes beside them."""

    clock: Clock
    ledger: Ledger
    reports: KubernetesReports
    objects: ConfigObjects

    def starts(self, pod: str) -> None:
        """A sandbox is launched and runs."""
        now = self.clock.now()
        made = replace(sandbox(pod, f"sandbox-{pod}", NODE), cluster=CLUSTER, created_at=now, changed_at=now)
        made = self.ledger.add_sandbox(replace(made, state=SandboxState.CREATED))
        made = self.ledger.save_sandbox(replace(made, state=SandboxState.STARTING))
        offering = Offering("m6a.large", "zone-a", 2, 8192)
        attempt = Attempt(made.id, 1, pod, pod, offering, "ami", b"", AttemptState.INTENDED, now)
        attempt = self.ledger.add_attempt(
            attempt, sandbox_version=made.version, event=self._event(made.id, "LaunchIntended", "m6a.large")
        )
        self.ledger.save_attempt(replace(attempt, state=AttemptState.ACCEPTED, instance_id=f"i-{pod}"))
        self.ledger.save_sandbox(
            replace(made, state=SandboxState.RUNNING), event=self._event(made.id, "Running", "the agent answered")
        )
        self.reports.changed(made.id)

    def ends(self, pod: str) -> None:
        (attempt,) = self.ledger.attempts(f"sandbox-{pod}")
        self.ledger.save_attempt(replace(attempt, state=AttemptState.ENDED))
        made = self.ledger.sandbox(f"sandbox-{pod}")
        assert made is not None
        made = self.ledger.save_sandbox(replace(made, state=SandboxState.STOPPING))
        ended = self._event(made.id, "Ended", "gone")
        self.ledger.save_sandbox(replace(made, state=SandboxState.STOPPED), event=ended)
        self.reports.changed(made.id)

    def refuses_configuration(self) -> None:
        self.ledger.add_event(self._event("", "ConfigurationRefused", "TAGS: is not allowed"))
        self.reports.changed("")

    def image(self, **changes: object) -> None:
        now = self.clock.now()
        image = PodVmImage("image", CLUSTER, "aws/eu", "recipe", ImageState.BUILDING, now, now, total=100)
        self.reports.image_seen(replace(image, **changes))  # type: ignore[arg-type]

    def _event(self, sandbox_id: str, kind: str, message: str) -> Event:
        return Event(sandbox_id, self.clock.now(), kind, message, None, {}, CLUSTER, NODE)


@contextlib.asynccontextmanager
async def working(directory: Path) -> AsyncIterator[World]:
    url = f"sqlite:///{directory / 'ledger.db'}"
    upgrade(url)
    ledger, threads, clock, api = open_ledger(url), LedgerThreads(), Clock(), KubernetesApi()
    objects = ConfigObjects(SPACE)
    reports = KubernetesReports(
        api, ledger, threads, OwnerScope(CLUSTER, NODE), "aws", lambda: 7, clock, objects.reference
    )
    tasks = [asyncio.create_task(one) for one in (reports.run(), objects.run(clock))]
    try:
        yield World(clock, ledger, reports, objects)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await api.close()
        await threads.close()
        ledger.close()


def peer_pods(kube: KubeApiServer) -> dict[str, str]:
    return {one["metadata"]["ownerReferences"][0]["name"]: one["spec"]["instanceID"] for one in kube.peer_pods()}


def test_what_happens_in_five_minutes_without_the_api_server_is_made_up_for_within_ninety_seconds(
    kube: KubeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig()))
    kube.do("namespace", name=SPACE)
    body = {"metadata": {"name": CONFIG}, "data": {"TAGS": "a=b"}}
    kube.do("add", resource="configmaps", namespace=SPACE, body=body)
    for pod in ("stays", "ends", "comes"):
        kube.add_pod(pod)

    async def run() -> None:
        async with working(tmp_path) as world:
            clock = world.clock
            world.starts("stays")
            world.starts("ends")
            await clock.until(lambda: peer_pods(kube) == {"stays": "i-stays", "ends": "i-ends"})
            await clock.until(lambda: kube.capacity(NODE).get(RESOURCE) == "7")
            await clock.until(lambda: world.objects.identity() is not None and kube.do("watching") == 2)

            kube.do("set_down", down=True)
            kube.do("change", resource="configmaps", namespace=SPACE, name=CONFIG, patch={"data": {"TAGS": "c=d"}})
            kube.do("set_status", resource="nodes", name=NODE, status={"capacity": {"cpu": "8"}})
            clock.slept.clear()
            for share in range(5):
                if share:
                    world.image(phase="upload", done=25 * (share - 1))
                else:
                    world.ends("ends")
                    world.starts("comes")
                    world.refuses_configuration()
                    # A start that comes now does not wait.
                    before = clock.passed
                    await world.reports.before_launch(sandbox("later", "later"))
                    assert clock.passed == before
                await clock.let_pass(OUTAGE_SECONDS / 5)
            world.image(state=ImageState.READY, image_id="ami-1")
            # Three that try again with longer and longer waits, and the node's loop, each 10 seconds.
            waits = [seconds for seconds in clock.slept if seconds != 10.0]
            assert len(waits) <= 3 * 24
            assert max(waits) <= LONGEST_WAIT
            assert world.objects.layers()[0].values == {"TAGS": "a=b"}

            kube.do("set_down", down=False)
            took = await clock.until(
                lambda: (
                    peer_pods(kube) == {"stays": "i-stays", "comes": "i-comes"}
                    and kube.reasons("comes") == ["OfferingChosen", "PodVMRunning"]
                    and kube.capacity(NODE).get(RESOURCE) == "7"
                    and world.objects.layers()[0].values == {"TAGS": "c=d"}
                )
            )
            # One wait each, and some time that passes on a busy machine while they work.
            assert took <= 3 * LONGEST_WAIT

    asyncio.run(run())


def test_a_watch_is_begun_anew_from_time_to_time_for_its_link_may_be_dead(
    kube: KubeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig()))
    monkeypatch.setattr(configobjects, "WATCH_SECONDS", 0.05)
    kube.do("namespace", name=SPACE)

    def lists() -> int:
        return sum(call["verb"] == "list" for call in kube.do("called"))

    async def run() -> None:
        objects, clock = ConfigObjects(SPACE), Clock()
        task = asyncio.create_task(objects.run(clock))
        try:
            await clock.until(lambda: lists() >= 6)
            before = objects.identity()
            kube.do("add", resource="configmaps", namespace=SPACE, body={"metadata": {"name": CONFIG}})
            await clock.until(lambda: objects.identity() != before)
            assert clock.slept == []
            # What the server asks for is kept to.
            kube.do("refuse", code=429, resource="configmaps", verb="list", retry_after=20)
            await clock.until(lambda: 20.0 in clock.slept)
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())
    eventually(lambda: kube.do("watching"), lambda seen: seen == 0)
