"""A pod of the runtime class -> the JSON patch that makes it a peer pod. Pure.

Its VM is sized from what its containers ask for, and they lose it: the worker runs none of them. Instead the pod asks
for one `kata.peerpods.io/vm`, of which each worker has as many as it may have pod VMs.

**LimitRanges.** The API server fills a namespace's defaults in before this webhook is called, so they count for the
size. As this webhook changes the pod, the server then runs its own admission once more, fills the defaults in again,
and checks the range. What it fills in must stay, or a range with a minimum or maximum would refuse the pod: so a pod is
changed once, marked, and left alone when the server calls again. In a namespace with a LimitRange a peer pod
therefore asks its worker for the defaults, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from caa.sizing import GPUS, MEMORY, VCPUS
from caa.webhook.quantity import quantity

VM_RESOURCE = "kata.peerpods.io/vm"
MARK = "kata.peerpods.io/resources"
MARKED = "moved-to-annotations"
GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu")
_MIB = 1 << 20

Json = Mapping[str, Any]
Patch = list[dict[str, Any]]


def patch(pod: Json, runtime_class: str) -> Patch:
    """RFC 6902 operations; none for a pod of another class and for one that was changed before.

    Annotations the user wrote are kept. Raises ValueError for a quantity that is none, naming its container.
    """
    spec = pod.get("spec") or {}
    if spec.get("runtimeClassName") != runtime_class:
        return []
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    if annotations.get(MARK) == MARKED or not spec.get("containers"):
        return []
    ours = {MARK: MARKED} | {name: text for name, text in sizes(spec).items() if name not in annotations}
    return [*_annotated(annotations, ours), *_without_resources(spec)]


def sizes(spec: Json) -> dict[str, str]:
    """The sizing annotations of a pod; none for what no container asks for."""
    vcpus = math.ceil(needed(spec, "cpu"))
    memory_mib = math.ceil(needed(spec, "memory") / _MIB)
    gpus = math.ceil(sum(needed(spec, name) for name in GPU_RESOURCES))
    wanted = {VCPUS: vcpus, MEMORY: memory_mib, GPUS: gpus}
    return {name: str(number) for name, number in wanted.items() if number}


def needed(spec: Json, resource: str) -> Decimal:
    """The most of a resource that the pod uses at once, by the rule of Kubernetes' own scheduler.

    What the pod as a whole asks for, where it says so. Else the containers and sidecars (init containers that restart
    always) together, or one init container with the sidecars that run beside it, if that is more. The overhead
    of the runtime class is not part of it: that is what a pod costs its worker.
    """
    whole = _asked(spec, resource, "the pod")
    if whole is not None:
        return whole
    beside, peak = Decimal(0), Decimal(0)
    for container in spec.get("initContainers") or ():
        amount = _of_container(container, resource)
        if container.get("restartPolicy") == "Always":
            beside += amount
            peak = max(peak, beside)
        else:
            peak = max(peak, beside + amount)
    containers = spec.get("containers") or ()
    return max(peak, beside + sum((_of_container(one, resource) for one in containers), Decimal(0)))


def _of_container(container: Json, resource: str) -> Decimal:
    return _asked(container, resource, f"container {container.get('name')!r}") or Decimal(0)


def _asked(owner: Json, resource: str, name: str) -> Decimal | None:
    """The limit, else the request. None for neither."""
    resources = owner.get("resources") or {}
    for kind in ("limits", "requests"):
        text = (resources.get(kind) or {}).get(resource)
        if text is not None:
            try:
                return max(quantity(text), Decimal(0))
            except ValueError as error:
                raise ValueError(f"{name}, resources.{kind}, {resource}: {error}") from None
    return None


def _annotated(present: Mapping[str, str], ours: Mapping[str, str]) -> Patch:
    if not present:
        return [{"op": "add", "path": "/metadata/annotations", "value": dict(ours)}]
    return [{"op": "add", "path": f"/metadata/annotations/{_escaped(key)}", "value": ours[key]} for key in ours]


def _without_resources(spec: Json) -> Patch:
    """No container asks for anything, and the first for one VM. Claims stay: they name devices of the pod's spec."""
    operations: Patch = []
    if spec.get("resources"):
        operations.append({"op": "remove", "path": "/spec/resources"})
    for kind in ("initContainers", "containers"):
        containers: Sequence[Json] = spec.get(kind) or ()
        for i, container in enumerate(containers):
            resources = container.get("resources") or {}
            left = {"claims": resources["claims"]} if resources.get("claims") else {}
            if kind == "containers" and i == 0:
                left |= {"requests": {VM_RESOURCE: "1"}, "limits": {VM_RESOURCE: "1"}}
            if left != resources:
                operations.append({"op": "add", "path": f"/spec/{kind}/{i}/resources", "value": left})
    return operations


def _escaped(key: str) -> str:
    """As a token of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
