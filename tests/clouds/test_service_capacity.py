"""What the real service makes of an EC2 that has no capacity, no quota, or says no for good."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from caa.sizing import MACHINE_TYPE
from caa.ttrpc.frames import Code, StatusError
from tests.clouds.aws.account import Account
from tests.clouds.aws.errors import Ec2Error
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.podworld import (
    LAUNCHES,
    TYPE,
    alive,
    create_as_shim,
    launches,
    pod_service,
    start_at_once,
)
from tests.lab.service import ServiceProcess, new_id

# Offered in other regions only, as the emulator's tables have it.
TYPE_OF_OTHER_REGIONS = "hpc7a.96xlarge"
# A failed start had nothing made, so its end asks EC2 nothing; only a failing test waits this long.
ENDED_SECONDS = 60.0
# Code of EC2, its HTTP status, what EC2 says, the service's reason word, what its sentence must name.
REFUSALS = [
    ("InvalidAMIID.NotFound", 400, "The image id '[ami-1]' does not exist", "ImageMissing", "PODVM_AMI_ID=ami-"),
    ("UnauthorizedOperation", 403, "You are not authorized", "AccessDenied", "the right to call RunInstances"),
    ("InvalidInstanceType", 400, "Invalid instance type", "InstanceTypeUnknown", f"{TYPE} (PODVM_INSTANCE_TYPE"),
]
refusals = pytest.mark.parametrize(
    ("code", "status", "said", "reason", "named"), REFUSALS, ids=[r[0] for r in REFUSALS]
)


@pytest.fixture
def service(account: Account, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    with pod_service(account, proxy.url) as service:
        yield service


def failed_start(service: ServiceProcess, annotations: dict[str, str] | None = None) -> tuple[str, dict[str, Any]]:
    """A start over REST that must fail: the sandbox's id and the problem document."""
    sandbox_id = new_id()
    service.create(sandbox_id, "web", annotations)
    answer = service.begin_start(sandbox_id)
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    assert problem["status"] == answer.status_code >= 400
    return sandbox_id, problem


def nothing_is_left(account: Account, service: ServiceProcess, sandbox_id: str) -> bool:
    """Once the sandbox has failed: no instance, no interface, no volume, no agent socket."""
    service.wait_for_state(sandbox_id, {"failed"}, ENDED_SECONDS)
    counters = account.emulator.counters()
    sockets = list((service.run_dir / "pods").glob("*/agent.ttrpc"))
    return not alive(account) and not counters["interfaces"] and not counters["volumes"] and not sockets


def test_offerings_without_capacity_are_asked_once_and_left_alone_after(
    account: Account, proxy: FaultProxy, service: ServiceProcess
) -> None:
    first, second, third = account.seed.zones
    account.emulator.capacity({"zone": first}, {"zone": second})
    sandbox_id = new_id()
    service.create(sandbox_id, "first")
    service.start_sandbox(sandbox_id)
    assert [(one.instance_type, one.zone) for one in launches(account, proxy)] == [
        (TYPE, first),
        (TYPE, second),
        (TYPE, third),
    ]
    assert start_at_once([service], 50).statuses == {200: 50}
    assert Counter((one.instance_type, one.zone) for one in launches(account, proxy)) == {
        (TYPE, first): 1,
        (TYPE, second): 1,
        (TYPE, third): 51,
    }
    assert len(alive(account)) == 51


def test_capacity_of_one_market_says_nothing_of_the_other(account: Account, proxy: FaultProxy) -> None:
    account.emulator.capacity({"market": "spot"})
    with pod_service(account, proxy.url, PODVM_MARKET="spot-then-on-demand") as service:
        assert start_at_once([service], 1).statuses == {200: 1}
        assert start_at_once([service], 5).statuses == {200: 5}
    asked = Counter((one.zone, one.market) for one in launches(account, proxy))
    assert asked == {(zone, "spot"): 1 for zone in account.seed.zones} | {(account.seed.zones[0], "on-demand"): 6}


def test_a_start_that_no_offering_has_capacity_for_says_what_was_tried_and_why(
    account: Account, proxy: FaultProxy, service: ServiceProcess
) -> None:
    account.emulator.capacity({})
    sandbox_id, problem = failed_start(service)
    assert (problem["status"], problem["type"]) == (502, "urn:caa:problem:start-failed")
    assert problem["reason"] == "NoCapacity"
    for zone in account.seed.zones:
        assert re.search(rf"{TYPE}[^;]*{zone}[^;]*InsufficientInstanceCapacity", problem["detail"])
    assert Counter(one.zone for one in launches(account, proxy)) == dict.fromkeys(account.seed.zones, 1)
    assert nothing_is_left(account, service, sandbox_id)

    # Over the shim's door, while all of them are known to be out: the same reply, whether or not EC2 was asked again.
    shim_id = create_as_shim(service, "shim")
    with pytest.raises(StatusError, match="NoCapacity: ") as refused:
        service.start_vm(shim_id)
    for zone in account.seed.zones:
        assert re.search(rf"{TYPE}[^;]*{zone}[^;]*InsufficientInstanceCapacity", str(refused.value))
    assert nothing_is_left(account, service, shim_id)


def test_a_type_without_capacity_in_any_zone_is_left_alone_and_the_next_one_taken(
    account: Account, proxy: FaultProxy
) -> None:
    account.emulator.capacity({"instance_type": TYPE})
    with pod_service(account, proxy.url, PODVM_INSTANCE_TYPES="m6a.xlarge") as service:
        assert start_at_once([service], 1).statuses == {200: 1}
        assert start_at_once([service], 5).statuses == {200: 5}
    assert Counter(one.instance_type for one in launches(account, proxy)) == {TYPE: 3, "m6a.xlarge": 6}


def test_a_quota_is_told_apart_from_capacity(account: Account, proxy: FaultProxy) -> None:
    account.emulator.capacity({"market": "spot"})
    account.emulator.quota(on_demand=0)
    with pod_service(account, proxy.url, PODVM_MARKET="spot-then-on-demand") as service:
        sandbox_id, problem = failed_start(service)
        assert problem["status"] == 502
        assert "InsufficientInstanceCapacity" in problem["detail"]
        assert "VcpuLimitExceeded" in problem["detail"]
        assert "quota" in problem["detail"]
        kinds = Counter(event["kind"] for event in service.events(sandbox_id))
        assert kinds["InsufficientInstanceCapacity"] == 3
        assert kinds["VcpuLimitExceeded"] >= 1
        assert nothing_is_left(account, service, sandbox_id)


def test_a_quota_alone_is_not_called_capacity(account: Account, service: ServiceProcess) -> None:
    account.emulator.quota(on_demand=0)
    sandbox_id, problem = failed_start(service)
    assert "VcpuLimitExceeded" in problem["detail"]
    assert "InsufficientInstanceCapacity" not in problem["detail"]
    assert nothing_is_left(account, service, sandbox_id)


@refusals
def test_a_refusal_for_good_fails_the_start_at_once(
    account: Account,
    proxy: FaultProxy,
    service: ServiceProcess,
    code: str,
    status: int,
    said: str,
    reason: str,
    named: str,
) -> None:
    proxy.add(Fault.STATUS, Phase.BEFORE, body=LAUNCHES, times=None, status=status, reply=Ec2Error(code, said).body)
    sandbox_id, problem = failed_start(service)
    assert (problem["status"], problem["type"]) == (502, "urn:caa:problem:start-failed")
    assert problem["reason"] == reason
    assert named in problem["detail"]
    assert len(launches(account, proxy)) == 1
    row = service.wait_for_state(sandbox_id, {"failed"}, ENDED_SECONDS)
    assert row["failure"] == {"reason": reason, "detail": problem["detail"]}

    shim_id = create_as_shim(service, "shim")
    with pytest.raises(StatusError) as refused:
        service.start_vm(shim_id)
    assert refused.value.code == Code.UNKNOWN
    assert str(refused.value).startswith(f"{reason}: ")
    assert named in str(refused.value)
    assert len(launches(account, proxy)) == 2
    assert nothing_is_left(account, service, shim_id)


def test_a_type_that_is_not_configured_fails_the_start_without_a_launch(
    account: Account, proxy: FaultProxy, service: ServiceProcess
) -> None:
    wanted = {MACHINE_TYPE: TYPE_OF_OTHER_REGIONS}
    sandbox_id, problem = failed_start(service, wanted)
    assert (problem["status"], problem["reason"]) == (422, "NoInstanceType")
    assert TYPE_OF_OTHER_REGIONS in problem["detail"]
    assert TYPE in problem["detail"].partition("supported: ")[2]
    assert nothing_is_left(account, service, sandbox_id)

    shim_id = create_as_shim(service, "shim", wanted)
    with pytest.raises(StatusError, match=f"NoInstanceType: .*{TYPE_OF_OTHER_REGIONS}"):
        service.start_vm(shim_id)
    assert nothing_is_left(account, service, shim_id)
    assert not launches(account, proxy)


def test_a_configured_type_that_the_region_has_not_keeps_the_service_from_starting(
    account: Account, proxy: FaultProxy
) -> None:
    types = f"m6a.xlarge,{TYPE_OF_OTHER_REGIONS}"
    said = f"PODVM_INSTANCE_TYPES: '{TYPE_OF_OTHER_REGIONS}' is offered in none"
    with pytest.raises(AssertionError, match=said), pod_service(account, proxy.url, PODVM_INSTANCE_TYPES=types):
        pass
    assert not launches(account, proxy)


def test_a_start_that_only_quotas_stand_against_says_so(account: Account, proxy: FaultProxy) -> None:
    account.emulator.quota(on_demand=0)
    with pod_service(account, proxy.url) as service:
        _, problem = failed_start(service)
    assert problem["reason"] == "NoQuota"
    # The quota counts in every zone, so it was asked about once.
    assert len(launches(account, proxy)) == 1


@pytest.mark.parametrize("action", ["DescribeInstanceTypes", "DescribeSubnets", "DescribeImages"])
def test_a_lookup_that_fails_for_a_moment_costs_no_pod_its_start(
    account: Account, proxy: FaultProxy, action: str
) -> None:
    with pod_service(account, proxy.url) as service:
        rule = proxy.add(Fault.STATUS, Phase.BEFORE, body=rf"Action={action}(&|$)", status=503, times=2)
        assert start_at_once([service], 1).statuses == {200: 1}
    assert rule.fired == 2
    assert len(launches(account, proxy)) == 1
