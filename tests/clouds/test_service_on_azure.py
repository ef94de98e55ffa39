"""The real service on the emulated Azure, from a caller's request to a guest that answers, and back to nothing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from caa.api.hypervisor import SERVICE, SandboxRequest
from caa.sizing import MACHINE_TYPE, VCPUS
from caa.ttrpc.client import call_once
from tests.clouds.azure_lab import NOTHING, AzureLab
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.podworld import forked_service, start_at_once, started
from tests.lab.forkserver import ForkServer
from tests.lab.service import ServiceProcess, new_id

ENDED_SECONDS = 60.0
PUT = "^PutVirtualMachine$"
RETRY_AFTER = 6
# Threads of the service for calls of a cloud, and in all.
CALLS_AT_ONCE, THREADS = 8, 16
# 200 is what a node would never have at once; a machine with two cores takes minutes for so many guests.
BURST = 200 if os.environ.get("CAA_SOAK") else 30


@pytest.fixture
def proxy(azure: AzureLab) -> Iterator[FaultProxy]:
    """The way to the emulated Azure, whose clock runs and whose guests answer."""
    azure.emulator.run_clock()
    azure.emulator.delays(pending=0.1, boot=0.1, shutting_down=0.5)
    with FakeGuests(azure.emulator.control_url), azure.emulator.proxy() as proxy:
        yield proxy


def service_on(
    forks: ForkServer, azure: AzureLab, proxy: FaultProxy, **keys: str
) -> AbstractContextManager[ServiceProcess]:
    """A service that is ready, with keys that add or replace."""
    return forked_service(forks, azure.environ(proxy.url) | {"CLOUD_PROVIDER": "azure"} | keys)


@pytest.fixture
def service(forks: ForkServer, azure: AzureLab, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    with service_on(forks, azure, proxy) as service:
        yield service


def kinds_of(service: ServiceProcess, sandbox_id: str) -> list[str]:
    """Of its events."""
    return [event["kind"] for event in service.events(sandbox_id)]


async def hang_up(service: ServiceProcess, start: bytes, when: Callable[[], bool]) -> None:
    """Call StartVM, and be gone once this is so."""
    deadline = time.monotonic() + ENDED_SECONDS
    calling = asyncio.ensure_future(call_once(service.hypervisor_socket, SERVICE, "StartVM", start))
    while not await asyncio.to_thread(when):
        assert not calling.done()
        assert time.monotonic() < deadline, service.log_tail()
        await asyncio.sleep(0.05)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling


def the_vm(azure: AzureLab) -> dict[str, Any]:
    """The only one there is, but for those on their way out."""
    vms = azure.emulator.overview()["vms"]
    (found,) = [one for one in vms if one["properties"]["provisioningState"] != "Deleting"]
    return dict(found)


def test_a_pod_starts_long_before_arms_operation_ends_and_nothing_of_it_is_left(
    azure: AzureLab, service: ServiceProcess
) -> None:
    azure.emulator.delays(pending=0.1, boot=0.1, shutting_down=0.5, guest_ready=3600)
    sandbox_id = started(service)
    # The agent was dialled, and StartVM has returned, while ARM still waits for a guest that says it is ready.
    assert the_vm(azure)["properties"]["provisioningState"] == "Creating"
    assert azure.left() == {**dict.fromkeys(NOTHING, 1), "public_ips": 0}
    service.stop_sandbox(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, ENDED_SECONDS)
    azure.emulator.advance(1)
    assert azure.left() == NOTHING


def test_an_operation_that_never_ends_is_given_up_with_its_caller_and_leaves_nothing(
    azure: AzureLab, proxy: FaultProxy, service: ServiceProcess
) -> None:
    azure.emulator.delays(pending=1e6, boot=0.1, shutting_down=0.1)
    sandbox_id = new_id()
    service.create(sandbox_id, "web")
    start = SandboxRequest(id=sandbox_id).encode()
    asyncio.run(hang_up(service, start, lambda: "LaunchAccepted" in kinds_of(service, sandbox_id)))
    assert proxy.count()["PutVirtualMachine"] == 1
    service.wait_for_state(sandbox_id, {"stopped", "failed"}, ENDED_SECONDS)
    assert "CallerGone" in kinds_of(service, sandbox_id)
    azure.emulator.advance(1)
    assert azure.left() == NOTHING


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE])
def test_a_lost_reply_of_the_put_leaves_one_vm_that_runs_the_pod(
    azure: AzureLab, proxy: FaultProxy, service: ServiceProcess, fault: Fault
) -> None:
    rule = proxy.add(fault, Phase.AFTER, action=PUT)
    started(service)
    assert rule.fired == 1
    assert proxy.count()["PutVirtualMachine"] == 1  # the repeat found the VM before it asked for it
    assert azure.left()["vms"] == 1


def test_a_vm_that_fails_after_it_was_accepted_is_deleted_and_the_next_offering_tried(
    azure: AzureLab, service: ServiceProcess
) -> None:
    azure.emulator.failing({"zone": "1"}, {"zone": "2"})
    sandbox_id = started(service)
    found = the_vm(azure)
    assert found["zones"] == ["3"]
    azure.emulator.advance(1)
    assert azure.left() == {**dict.fromkeys(NOTHING, 1), "public_ips": 0}
    assert "ZonalAllocationFailed" in kinds_of(service, sandbox_id)


def test_families_without_quota_are_never_asked_for(forks: ForkServer, azure: AzureLab, proxy: FaultProxy) -> None:
    azure.emulator.quota({"standardFSv2Family": 0, "standardDASv5Family": 0})
    sizes = "Standard_F2s_v2,Standard_D4as_v5,Standard_E2as_v5"
    with service_on(forks, azure, proxy, AZURE_INSTANCE_SIZES=sizes) as service:
        started(service, annotations={VCPUS: "1"})
        assert the_vm(azure)["properties"]["hardwareProfile"]["vmSize"] == "Standard_E2as_v5"
        assert proxy.count()["PutVirtualMachine"] == 1
        sandbox_id = new_id()
        service.create(sandbox_id, "named", {MACHINE_TYPE: "Standard_F2s_v2"})
        answer = service.begin_start(sandbox_id)
        assert answer.json()["reason"] == "NoQuota"
        assert "standardFSv2Family" in answer.json()["detail"]
        service.wait_for_state(sandbox_id, {"failed"}, ENDED_SECONDS)


def test_a_burst_that_is_throttled_half_way_waits_as_long_as_azure_says_and_then_all_run(
    azure: AzureLab, proxy: FaultProxy, service: ServiceProcess
) -> None:
    azure.emulator.limits({"PutVirtualMachine": (BURST // 2, 2.5)}, retry_after=RETRY_AFTER)
    burst = start_at_once([service], BURST)
    assert burst.statuses == {200: BURST}, burst.refusal
    assert azure.left()["vms"] == BURST
    puts = [record for record in proxy.records if record.action == "PutVirtualMachine"]
    first = next(record.at for record in puts if record.status == 429)
    # Calls that were under way already are refused with it; then nobody asks until the time is over.
    hammering = [record for record in puts if first + 2 < record.at < first + RETRY_AFTER - 0.5]
    assert len(hammering) <= 1
    assert sum(record.status == 429 for record in puts if record.at <= first + 2) <= CALLS_AT_ONCE
    # A pool never shrinks, so this is the most there were.
    assert service.process is not None
    assert len(os.listdir(f"/proc/{service.process.pid}/task")) <= THREADS
