"""What the configuration's owner is told: what became of a change, and how far the pod VM image is. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from caa.images.image import ImageState, PodVmImage
from caa.kubernetes.podevents import MESSAGE_LIMIT
from caa.sandbox import Event

# Ledger's word, which is the event's too -> whether it is a warning.
KINDS: Mapping[str, bool] = {"ConfigurationApplied": False, "ConfigurationRefused": True}
# An upload of minutes gets four events.
_STEPS = 4


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """One event of the ConfigMap, or of the Node where the configuration is not watched."""

    reason: str  # stable CamelCase word
    message: str
    warning: bool
    key: str
    """The same for the same event, whoever tells it."""
    at: datetime


def node_events(trail: Iterable[Event], cluster: str) -> Iterator[NodeEvent]:
    """Of the node's own trail, in order."""
    for event in trail:
        if event.kind in KINDS and event.cluster == cluster:
            key = f"{event.cluster}/{event.node}/{event.id}"
            yield NodeEvent(event.kind, event.message[:MESSAGE_LIMIT], KINDS[event.kind], key, event.at)


def image_event(image: PodVmImage) -> NodeEvent | None:
    """How far it is; the same until that is something else. All nodes of a cluster that share a ledger say the same."""
    step = int((image.share or 0.0) * _STEPS)
    match image.state:
        case ImageState.BUILDING if image.retry_at is not None:
            reason, key = "ImageRetried", f"failure {image.failures}"
        case ImageState.BUILDING:
            reason, key = "ImageBuilding", f"{image.attempts} {image.phase} {step}"
        case ImageState.FAILED:
            reason, key = "ImageFailed", f"failed {image.attempts}"
        case ImageState.READY:
            reason, key = "ImageReady", "ready"
        case _:
            return None
    ready = image.state is ImageState.READY
    message = f"pod VMs boot {image.image_id} from now on" if ready else f"the pod VM image {image.told()}"
    warning = reason in ("ImageRetried", "ImageFailed")
    return NodeEvent(reason, message[:MESSAGE_LIMIT], warning, f"{image.cluster}/{image.id}/{key}", image.changed_at)
