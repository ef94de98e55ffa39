"""VMs of nodes that are gone, on the emulated EC2 and the API server's stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from caa.controller.api import ControllerApi
from caa.controller.sharedledger import SharedLedger
from caa.controller.sweeping import RECORD, Sweeper
from caa.kubernetes.objects import NODE_LABEL, node_label, peer_pod
from caa.ledger import open_ledger
from caa.sandbox import AttemptState, SandboxState
from providers.aws.provider import AwsProvider
from tests.clouds.aws.account import Account
from tests.clouds.aws_lab import Lab
from tests.clouds.conftest import postgresql, postgresql_ledger
from tests.clouds.podworld import service_environ
from tests.controller.cluster import NAMESPACE, SWEEPING, Cluster, called, not_allowed, rules
from tests.kube.apiserver import KubeApiServer, eventually
from tests.ledger.samples import attempt, starting
from tests.unit.test_podevents import sandbox

__all__ = ["postgresql", "postgresql_ledger"]

GRACE = timedelta(minutes=10)
LABEL = {"node-role.kubernetes.io/kata-oc": ""}


@pytest.fixture
def lab(account: Account, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    made = Lab(account, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def cluster(api_server: KubeApiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(api_server, workers=0)
    monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig()))
    yield made
    made.close()


class Clock:
    """Only the test moves it."""

    def __init__(self, now: datetime) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody waits here")


def launch(lab: Lab, provider: AwsProvider, cluster: str, node: str) -> str:
    request = lab.request()
    owner = replace(request.owner, cluster=cluster, node=node)
    return provider.launch(replace(request, owner=owner)).id


def sweep(lab: Lab, clock: Clock) -> list[str]:
    async def run() -> list[str]:
        api, ledger = ControllerApi(NAMESPACE), SharedLedger()
        try:
            return await Sweeper(api, lambda: ("prod", lab.provider()), ledger, clock, grace=GRACE).sweep()
        finally:
            ledger.close()
            await api.close()

    return asyncio.run(run())


def add_peer_pod(kube: KubeApiServer, cluster: str, node: str) -> None:
    """Whose Pod is gone, so that only the finalizer keeps it."""
    written = peer_pod(sandbox(), kube.add_pod("web"), "aws", "i-1")
    written["metadata"]["labels"][NODE_LABEL] = node_label(cluster, node)
    kube.do("add", resource="peerpods", namespace="default", body=written)
    kube.do("remove", resource="pods", namespace="default", name="web")


def test_vms_of_a_node_that_is_gone_are_ended_and_no_others(lab: Lab, cluster: Cluster) -> None:
    kube, provider = cluster.kube, lab.provider()
    cluster.add_node("gone", **LABEL)
    cluster.add_node("there", **LABEL)
    # By its owner, a VM of each kind: of the node that goes, of one that stays, of another cluster, of an unknown node.
    orphan = launch(lab, provider, "prod", "gone")
    others = [launch(lab, provider, *owner) for owner in (("prod", "there"), ("test", "gone"), ("prod", "unknown"))]
    others.append(lab.account.launch())
    add_peer_pod(kube, "prod", "gone")
    made = lab.account.one(orphan)["LaunchTime"]
    clock = Clock(made)
    assert sweep(lab, clock) == []
    kube.do("remove", resource="nodes", name="gone")
    assert sweep(lab, clock) == []
    clock.time = made + GRACE - timedelta(seconds=1)
    assert sweep(lab, clock) == []
    clock.time = made + GRACE
    assert sweep(lab, clock) == [orphan]
    assert lab.account.state(orphan) == "terminated"
    assert [lab.account.state(one) for one in others] == ["running"] * 4
    assert sweep(lab, clock) == []
    assert kube.peer_pods() == []
    assert record(kube) == ["there"]


def test_a_vm_younger_than_the_grace_time_is_left_alone_and_the_peer_pods_with_it(lab: Lab, cluster: Cluster) -> None:
    kube, provider = cluster.kube, lab.provider()
    young = launch(lab, provider, "prod", "gone")
    add_peer_pod(kube, "prod", "gone")
    made = lab.account.one(young)["LaunchTime"]
    long_ago = {"gone": (made - 2 * GRACE).isoformat()}
    kube.do("add", resource="configmaps", namespace=NAMESPACE, body={"metadata": {"name": RECORD}, "data": long_ago})
    clock = Clock(made + GRACE - timedelta(seconds=1))
    assert sweep(lab, clock) == []
    assert lab.account.state(young) == "running"
    assert kube.peer_pods()
    clock.time = made + GRACE
    assert sweep(lab, clock) == [young]


def test_a_shared_ledger_says_that_the_sandboxes_of_the_node_are_over(
    lab: Lab, cluster: Cluster, postgresql_ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, provider = cluster.kube, lab.provider()
    for key, value in service_environ(lab.account, CAA_CLUSTER_ID="prod", CAA_LEDGER_URL=postgresql_ledger).items():
        monkeypatch.setenv(key, value)
    ledger = open_ledger(postgresql_ledger)
    try:
        for number, node in enumerate(("gone", "there")):
            started = starting(ledger, f"sb-{number}", cluster="prod", node=node, netns_path=f"/run/netns/{number}")
            ledger.add_attempt(attempt(started.id), sandbox_version=started.version)
        orphan = launch(lab, provider, "prod", "gone")
        made = lab.account.one(orphan)["LaunchTime"]
        since = {"gone": (made - GRACE).isoformat(), "there": ""}
        kube.do("add", resource="configmaps", namespace=NAMESPACE, body={"metadata": {"name": RECORD}, "data": since})
        cluster.add_node("there", **LABEL)
        clock = Clock(made + GRACE)
        assert sweep(lab, clock) == [orphan]
        before = ledger.sandbox("sb-0")
        assert before is not None
        assert before.state is SandboxState.STARTING, "not before its VM is gone"
        assert sweep(lab, clock) == []
        over, alive = ledger.sandbox("sb-0"), ledger.sandbox("sb-1")
        assert over is not None
        assert alive is not None
        assert (over.state, over.failure_reason) == (SandboxState.FAILED, "NodeGone")
        assert [one.state for one in ledger.attempts("sb-0")] == [AttemptState.ENDED]
        assert [one.kind for one in ledger.events("sb-0")][-2:] == ["NodeGone", "Ended"]
        assert alive.state is SandboxState.STARTING
    finally:
        ledger.close()


def record(kube: KubeApiServer) -> list[str]:
    (found,) = [one for one in kube.do("listed", resource="configmaps") if one["metadata"]["name"] == RECORD]
    return list(found["data"])


def test_the_controller_sweeps_and_needs_a_name_of_the_cluster_for_it(lab: Lab, cluster: Cluster) -> None:
    kube, provider = cluster.kube, lab.provider()
    kube.do("allow_only", rules=rules())
    young = launch(lab, provider, "emulated", "gone")
    add_peer_pod(kube, "emulated", "empty")
    since = dict.fromkeys(("empty", "gone"), "2026-01-01T00:00:00+00:00")
    kube.do("add", resource="configmaps", namespace=NAMESPACE, body={"metadata": {"name": RECORD}, "data": since})
    environ = lab.account.emulator.environ() | service_environ(lab.account)
    without = cluster.controller(**{**environ, "CAA_CLUSTER_ID": ""})
    eventually(without.log, lambda text: "must name this cluster alone" in text)
    without.stop()
    assert len(kube.peer_pods()) == 1
    cluster.controller(**environ)
    eventually(lambda: record(kube), lambda seen: seen == ["gone"])
    assert kube.peer_pods() == []
    assert lab.account.state(young) == "running"
    assert called(kube) >= SWEEPING
    assert not_allowed(kube) == []
