"""The status of a KataConfig: counters, lists and the InProgress condition. Pure.

Two things differ from OpenShift sandboxed containers 1.5, whose shape this is: a blocked deletion is in progress
(True, not False), and what failed stays told until it does not fail any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from caa.controller.kataconfig import Condition, KataConfig, stamped
from caa.controller.nodes import FAILED, NodeList, Seen
from caa.controller.world import Build, Image, PeerPod

INSTALLING = Condition("True", "Installing", "Performing initial installation of kata-remote on cluster")
UPDATING = Condition("True", "Updating", "Adding and/or removing kata-enabled nodes")
UNINSTALLING = Condition("True", "Uninstalling", "Removing kata from cluster")
DUPLICATE = Condition("False", "DuplicateKataConfig", "")
IDLE = Condition("False", "", "")
# Names in a message: enough to begin with, and short enough for `kubectl describe`.
_NAMES = 5


def failed(message: str) -> Condition:
    """Something does not work, and this says what."""
    return Condition("True", "Failed", message)


def blocked(pods: Sequence[PeerPod]) -> Condition:
    """Of a deletion while pods run."""
    classes = ", ".join(f'"{name}"' for name in sorted({pod.runtime_class for pod in pods}))
    text = (
        f"Existing pods using {classes} RuntimeClass found. Please delete the pods manually for KataConfig deletion to "
        f"proceed: {listed(str(pod) for pod in pods)}"
    )
    return Condition("True", "BlockedByExistingKataPods", text)


def duplicate(honoured: str) -> Condition:
    """Of every KataConfig but the first."""
    text = f"A KataConfig instance already exists ({honoured}); this one is ignored until that is deleted"
    return Condition("False", "DuplicateKataConfig", text)


def of_image(image: Image) -> Condition | None:
    """What the pod VM image has to tell; None when nothing is to be told."""
    match image.build:
        case Build.RUNNING:
            return Condition("True", "PodVMImageJobRunning", f"Creating Pod VM Image: it {image.told}")
        case Build.FAILED:
            return Condition("True", "PodVMImageJobFailed", f"Failed to create Pod VM Image: it {image.told}")
        case Build.UNKNOWN:
            return Condition("Unknown", "PodVMImageJobStatusUnknown", f"Pod VM Image: {image.told}")
        case Build.INCOMPLETE:
            return Condition("True", "ConfigIncomplete", image.told)
    return None


def of_nodes(seen: Iterable[Seen], initial: bool, rolling: bool, held: Mapping[str, Sequence[PeerPod]]) -> Condition:
    """What the nodes have to tell. `held` are nodes that would leave if it were not for these pods."""
    seen = sorted(seen, key=lambda one: one.name)
    broken = [one for one in seen if one.where in FAILED]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        return failed(f"Node {broken[0].name} Degraded: {broken[0].why}{more}")
    if not rolling and all(one.where in (None, NodeList.INSTALLED) for one in seen):
        return IDLE
    if initial:
        return INSTALLING
    waits = "".join(
        f"; {name} leaves when its peer pods are gone: {listed(str(pod) for pod in pods)}"
        for name, pods in sorted(held.items())[:_NAMES]
    )
    return Condition(UPDATING.status, UPDATING.reason, UPDATING.message + waits)


def status(
    config: KataConfig, seen: Iterable[Seen], wanted: int, classes: Iterable[str], condition: Condition, now: datetime
) -> dict[str, Any]:
    """The whole status as it shall be, without what earlier versions wrote. Empty lists are left out.

    `wanted` is the number of labelled nodes that shall run peer pods.
    """
    lists: dict[NodeList, list[str]] = {}
    for one in sorted(seen, key=lambda one: one.name):
        if one.where is not None:
            lists.setdefault(one.where, []).append(one.name)
    counters = {"nodeCount": wanted, "readyNodeCount": len(lists.get(NodeList.INSTALLED, []))}
    return {
        "runtimeClasses": sorted(classes),
        "kataNodes": counters | {name.value: lists[name] for name in NodeList if name in lists},
        "conditions": [stamped(condition, config.condition, now)],
    }


def listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(names[:_NAMES]) + more
