"""The API's JSON, as Kubernetes writes it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from caa.controller.reading import node, peer_pods, rolling, runtime_class, service_pod

MADE, LATER = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"


def pod(**status: Any) -> dict[str, Any]:
    owners = [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "caa-serve", "uid": "u"}]
    metadata = {"name": "caa-serve-x", "namespace": "n", "ownerReferences": owners, "creationTimestamp": MADE}
    return {"metadata": metadata, "spec": {"nodeName": "w0"}, "status": status}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"name": "serve", "state": {"waiting": {"reason": reason, "message": message}}}


def test_a_ready_pod() -> None:
    found = service_pod(pod(conditions=[{"type": "Ready", "status": "True", "lastTransitionTime": LATER}]))
    assert found is not None
    assert (found.node, found.component, found.ready, found.ending, found.trouble) == (
        "w0",
        "caa-serve",
        True,
        False,
        "",
    )


def test_how_long_a_pod_is_not_ready_counts_from_when_it_last_was() -> None:
    found = service_pod(pod(conditions=[{"type": "Ready", "status": "False", "lastTransitionTime": LATER}]))
    assert found is not None
    assert found.since == datetime(2026, 1, 1, 1, tzinfo=UTC)
    new = service_pod(pod())
    assert new is not None
    assert (new.ready, new.since) == (False, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("where", ["containerStatuses", "initContainerStatuses"])
def test_a_container_that_cannot_start_is_told_with_the_kubelet_s_words(where: str) -> None:
    found = service_pod(pod(**{where: [waiting("ErrImagePull", "manifest unknown")]}))
    assert found is not None
    assert found.trouble == "ErrImagePull: manifest unknown"


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing"])
def test_a_container_that_is_being_made_is_no_trouble(reason: str) -> None:
    found = service_pod(pod(containerStatuses=[waiting(reason)]))
    assert found is not None
    assert found.trouble == ""


def test_a_pod_that_is_not_scheduled_yet_is_of_the_node_that_it_is_meant_for() -> None:
    body = pod()
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["w1"]}]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    body["spec"] = {"affinity": {"nodeAffinity": required}}
    found = service_pod(body)
    assert found is not None
    assert found.node == "w1"
    del body["spec"]
    assert service_pod(body) is None


def test_a_pod_of_no_daemon_set_is_none_of_these() -> None:
    body = pod()
    body["metadata"]["ownerReferences"][0]["kind"] = "ReplicaSet"
    assert service_pod(body) is None
    del body["metadata"]["ownerReferences"]
    assert service_pod(body) is None


@pytest.mark.parametrize("phase", ["Failed", "Succeeded"])
def test_a_pod_that_has_ended_counts_for_nothing(phase: str) -> None:
    body = pod(phase=phase)
    assert service_pod(body) is None
    body["spec"]["runtimeClassName"] = "kata-remote"
    assert peer_pods([body]) == ()


def test_pods_without_a_runtime_class_are_no_peer_pods() -> None:
    mine, other = pod(phase="Running"), pod(phase="Running")
    mine["spec"]["runtimeClassName"] = "kata-remote"
    assert [(str(one), one.node) for one in peer_pods([mine, other])] == [("n/caa-serve-x", "w0")]


def test_a_node_says_little_before_its_kubelet_does() -> None:
    assert node({"metadata": {"name": "w0"}}).ready is False
    unknown = {"conditions": [{"type": "Ready", "status": "Unknown"}]}
    assert node({"metadata": {"name": "w0", "labels": None}, "status": unknown}).ready is False


def test_classes_that_lead_here_are_known_by_handler_or_label() -> None:
    plain = {"metadata": {"name": "one"}, "handler": "runc"}
    label = {"scheduling": {"nodeSelector": {"node-role.kubernetes.io/kata-oc": ""}}}
    assert not runtime_class(plain).here
    assert runtime_class({**plain, "handler": "kata-remote"}).here
    assert runtime_class({**plain, **label}).here
    assert not runtime_class({**plain, **label}).ours


@pytest.mark.parametrize(
    ("kind", "status", "is_rolling"),
    [
        ("RollingUpdate", {}, False),  # new, and nobody looked at it yet
        ("RollingUpdate", {"observedGeneration": 1, "desiredNumberScheduled": 2}, True),
        ("RollingUpdate", {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 1}, True),
        ("RollingUpdate", {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2}, False),
        ("OnDelete", {"observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 0}, False),
    ],
)
def test_a_daemon_set_is_rolled_while_a_pod_is_not_of_its_newest_state(
    kind: str, status: dict[str, int], is_rolling: bool
) -> None:
    body = {"metadata": {"generation": 2}, "spec": {"updateStrategy": {"type": kind}}, "status": status}
    assert rolling(body) is is_rolling
