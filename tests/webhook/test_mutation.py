"""What becomes of a pod: the table of cases, and what holds for every pod."""

from __future__ import annotations

import base64
import copy
import json
import math
import time
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caa.sizing import GPUS, MEMORY, VCPUS, requirements
from caa.webhook.mutation import MARK, VM_RESOURCE, needed, patch, sizes
from caa.webhook.quantity import quantity
from caa.webhook.review import BadReviewError, answer

CLASS = "kata-remote"
ONE_VM = {"requests": {VM_RESOURCE: "1"}, "limits": {VM_RESOURCE: "1"}}


def container(name: str = "c", **resources: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, "image": "i", "resources": dict(resources)}


def sidecar(**resources: Mapping[str, str]) -> dict[str, Any]:
    return container("sidecar", **resources) | {"restartPolicy": "Always"}


def pod(*containers: dict[str, Any], init: Iterable[dict[str, Any]] = (), **spec: Any) -> dict[str, Any]:
    inits = {"initContainers": list(init)} if init else {}
    return {
        "metadata": {"name": "p"},
        "spec": {"runtimeClassName": CLASS, "containers": list(containers), **inits, **spec},
    }


def mutated(before: dict[str, Any]) -> dict[str, Any]:
    after = copy.deepcopy(before)
    applied(patch(before, CLASS), after)
    return after


def applied(operations: Iterable[Mapping[str, Any]], document: dict[str, Any]) -> None:
    """Do to `document` what the API server does with a patch of this module, in place."""
    for operation in operations:
        *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:])
        place: Any = document
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        if operation["op"] == "remove":
            del place[last]
        else:
            place[last] = operation["value"]


CASES = {
    "nothing asked for": (pod(container()), {}),
    "a request": (pod(container(requests={"cpu": "250m", "memory": "100Mi"})), {VCPUS: "1", MEMORY: "100"}),
    "the limit goes before the request": (
        pod(container(requests={"cpu": "1", "memory": "1Gi"}, limits={"cpu": "1500m", "memory": "2Gi"})),
        {VCPUS: "2", MEMORY: "2048"},
    ),
    "a limit alone": (pod(container(limits={"cpu": "3", "memory": "1G"})), {VCPUS: "3", MEMORY: "954"}),
    "containers are added, and only the sum is rounded": (
        pod(container("a", requests={"cpu": "500m"}), container("b", limits={"cpu": "500m"})),
        {VCPUS: "1"},
    ),
    "of init containers the largest counts": (
        pod(
            container(limits={"cpu": "1"}),
            init=[container("i", limits={"cpu": "4"}), container("j", limits={"cpu": "3"})],
        ),
        {VCPUS: "4"},
    ),
    "a sidecar is added": (pod(container(limits={"cpu": "1"}), init=[sidecar(limits={"cpu": "2"})]), {VCPUS: "3"}),
    "an init container runs beside the sidecars before it": (
        pod(container(limits={"cpu": "1"}), init=[sidecar(limits={"cpu": "2"}), container("i", limits={"cpu": "4"})]),
        {VCPUS: "6"},
    ),
    "and not beside those after it": (
        pod(container(limits={"cpu": "1"}), init=[container("i", limits={"cpu": "4"}), sidecar(limits={"cpu": "2"})]),
        {VCPUS: "4"},
    ),
    "the pod as a whole": (
        pod(container(limits={"cpu": "1"}), resources={"limits": {"cpu": "5"}, "requests": {"memory": "1Gi"}}),
        {VCPUS: "5", MEMORY: "1024"},
    ),
    "overhead is the worker's": (pod(container(limits={"cpu": "1"}), overhead={"cpu": "2"}), {VCPUS: "1"}),
    "GPUs": (
        pod(container(limits={"nvidia.com/gpu": "2"}), container("b", limits={"nvidia.com/gpu": "1"})),
        {GPUS: "3"},
    ),
}


@pytest.mark.parametrize(("before", "expected"), CASES.values(), ids=CASES)
def test_the_table(before: dict[str, Any], expected: dict[str, str]) -> None:
    after = mutated(before)
    assert {key: text for key, text in after["metadata"]["annotations"].items() if key != MARK} == expected
    assert after["spec"]["containers"][0]["resources"] == ONE_VM
    others = [*after["spec"]["containers"][1:], *after["spec"].get("initContainers", ())]
    assert not any(one["resources"] for one in others)
    assert "resources" not in after["spec"]


def test_what_the_user_wrote_is_kept() -> None:
    before = pod(container(limits={"cpu": "4", "memory": "1Gi"}))
    before["metadata"]["annotations"] = {VCPUS: "2", "a/b~c": "kept"}
    annotations = mutated(before)["metadata"]["annotations"]
    assert annotations[VCPUS] == "2"
    assert annotations[MEMORY] == "1024"
    assert annotations["a/b~c"] == "kept"


def test_claims_of_devices_stay() -> None:
    before = pod(container(limits={"cpu": "4"}) | {"resources": {"claims": [{"name": "d"}], "limits": {"cpu": "1"}}})
    assert mutated(before)["spec"]["containers"][0]["resources"] == {"claims": [{"name": "d"}], **ONE_VM}


def test_defaults_that_a_limit_range_fills_in_again_stay() -> None:
    after = mutated(pod(container(limits={"cpu": "4"})))
    after["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "500m"  # as LimitRanger does, run again
    assert patch(after, CLASS) == []


AMOUNTS = st.dictionaries(
    st.sampled_from(["cpu", "memory", "nvidia.com/gpu", "ephemeral-storage"]),
    st.one_of(st.integers(0, 10**6).map(str), st.integers(0, 10**5).map(lambda n: f"{n}m"), st.just("2e3")),
)
CONTAINERS = st.builds(
    lambda limits, requests, restart: {"name": "c", "resources": {"limits": limits, "requests": requests}} | restart,
    AMOUNTS,
    AMOUNTS,
    st.sampled_from([{}, {"restartPolicy": "Always"}]),
)
PODS = st.builds(
    lambda containers, init, annotations: pod(*containers, init=init) | {"metadata": {"annotations": annotations}},
    st.lists(CONTAINERS, min_size=1, max_size=4),
    st.lists(CONTAINERS, max_size=4),
    st.dictionaries(st.sampled_from([VCPUS, MEMORY, "other"]), st.sampled_from(["1", "512"])),
)


@settings(max_examples=60, deadline=None)
@given(PODS)
def test_any_pod_is_changed_once_and_is_given_no_less_than_its_containers_use(before: dict[str, Any]) -> None:
    untouched = copy.deepcopy(before)
    after = mutated(before)
    assert before == untouched
    assert patch(after, CLASS) == []
    assert after["metadata"]["annotations"].items() >= before["metadata"]["annotations"].items()
    told = requirements(sizes(before["spec"]))  # what the service reads of it
    assert told.vcpus == math.ceil(needed(before["spec"], "cpu"))
    at_least = sum(
        (quantity((c["resources"]["limits"] or {}).get("cpu", "0")) for c in before["spec"]["containers"]), Decimal(0)
    )
    assert told.vcpus >= at_least
    assert sum("resources" in one and one["resources"] == ONE_VM for one in after["spec"]["containers"]) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", "0"),
        ("500m", "0.5"),
        ("1Ki", "1024"),
        ("1.5Gi", "1610612736"),
        ("2e3", "2000"),
        ("1E", "1e18"),
        ("100n", "1e-7"),
    ],
)
def test_quantities(text: str, number: str) -> None:
    assert quantity(text) == Decimal(number)


def review(of: dict[str, Any]) -> bytes:
    request = {"uid": "u", "object": of}
    return json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}).encode()


def test_a_quantity_that_is_none_is_refused_by_its_container() -> None:
    response = answer(review(pod(container("web", limits={"cpu": "two"}))), CLASS)["response"]
    assert not response["allowed"]
    assert "container 'web', resources.limits, cpu: 'two'" in response["status"]["message"]


def test_the_answer_carries_the_patch() -> None:
    before = pod(container(limits={"cpu": "2"}))
    response = answer(review(before), CLASS)["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("u", True, "JSONPatch")
    assert json.loads(base64.b64decode(response["patch"])) == patch(before, CLASS)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"apiVersion": "admission.k8s.io/v1beta1", "request": {}}'])
def test_what_is_no_review_is_refused(body: bytes) -> None:
    with pytest.raises(BadReviewError):
        answer(body, CLASS)


def test_a_pod_of_another_class_is_returned_untouched_within_5_ms() -> None:
    other = pod(*(container(str(i), limits={"cpu": "1"}) for i in range(50)))
    other["spec"]["runtimeClassName"] = "kata"
    body = review(other)
    seconds = []
    for _ in range(20):
        begin = time.process_time()
        response = answer(body, CLASS)["response"]
        seconds.append(time.process_time() - begin)
        assert response == {"uid": "u", "allowed": True}
    # The fastest, for the machine is shared.
    assert min(seconds) <= 0.005
