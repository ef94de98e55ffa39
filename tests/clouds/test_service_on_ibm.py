"""The real service on the emulated IBM Cloud, from a caller's request to a guest that answers, and back to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from caa.sandbox import instance_name
from caa.sizing import IMAGE, MACHINE_TYPE
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import Fault, FaultProxy, Phase
from tests.clouds.ibm_lab import TYPE, IbmLab
from tests.clouds.podworld import forked_service, started
from tests.lab.forkserver import ForkServer
from tests.lab.service import ServiceProcess, new_id

ENDED_SECONDS = 60.0
CREATE = "^CreateInstance$"


@pytest.fixture
def proxy(ibm: IbmLab) -> Iterator[FaultProxy]:
    """The way to the emulated IBM Cloud, whose clock runs and whose guests answer."""
    ibm.emulator.run_clock()
    ibm.emulator.delays(pending=0.1, boot=0.1, shutting_down=0.5)
    with FakeGuests(ibm.emulator.control_url), ibm.emulator.proxy() as proxy:
        yield proxy


def service_on(
    forks: ForkServer, ibm: IbmLab, proxy: FaultProxy, **keys: str
) -> AbstractContextManager[ServiceProcess]:
    """A service that is ready, with keys that add or replace."""
    return forked_service(forks, ibm.environ(proxy.url) | {"CLOUD_PROVIDER": "ibmcloud"} | keys)


@pytest.fixture
def service(forks: ForkServer, ibm: IbmLab, proxy: FaultProxy) -> Iterator[ServiceProcess]:
    with service_on(forks, ibm, proxy) as service:
        yield service


def refused(service: ServiceProcess, sandbox_id: str, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    """A start over REST that must fail: the problem document."""
    service.create(sandbox_id, "web", annotations)
    answer = service.begin_start(sandbox_id)
    assert answer.status_code >= 400
    service.wait_for_state(sandbox_id, {"failed"}, ENDED_SECONDS)
    return dict(answer.json())


def left(ibm: IbmLab) -> dict[str, int]:
    """What there is, by kind."""
    counters = ibm.emulator.counters()
    kinds = ("interfaces", "volumes", "floating_ips")
    return {"instances": sum(counters["states"].values()), **{kind: counters[kind] for kind in kinds}}


NOTHING = {"instances": 0, "interfaces": 0, "volumes": 0, "floating_ips": 0}


def test_a_pod_starts_and_ends_and_nothing_of_it_is_left(ibm: IbmLab, service: ServiceProcess) -> None:
    ibm.emulator.late_addresses()
    sandbox_id = started(service)
    assert left(ibm) == {"instances": 1, "interfaces": 1, "volumes": 1, "floating_ips": 0}
    service.stop_sandbox(sandbox_id)
    service.wait_for_state(sandbox_id, {"stopped"}, ENDED_SECONDS)
    ibm.emulator.advance(1)
    assert left(ibm) == NOTHING


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATE])
def test_a_lost_reply_of_the_create_call_leaves_one_instance_that_runs_the_pod(
    ibm: IbmLab, proxy: FaultProxy, service: ServiceProcess, fault: Fault
) -> None:
    rule = proxy.add(fault, Phase.AFTER, action=CREATE)
    started(service)
    assert rule.fired == 1
    assert len(ibm.ids()) == 1
    assert proxy.count()["CreateInstance"] == 2


def test_a_foreign_instance_of_the_name_is_left_alone_and_the_pod_told(ibm: IbmLab, service: ServiceProcess) -> None:
    sandbox_id = new_id()
    name = instance_name("web", sandbox_id, 1)
    foreign = ibm.provider().launch(ibm.request(name=name)).id
    problem = refused(service, sandbox_id)
    assert problem["reason"] == "NameTaken"
    assert name in problem["detail"]
    assert ibm.ids() == [foreign]
    assert ibm.one()["status"] == "running"


def test_an_instance_that_gets_no_host_is_deleted_and_the_next_offering_tried(
    ibm: IbmLab, proxy: FaultProxy, service: ServiceProcess
) -> None:
    first, second, third = ibm.zones
    ibm.emulator.failing({"zone": first}, {"zone": second})
    sandbox_id = started(service)
    ibm.emulator.advance(1)
    found = ibm.one()
    assert (found["status"], found["zone"]["name"]) == ("running", third)
    assert left(ibm) == {"instances": 1, "interfaces": 1, "volumes": 1, "floating_ips": 0}
    kinds = [event["kind"] for event in service.events(sandbox_id)]
    assert kinds.count("CannotStartCapacity") == 2
    # What was learnt holds for others: they do not ask in those zones.
    started(service, "other")
    assert proxy.count()["CreateInstance"] == 4


def test_without_a_host_anywhere_the_reply_says_what_was_tried_and_nothing_is_left(
    ibm: IbmLab, service: ServiceProcess
) -> None:
    ibm.emulator.failing({})
    problem = refused(service, new_id())
    assert problem["reason"] == "NoCapacity"
    for zone in ibm.zones:
        assert f"no {TYPE} left in {zone}" in problem["detail"]
    ibm.emulator.advance(1)
    assert left(ibm) == NOTHING


def test_an_s390x_pod_gets_the_s390x_image_of_a_mixed_list_and_others_the_default(
    forks: ForkServer, ibm: IbmLab, proxy: FaultProxy
) -> None:
    images = ibm.seed.images
    keys = {
        "IBMCLOUD_PODVM_IMAGE_ID": f"{images['x86_64']},{images['s390x']}",
        "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST": "bz2-2x8,mz2-2x16",
    }
    with service_on(forks, ibm, proxy, **keys) as service:
        started(service, "z", {MACHINE_TYPE: "mz2-2x16"})
        started(service, "x")
    made = {one["profile"]["name"]: one["image"]["id"] for one in ibm.emulator.instances()}
    assert made == {"mz2-2x16": images["s390x"], TYPE: images["x86_64"]}


def test_a_profile_and_an_image_of_different_architectures_are_refused_before_any_call(
    forks: ForkServer, ibm: IbmLab, proxy: FaultProxy
) -> None:
    images = ibm.seed.images
    keys = {
        "IBMCLOUD_PODVM_IMAGE_ID": f"{images['x86_64']},{images['s390x']}",
        "IBMCLOUD_PODVM_INSTANCE_PROFILE_LIST": "bz2-2x8",
        "PODVM_IMAGES": images["x86_64"],
    }
    with service_on(forks, ibm, proxy, **keys) as service:
        problem = refused(service, new_id(), {MACHINE_TYPE: "bz2-2x8", IMAGE: images["x86_64"]})
    assert '"bz2-2x8") is s390x, and the image is x86_64' in problem["detail"]
    with (
        pytest.raises(AssertionError, match=rf"'bz2-2x8' is s390x, and of the images .* {images['x86_64']} is x86_64"),
        service_on(forks, ibm, proxy, **keys | {"IBMCLOUD_PODVM_IMAGE_ID": images["x86_64"]}),
    ):
        pass
    assert ibm.calls("CreateInstance") == 0
