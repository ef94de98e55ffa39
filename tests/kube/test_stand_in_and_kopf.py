"""The API server's stand-in is one that an operator of kopf runs against, through all that may happen to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest

from tests.kube.apiserver import KubeApiServer, eventually
from tests.kube.test_stand_in import DEFINITION

GROUP = ("example.org", "v1", "configs")


def operator() -> kopf.OperatorRegistry:
    """Doubles a number in the spec, and has a finalizer."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(kopf.login_with_kubeconfig)

    @kopf.on.startup(registry=registry)
    def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.networking.error_backoffs = [0.1] * 100
        settings.watching.reconnect_backoff = 0.05

    @kopf.on.create(*GROUP, registry=registry)
    @kopf.on.update(*GROUP, registry=registry)
    def doubled(spec: kopf.Spec, patch: kopf.Patch, **_: Any) -> None:
        patch.status["doubled"] = 2 * spec["count"]

    @kopf.on.delete(*GROUP, registry=registry)
    def deleted(**_: Any) -> None:
        pass

    return registry


@contextlib.asynccontextmanager
async def running(registry: kopf.OperatorRegistry) -> AsyncIterator[None]:
    stop, ready = asyncio.Event(), asyncio.Event()
    task = asyncio.create_task(
        kopf.operator(registry=registry, standalone=True, clusterwide=True, stop_flag=stop, ready_flag=ready)
    )
    try:
        async with asyncio.timeout(30):
            await ready.wait()
        yield
    finally:
        stop.set()
        await task


def test_an_operator_sees_every_change_through_broken_watches_a_lost_history_and_an_outage(
    kube: KubeApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig()))
    kube.do("define", definition=DEFINITION)
    kube.do("add", resource="configs", body={"metadata": {"name": "one"}, "spec": {"count": 1}})

    def doubled() -> Any:
        (found,) = kube.do("listed", resource="configs")
        return found.get("status", {}).get("doubled")

    async def becomes(count: int) -> None:
        kube.do("change", resource="configs", name="one", patch={"spec": {"count": count}})
        await asyncio.to_thread(eventually, doubled, lambda seen: seen == 2 * count)

    async def run() -> None:
        async with running(operator()):
            await asyncio.to_thread(eventually, doubled, lambda seen: seen == 2)
            await becomes(2)
            kube.do("break_watches")
            await becomes(3)
            kube.do("expire")
            kube.do("break_watches", how="close")
            await becomes(4)
            kube.do("refuse", code=429, times=3, retry_after=0)
            await becomes(5)
            kube.do("set_down", down=True)
            kube.do("change", resource="configs", name="one", patch={"spec": {"count": 6}})
            kube.do("set_down", down=False)
            await asyncio.to_thread(eventually, doubled, lambda seen: seen == 12)
            kube.do("remove", resource="configs", name="one")
            await asyncio.to_thread(eventually, lambda: kube.do("listed", resource="configs"), lambda seen: not seen)

    asyncio.run(run())
