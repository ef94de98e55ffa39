"""The node's resource, kept by the real worker on a clock that the test turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from caa.kubernetes.api import KubernetesApi
from caa.kubernetes.objects import RESOURCE
from caa.kubernetes.reports import NODE_SECONDS, KubernetesReports
from caa.ledger import open_ledger, upgrade
from caa.ledgerthreads import LedgerThreads
from providers.base import OwnerScope
from tests.clouds.podworld import CLUSTER, NODE
from tests.kube.apiserver import KubeApiServer

OTHERS = {"cpu": "8", "memory": "32Gi"}


class Clock:
    """Stands still; `turn` is until whoever sleeps has worked and sleeps again."""

    def __init__(self) -> None:
        self._asleep: asyncio.Queue[float] = asyncio.Queue()
        self._wake: asyncio.Queue[None] = asyncio.Queue()

    def now(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self._asleep.put_nowait(seconds)
        await self._wake.get()

    async def turn(self) -> None:
        self._wake.put_nowait(None)
        assert await self._asleep.get() == NODE_SECONDS

    async def first(self) -> None:
        assert await self._asleep.get() == NODE_SECONDS


@contextlib.asynccontextmanager
async def working(directory: Path, limit: Callable[[], int]) -> AsyncIterator[Clock]:
    """A worker after its first look at the node."""
    url = f"sqlite:///{directory / 'ledger.db'}"
    upgrade(url)
    ledger, threads, clock, api = open_ledger(url), LedgerThreads(), Clock(), KubernetesApi()
    reports = KubernetesReports(api, ledger, threads, OwnerScope(CLUSTER, NODE), cloud="aws", limit=limit, clock=clock)
    task = asyncio.create_task(reports.run())
    try:
        await clock.first()
        yield clock
    finally:
        task.cancel()
        await asyncio.wait([task])
        await api.close()
        await threads.close()
        ledger.close()


def test_the_resource_is_repaired_follows_the_limit_and_leaves_the_others_alone(
    kube: KubeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kube.environ()["KUBECONFIG"])
    limits = [7]

    async def run() -> None:
        async with working(tmp_path, lambda: limits[0]) as clock:
            assert kube.capacity(NODE) == {**OTHERS, RESOURCE: "7"}
            # A kubelet that registers anew writes what it knows.
            kube.do("set_status", resource="nodes", namespace="", name=NODE, status={"capacity": {"cpu": "9"}})
            await clock.turn()
            assert kube.capacity(NODE) == {"cpu": "9", RESOURCE: "7"}
            patches = [call for call in kube.do("called") if call["verb"] == "patch"]
            await clock.turn()
            assert [call for call in kube.do("called") if call["verb"] == "patch"] == patches
            limits[0] = 3
            await clock.turn()
            assert kube.capacity(NODE) == {"cpu": "9", RESOURCE: "3"}
            limits[0] = -1
            await clock.turn()
            assert kube.capacity(NODE) == {"cpu": "9"}

    asyncio.run(run())


def test_a_node_that_is_not_to_be_reached_or_not_there_is_looked_at_again(
    kube: KubeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kube.environ()["KUBECONFIG"])
    for code in (403, 404, 429, 500):
        kube.do("refuse", code=code, resource="nodes", times=1)

    async def run() -> None:
        async with working(tmp_path, lambda: 7) as clock:
            for _ in range(3):
                assert kube.capacity(NODE) == OTHERS
                await clock.turn()
            await clock.turn()
            assert kube.capacity(NODE) == {**OTHERS, RESOURCE: "7"}

    asyncio.run(run())


def test_without_a_limit_nothing_is_advertised(
    kube: KubeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", kube.environ()["KUBECONFIG"])

    async def run() -> None:
        async with working(tmp_path, lambda: -1) as clock:
            await clock.turn()
            assert kube.capacity(NODE) == OTHERS

    asyncio.run(run())
