"""The objects this service writes, as the API server is given them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from caa.kubernetes.nodeevents import NodeEvent
from caa.kubernetes.podevents import PodEvent
from caa.sandbox import Sandbox

COMPONENT = "cloud-api-adaptor"
# The incumbent's, so that its controller deletes the VMs of a node that is gone for good.
FINALIZER = "peer.pod/finalizer"
RESOURCE = "kata.peerpods.io/vm"
# Whose PeerPod it is; a node's name is longer than a label's value may be.
NODE_LABEL = "caa.peerpods.io/node"
SANDBOX_ANNOTATION = "caa.peerpods.io/sandbox"
LABEL_LIMIT = 63
NAME_LIMIT = 253


def node_label(cluster: str, node: str) -> str:
    """The label's value of a node: its name, or as much of it as there is room for with a hash of the whole."""
    if len(node) <= LABEL_LIMIT:
        return node
    return f"{node[:46].rstrip('-._')}-{_digest(cluster, node, length=16)}"


def peer_pod_name(sandbox: Sandbox) -> str:
    """`<pod>-resource-<hash>`: the incumbent's form, but always the same for one sandbox, so that there is one."""
    tail = f"-resource-{_digest(sandbox.id, length=10)}"
    return sandbox.pod_name[: NAME_LIMIT - len(tail)].rstrip("-.") + tail


def peer_pod(sandbox: Sandbox, pod_uid: str, cloud: str, instance_id: str) -> dict[str, Any]:
    """A PeerPod, owned by its Pod. `instance_id` is "" until the cloud has given one."""
    return {
        "apiVersion": "confidentialcontainers.org/v1alpha1",
        "kind": "PeerPod",
        "metadata": {
            "name": peer_pod_name(sandbox),
            "namespace": sandbox.pod_namespace,
            "labels": {NODE_LABEL: node_label(sandbox.cluster, sandbox.node)},
            "annotations": {SANDBOX_ANNOTATION: sandbox.id},
            "finalizers": [FINALIZER],
            # Without blockOwnerDeletion, which needs a right on the Pod's finalizers and holds up its deletion.
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": sandbox.pod_name, "uid": pod_uid, "controller": True}
            ],
        },
        "spec": {"cloudProvider": cloud, "instanceID": instance_id},
    }


def event(sandbox: Sandbox, pod_uid: str, told: PodEvent) -> dict[str, Any]:
    """A core/v1 Event of the Pod. It has the name of the ledger's event: it is there once, however often sent."""
    pod = reference("Pod", sandbox.pod_name, sandbox.pod_namespace, pod_uid)
    tail = f".{_digest(sandbox.id, length=10)}{told.source.id or 0:06x}"
    return _event(pod, tail, sandbox.node, told, told.source.at)


def node_event(about: Mapping[str, str], node: str, told: NodeEvent) -> dict[str, Any]:
    """A core/v1 Event of what is referred to."""
    return _event(about, f".{_digest(told.key, length=16)}", node, told, told.at)


def reference(kind: str, name: str, namespace: str = "", uid: str = "") -> dict[str, str]:
    """An object of core/v1 as an event refers to it."""
    found = {"apiVersion": "v1", "kind": kind, "name": name, "namespace": namespace, "uid": uid}
    return {key: value for key, value in found.items() if value}


def _event(
    about: Mapping[str, str], tail: str, node: str, told: PodEvent | NodeEvent, happened: datetime
) -> dict[str, Any]:
    at = timestamp(happened)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": about["name"][: NAME_LIMIT - len(tail)] + tail,
            # Of what has no namespace, events are there.
            "namespace": about.get("namespace", "default"),
        },
        "involvedObject": dict(about),
        "reason": told.reason,
        "message": told.message,
        "type": "Warning" if told.warning else "Normal",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node[:128],
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def timestamp(at: datetime) -> str:
    """RFC 3339 to the second, as `metav1.Time` is written."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _digest(*parts: str, length: int) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:length]
