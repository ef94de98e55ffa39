"""The real service on the emulated EC2 and its guests, the fault proxy between: the harness carries a whole pod."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from caa.sizing import MACHINE_TYPE
from caa.ttrpc.frames import StatusError
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import Exchange, Fault, FaultProxy, Phase
from tests.clouds.podworld import LAUNCHES, TYPE, alive, pod_service
from tests.lab.service import ServiceProcess, new_id

# The provider takes an instance for never made only after lists were without it for 30 s; it asks ever more seldom.
SETTLED_SECONDS = 180


@pytest.fixture
def service(account: Account, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    with pod_service(account, proxy.url) as service:
        yield service


def test_a_pod_starts_runs_and_stops(account: Account, service: ServiceProcess) -> None:
    account.emulator.delays(pending=0.3, boot=0.2)
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "web")
    service.start_vm(sandbox_id)
    assert service.sandbox(sandbox_id)["state"] == "running"
    assert len(alive(account)) == 1
    service.stop_vm(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, SETTLED_SECONDS)
    assert not alive(account)
    assert account.emulator.counters()["interfaces"] == 0


def test_the_pods_metadata_is_what_ec2_says_of_its_instance(account: Account, service: ServiceProcess) -> None:
    sandbox_id = new_id()
    service.create(sandbox_id, "web")
    instance = service.start_sandbox(sandbox_id)["instance"]
    with service.rest() as client:
        answers = client.get(f"/v1/sandboxes/{sandbox_id}/metadata").json()["answers"]
    assert answers["/latest/meta-data/instance-id"] == instance["id"]
    assert answers["/latest/meta-data/ami-id"] == account.seed.images["x86_64"]
    assert answers["/latest/meta-data/placement/availability-zone"] == instance["zone"]
    mac = answers["/latest/meta-data/mac"]
    card = f"/latest/meta-data/network/interfaces/macs/{mac}"
    assert answers[f"{card}/subnet-id"] in account.seed.subnets.values()
    assert account.seed.security_group in answers[f"{card}/security-group-ids"]
    document = json.loads(answers["/latest/dynamic/instance-identity/document"])
    assert (document["instanceId"], document["region"]) == (instance["id"], instance["zone"][:-1])
    assert "user-data" not in str(list(answers))


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE])
def test_a_lost_reply_of_the_launch_leaves_one_instance(
    account: Account, proxy: FaultProxy, service: ServiceProcess, fault: Fault
) -> None:
    proxy.add(fault, Phase.AFTER, body=LAUNCHES)
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "web")
    service.start_vm(sandbox_id)
    assert len(alive(account)) == 1
    assert list(account.emulator.counters()["tokens"].values()) == [list(alive(account))]
    service.stop_vm(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, SETTLED_SECONDS)


@pytest.mark.parametrize(("phase", "launched"), [(Phase.BEFORE, 0), (Phase.AFTER, 1), (Phase.DONE, 1)])
def test_a_service_killed_around_the_launch_leaves_nothing_behind(
    account: Account, proxy: FaultProxy, service: ServiceProcess, phase: Phase, launched: int
) -> None:
    def kill(_: Exchange) -> None:
        service.kill()

    account.emulator.delays(boot=5)  # before that no start is over, however late the kill comes
    rule = proxy.add(Fault.CALL, phase, body=LAUNCHES, call=kill)
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "web")
    with pytest.raises((OSError, StatusError)):
        service.start_vm(sandbox_id)
    assert rule.fired == 1
    assert len(alive(account)) == launched
    service.start()
    service.wait_ready()
    # Its caller is gone, so the service reaps it.
    service.wait_for_state(sandbox_id, {"stopped", "failed"}, SETTLED_SECONDS)
    assert not alive(account)
    assert all(len(ids) == 1 for ids in account.emulator.counters()["tokens"].values())


def test_a_launch_under_way_is_finished_whatever_is_configured_after_the_restart(
    account: Account, proxy: FaultProxy, service: ServiceProcess
) -> None:
    proxy.add(Fault.CALL, Phase.AFTER, body=LAUNCHES, call=lambda _: service.kill())
    sandbox_id = new_id()
    service.create(sandbox_id, "web", {MACHINE_TYPE: TYPE})
    with pytest.raises(httpx.TransportError):
        service.begin_start(sandbox_id)
    made = alive(account)
    assert len(made) == 1
    service.environ["PODVM_INSTANCE_TYPE"] = "c6a.xlarge"  # the only one then, so the pod's own is refused by now
    service.start()
    service.wait_ready()
    assert service.start_sandbox(sandbox_id)["state"] == "running"
    assert alive(account) == made
