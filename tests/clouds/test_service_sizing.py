"""What size the real service launches on an emulated EC2, what it says of that beforehand, and how many."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from caa.sizing import IMAGE, MACHINE_TYPE, MEMORY, VCPUS
from caa.ttrpc.frames import StatusError
from tests.clouds.aws.account import Account
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import TYPE, alive, create_as_shim, launches, pod_service, start_at_once, stop_at_once
from tests.lab.service import ServiceProcess, new_id

TYPES = "c6a.2xlarge,m6a.2xlarge,r6a.xlarge"


@pytest.fixture
def proxy(account: Account) -> Iterator[FaultProxy]:
    account.emulator.run_clock()
    with FakeGuests(account.emulator.url), FaultProxy(account.emulator.url) as proxy:
        yield proxy


def explained(service: ServiceProcess, annotations: dict[str, str]) -> Any:
    with service.rest() as client:
        answer = client.post("/v1/sizing/explain", json={"annotations": annotations})
        assert answer.status_code == 200, answer.text
        return answer.json()


def begin_start(service: ServiceProcess, annotations: dict[str, str] | None = None) -> tuple[str, Any]:
    """A start over REST: the sandbox's id and the answer."""
    sandbox_id = new_id()
    service.create(sandbox_id, f"pod-{sandbox_id[:8]}", annotations)
    return sandbox_id, service.begin_start(sandbox_id)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_explained_is_what_is_launched_and_explaining_launches_nothing(
    account: Account, proxy: FaultProxy
) -> None:
    cases = [
        ({VCPUS: "8", MEMORY: "16384"}, "c6a.2xlarge"),
        ({VCPUS: "0", MEMORY: "20000"}, TYPE),
        ({MACHINE_TYPE: "r6a.xlarge", VCPUS: "8", MEMORY: "16384"}, "r6a.xlarge"),
        ({MEMORY: "20000", VCPUS: ""}, "r6a.xlarge"),
    ]
    with pod_service(account, proxy.url, PODVM_INSTANCE_TYPES=TYPES) as service:
        told = [explained(service, annotations) for annotations, _ in cases]
        assert [one["chosen"]["type"] for one in told] == [expected for _, expected in cases]
        assert {one["image"] for one in told} == {account.seed.images["x86_64"]}
        assert {one["zone"] for one in told[1]["offerings"]} == set(account.seed.zones)
        assert not launches(account, proxy)
        for annotations, _ in cases:
            assert begin_start(service, annotations)[1].status_code == 200
        ended, answer = begin_start(service, {VCPUS: "0", MEMORY: "20000"})
        assert answer.status_code == 200
        assert "Ignored" in [event["kind"] for event in service.events(ended)]
    made = [(one.instance_type, one.zone) for one in launches(account, proxy)]
    assert made[: len(cases)] == [(one["chosen"]["type"], one["chosen"]["zone"]) for one in told]


def test_an_explanation_passes_over_what_ec2_refused_a_moment_ago(account: Account, proxy: FaultProxy) -> None:
    first, second, *_ = account.seed.zones
    account.emulator.capacity({"instance_type": TYPE, "zone": first})
    with pod_service(account, proxy.url) as service:
        assert explained(service, {})["chosen"]["zone"] == first
        assert begin_start(service)[1].status_code == 200
        told = explained(service, {})
        assert told["chosen"]["zone"] == second
        assert "InsufficientInstanceCapacity" in told["offerings"][0]["passed_over"]


def test_a_price_list_makes_the_cheapest_that_fits_the_smallest(
    account: Account, proxy: FaultProxy, tmp_path: Path
) -> None:
    (prices := tmp_path / "prices.yaml").write_text("m6a.2xlarge: 0.1\nc6a.2xlarge: 0.3\n")
    keys = {"PODVM_INSTANCE_TYPES": TYPES, "CAA_PRICES_FILE": str(prices)}
    with pod_service(account, proxy.url, **keys) as service:
        assert begin_start(service, {VCPUS: "8"})[1].status_code == 200
    assert [one.instance_type for one in launches(account, proxy)] == ["m6a.2xlarge"]


def test_an_image_boots_only_types_of_its_architecture_and_only_if_it_is_allowed(
    account: Account, proxy: FaultProxy
) -> None:
    arm = account.seed.images["arm64"]
    with pod_service(account, proxy.url, PODVM_IMAGES=f"{arm},ami-0fedcba9876543210") as service:
        told = explained(service, {IMAGE: arm, VCPUS: "1"})
        assert (told["chosen"], told["refusal"]["reason"]) == (None, "NoInstanceType")
        assert "it is arm64, and the supported types are x86_64" in told["refusal"]["detail"]
        for image, status, reason in (
            (arm, 422, "NoInstanceType"),
            ("ami-00000000000000bad", 422, "ImageNotAllowed"),
            ("ami-0fedcba9876543210", 502, "ImageMissing"),
        ):
            sandbox_id, answer = begin_start(service, {IMAGE: image})
            assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
            assert image in answer.json()["detail"] or reason == "NoInstanceType"
            service.wait_for_state(sandbox_id, {"failed"}, 60)
    assert not launches(account, proxy)


def test_no_more_pod_vms_than_the_limit_also_when_all_start_at_once(account: Account, proxy: FaultProxy) -> None:
    with pod_service(account, proxy.url, PEERPODS_LIMIT_PER_NODE="3") as service:
        burst = start_at_once([service], 8)
        assert burst.statuses == {200: 3, 502: 5}
        told = [answer.json() for answer in burst.answers if not answer.is_success]
        assert Counter(one["reason"] for one in told) == {"LimitReached": 5}
        said = "this node has 3 pod VMs, and may have 3 at once (PEERPODS_LIMIT_PER_NODE)"
        assert {one["detail"] for one in told} == {said}
        assert len(launches(account, proxy)) == len(alive(account)) == 3

        told_before = explained(service, {})
        assert (told_before["chosen"], told_before["refusal"]["reason"]) == (None, "LimitReached")
        with pytest.raises(StatusError, match=r"LimitReached: this node has 3 pod VMs"):
            service.start_vm(create_as_shim(service, "one-more"))
        refused = next(one for one, answer in zip(burst.ids, burst.answers, strict=True) if not answer.is_success)
        row = service.wait_for_state(refused, {"failed"}, 60)
        assert row["failure"] == {"reason": "LimitReached", "detail": said}
        assert row["attempts"] == 0

        running = next(one for one, answer in zip(burst.ids, burst.answers, strict=True) if answer.is_success)
        stop_at_once(service, [running])
        service.wait_for_state(running, {"stopped"}, 60)
        assert begin_start(service)[1].status_code == 200
        until(lambda: len(alive(account)) == 3)
