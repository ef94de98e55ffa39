"""A KataConfig, as it is stored: of today's schema and of every earlier one. Pure.

A field that was published once keeps its type for ever: an object that an earlier version wrote must be valid under
the next definition, or nobody can upgrade. `status.runtimeClass` is the warning: it was a string, then for one release
a list, and has been `runtimeClasses` since. It is read in all three shapes and written in the last one only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

GROUP, VERSION, PLURAL = "kataconfiguration.openshift.io", "v1", "kataconfigs"
IN_PROGRESS = "InProgress"
FINALIZER = "caa.peerpods.io/controller"


@dataclass(frozen=True, slots=True)
class Condition:
    """Of type InProgress. `status` is True, False or Unknown; `since` is RFC 3339, "" where it was never written."""

    status: str
    reason: str
    message: str
    since: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What makes it another one, its message aside."""
        return self.status, self.reason


@dataclass(frozen=True, slots=True)
class KataConfig:
    """One KataConfig. `selector` None chooses every worker."""

    name: str
    uid: str
    version: str
    created: str
    deleting: bool
    finalizers: tuple[str, ...]
    selector: Mapping[str, Any] | None
    peer_pods: bool
    runtime_classes: tuple[str, ...]
    condition: Condition | None
    status: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether it has our finalizer."""
        return FINALIZER in self.finalizers


def read(body: Mapping[str, Any]) -> KataConfig:
    """From the API's JSON, whichever version of the schema wrote it."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return KataConfig(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        version=metadata.get("resourceVersion", ""),
        created=metadata.get("creationTimestamp", ""),
        deleting=bool(metadata.get("deletionTimestamp")),
        finalizers=tuple(metadata.get("finalizers") or ()),
        selector=spec.get("kataConfigPoolSelector"),
        peer_pods=spec.get("enablePeerPods") is True,
        runtime_classes=_runtime_classes(status),
        condition=_condition(status),
        status=status,
    )


def _runtime_classes(status: Mapping[str, Any]) -> tuple[str, ...]:
    """`runtimeClasses`; before it `runtimeClass`, a string (1.4 and earlier) or a list of them (1.5.0)."""
    found: dict[str, None] = {}
    for value in (status.get("runtimeClasses"), status.get("runtimeClass")):
        names = [value] if isinstance(value, str) else value if isinstance(value, list) else []
        found |= {name: None for name in names if isinstance(name, str) and name}
    return tuple(found)


def _condition(status: Mapping[str, Any]) -> Condition | None:
    conditions = status.get("conditions")
    for one in conditions if isinstance(conditions, list) else []:
        if isinstance(one, dict) and one.get("type") == IN_PROGRESS:
            texts = (str(one.get(key) or "") for key in ("status", "reason", "message", "lastTransitionTime"))
            return Condition(*texts)
    return None


def stamped(condition: Condition, before: Condition | None, now: datetime) -> dict[str, str]:
    """The condition as it is stored. `lastTransitionTime` changes when the status does, not whenever it is written."""
    kept = before is not None and before.status == condition.status and before.since
    return {
        "type": IN_PROGRESS,
        "status": condition.status,
        "reason": condition.reason,
        "message": condition.message,
        "lastTransitionTime": kept or now.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
