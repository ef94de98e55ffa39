"""The API's JSON -> what is decided by. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from caa.controller.nodes import LABEL, Node, ServicePod
from caa.controller.world import RUNTIME_CLASS, PeerPod, RuntimeClass

Body = Mapping[str, Any]

# Set on everything that the controller makes, and what it may remove.
MANAGED_BY, MANAGER = "app.kubernetes.io/managed-by", "caa-controller"
# Reasons of a waiting container that does not become better by waiting. Kubernetes goes on trying all the same.
_STUCK = frozenset(
    {
        "CrashLoopBackOff",
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
_ENDED = frozenset({"Succeeded", "Failed"})


def node(body: Body) -> Node:
    """A Node."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    return Node(body["metadata"]["name"], dict(body["metadata"].get("labels") or {}), ready)


def service_pod(body: Body) -> ServicePod | None:
    """A DaemonSet's Pod; None for any other one, and for one that is on no node yet or has ended, and is replaced."""
    metadata, status = body["metadata"], body.get("status") or {}
    where = (body.get("spec") or {}).get("nodeName") or _meant_for(body)
    owner = next((one for one in metadata.get("ownerReferences") or () if one.get("kind") == "DaemonSet"), None)
    if owner is None or not where or status.get("phase") in _ENDED:
        return None
    conditions: Iterable[Body] = status.get("conditions") or ()
    ready = next((one for one in conditions if one.get("type") == "Ready"), {})
    since = metadata.get("deletionTimestamp") or ready.get("lastTransitionTime") or metadata["creationTimestamp"]
    return ServicePod(
        node=where,
        component=owner["name"],
        ready=ready.get("status") == "True",
        ending=bool(metadata.get("deletionTimestamp")),
        since=datetime.fromisoformat(since),
        trouble=_trouble(status),
    )


def _meant_for(body: Body) -> str:
    """The node that the DaemonSet made a Pod for, which the scheduler has not bound yet."""
    affinity = ((body.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def _trouble(status: Body) -> str:
    for one in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (one.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _STUCK:
            return f"{waiting['reason']}: {waiting.get('message') or one['name']}"
    return ""


def peer_pods(bodies: Iterable[Body]) -> tuple[PeerPod, ...]:
    """Pods with a runtime class that have not ended."""
    found = []
    for body in bodies:
        spec = body.get("spec") or {}
        if spec.get("runtimeClassName") and (body.get("status") or {}).get("phase") not in _ENDED:
            metadata = body["metadata"]
            where, name = spec.get("nodeName") or "", spec["runtimeClassName"]
            found.append(PeerPod(metadata.get("namespace", ""), metadata["name"], where, name))
    return tuple(found)


def runtime_class(body: Body) -> RuntimeClass:
    """A RuntimeClass: ours by its label, and here by its handler or the nodes that it chooses."""
    labels = body["metadata"].get("labels") or {}
    chosen = (body.get("scheduling") or {}).get("nodeSelector") or {}
    here = body.get("handler") == RUNTIME_CLASS or LABEL in chosen
    return RuntimeClass(body["metadata"]["name"], labels.get(MANAGED_BY) == MANAGER, here)


def rolling(body: Body) -> bool:
    """Whether a DaemonSet replaces its Pods one by one."""
    if ((body.get("spec") or {}).get("updateStrategy") or {}).get("type") == "OnDelete":
        return False
    status = body.get("status") or {}
    if status.get("observedGeneration", 0) < body["metadata"].get("generation", 0):
        return bool(status)
    return bool(status.get("updatedNumberScheduled", 0) < status.get("desiredNumberScheduled", 0))
