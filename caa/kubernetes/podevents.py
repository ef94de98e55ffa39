"""A sandbox's trail -> the events its Pod gets. Pure.

The words are a promise to those who alert on them: an event that ends a sandbox has the failure's own word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caa.sandbox import Event

# Ledger's word -> the Pod's.
NORMAL = {"LaunchAccepted": "Launching", "Running": "PodVMRunning", "ImageBuilding": "ImageBuilding"}
WARNINGS = frozenset({"Ignored", "ImageFailed", "ImageMissing", "LeftOut", "Stuck"})
# Of a launch, and of an instance that the cloud accepted and then gave up on.
REFUSED = ("refused", "given-up")
# Of a sandbox that ends as it was asked to.
ASKED_FOR = "StopRequested"
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
        if event.kind == "LaunchIntended":
            reason, message = _chosen(event, refused)
            refused = ""
            warning = False
        elif event.kind in NORMAL:
            reason, message, warning = NORMAL[event.kind], event.message, False
        elif event.data.get("outcome") in REFUSED:
            refused = f"{event.kind}: {event.message}"
            reason, message, warning = "OfferingRefused", refused, True
        elif event.kind in WARNINGS or (event.data.get("state") == "stopping" and event.kind != ASKED_FOR):
            reason, message, warning = event.kind, event.message, True
        else:
            continue
        yield PodEvent(reason, message[:MESSAGE_LIMIT], warning, event)


def _chosen(event: Event, refused: str) -> tuple[str, str]:
    place = ", ".join(str(event.data[key]) for key in ("zone", "market") if event.data.get(key))
    message = event.message + (f" ({place})" if place else "")
    if refused:
        return "FallbackOffering", f"{message}, because the one before was refused: {refused}"
    why = event.data.get("why")
    return "OfferingChosen", f"{message}: {why}" if why else message
