"""The real service on the emulated EC2 and its guests, the fault proxy between: the harness carries a whole pod."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from caa.ttrpc.frames import StatusError
from tests.clouds.aws.account import Account
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import Exchange, Fault, FaultProxy, Phase
from tests.lab.service import ServiceProcess, new_id

RUN = "Action=RunInstances(?!.*DryRun=true)"
# The provider takes an instance for never made only after lists were without it for 30 s; it asks ever more seldom.
SETTLED_SECONDS = 75


@pytest.fixture
def proxy(account: Account) -> Iterator[FaultProxy]:
    account.emulator.run_clock()
    with FakeGuests(account.emulator.url), FaultProxy(account.emulator.url) as proxy:
        yield proxy


@pytest.fixture
def service(account: Account, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
    service = ServiceProcess(directory, account.emulator.environ(proxy.url) | service_environ(account))
    service.start()
    try:
        service.wait_ready()
        yield service
    finally:
        service.shut_down()
        shutil.rmtree(directory, ignore_errors=True)


def service_environ(account: Account) -> dict[str, str]:
    seed = account.seed
    return {
        "CLOUD_PROVIDER": "aws",
        "PODVM_AMI_ID": seed.images["x86_64"],
        "PODVM_INSTANCE_TYPE": "m6a.large",
        "AWS_SUBNET_IDS": ",".join(seed.subnets.values()),
        "AWS_SG_IDS": seed.security_group,
        "SSH_KP_NAME": seed.key_name,
        "DISABLECVM": "true",
        "CAA_CLUSTER_ID": "emulated",
        "NODE_NAME": "worker",
    }


def alive(account: Account) -> list[str]:
    """Ids of all instances that are not on their way out."""
    gone = ("shutting-down", "terminated")
    return [one["InstanceId"] for one in account.instances() if one["State"]["Name"] not in gone]


def test_a_pod_starts_runs_and_stops(account: Account, service: ServiceProcess) -> None:
    account.emulator.delays(pending=0.3, boot=0.2)
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "web")
    service.start_vm(sandbox_id)
    assert service.sandbox(sandbox_id)["state"] == "running"
    assert len(alive(account)) == 1
    service.stop_vm(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, SETTLED_SECONDS)
    assert alive(account) == []
    assert account.emulator.counters()["interfaces"] == 0


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE])
def test_a_lost_reply_of_the_launch_leaves_one_instance(
    account: Account, proxy: FaultProxy, service: ServiceProcess, fault: Fault
) -> None:
    proxy.add(fault, Phase.AFTER, body=RUN)
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "web")
    service.start_vm(sandbox_id)
    assert len(alive(account)) == 1
    assert list(account.emulator.counters()["tokens"].values()) == [alive(account)]
    service.stop_vm(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, SETTLED_SECONDS)


@pytest.mark.parametrize(("phase", "launched"), [(Phase.BEFORE, 0), (Phase.AFTER, 1), (Phase.DONE, 1)])
def test_a_service_killed_around_the_launch_leaves_nothing_behind(
    account: Account, proxy: FaultProxy, service: ServiceProcess, phase: Phase, launched: int
) -> None:
    def kill(_: Exchange) -> None:
        service.kill()

    rule = proxy.add(Fault.CALL, phase, body=RUN, call=kill)
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
    assert alive(account) == []
    assert all(len(ids) == 1 for ids in account.emulator.counters()["tokens"].values())
