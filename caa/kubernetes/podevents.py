"""A sandbox's trail -> the events its Pod gets. Pure.

The words are a promise to those who alert on them: an event that ends a sandbox has the failure's own word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caa.sandbox import Event

# Of no use to the owner of a pod: what follows tells the same, or all is well.
QUIET = frozenset(
    {
        "AddressKnown",
        "AgentSocketReopened",
        "Created",
        "Ended",
        "InstanceTerminated",
        "LaunchRepeated",
        "OrphanTerminated",
        "ShimConnected",
        "StartRequested",
        "StopRequested",
        "TerminateFailed",
    }
)
# Ledger's word -> the Pod's; all that is well.
NORMAL = {"LaunchAccepted": "Launching", "Running": "PodVMRunning", "ImageBuilding": "ImageBuilding"}
# Warnings that name an attempt and do not refuse its offering.
OF_ATTEMPT = frozenset({"LeftOut"})
# What the API server takes; it refuses longer ones.
MESSAGE_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class PodEvent:
    """One event of a Pod. `source` is what it tells of, with its id in the ledger."""

    reason: str  # stable CamelCase word
    message: str
    warning: bool
    source: Event


def pod_events(trail: Iterable[Event]) -> Iterator[PodEvent]:
    """What the Pod is told of a whole trail, in order."""
    refused = ""
    for event in trail:
        reason, message, warning = event.kind, event.message, True
        if event.kind in QUIET:
            continue
        if event.kind == "LaunchIntended":
            reason, message, warning = _chosen(event, refused)
            refused = ""
        elif event.kind in NORMAL:
            reason, warning = NORMAL[event.kind], False
        elif event.attempt is not None and event.kind not in OF_ATTEMPT:
            refused = f"{event.kind}: {event.message}"
            reason, message = "OfferingRefused", refused
        yield PodEvent(reason, message[:MESSAGE_LIMIT], warning, event)


def _chosen(event: Event, refused: str) -> tuple[str, str, bool]:
    place = ", ".join(str(event.data[key]) for key in ("zone", "market") if event.data.get(key))
    message = event.message + (f" ({place})" if place else "")
    if refused:
        return "FallbackOffering", f"{message}, because the one before was refused: {refused}", False
    return "OfferingChosen", message, False
