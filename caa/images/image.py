"""The pod VM image as the ledger knows it: a row for each image that was ever built, and its builder's lease. Pure.

building --> ready --> retired --> deleting --> deleted
   |  ^        |                      ^
   v  |        +----------------------+
  failed -----------------------------+
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from imagebuilder.steps import STEPS


class ImageState(enum.StrEnum):
    """What an image is."""

    BUILDING = "building"
    """Being made, or waiting for its next try at `retry_at`. There is at most one that is building or failed."""
    FAILED = "failed"
    """Given up. Stays so until somebody asks for another try, or for its end."""
    READY = "ready"
    """The image that pod VMs boot. There is at most one."""
    RETIRED = "retired"
    """A newer one took its place; it is deleted when no sandbox needs it any more."""
    DELETING = "deleting"
    """Nothing may use it; what it brought is being removed."""
    DELETED = "deleted"
    """Gone, with all that it brought. Final."""


OPEN_STATES = frozenset({ImageState.BUILDING, ImageState.FAILED})

_NEXT: Mapping[ImageState, frozenset[ImageState]] = {
    ImageState.BUILDING: frozenset({ImageState.READY, ImageState.FAILED, ImageState.DELETING}),
    ImageState.FAILED: frozenset({ImageState.BUILDING, ImageState.DELETING}),
    ImageState.READY: frozenset({ImageState.RETIRED, ImageState.DELETING}),
    ImageState.RETIRED: frozenset({ImageState.DELETING}),
    ImageState.DELETING: frozenset({ImageState.DELETED}),
    ImageState.DELETED: frozenset(),
}


class IllegalImageTransitionError(Exception):
    """An image may not go from the one state to the other."""


def check_image_transition(old: ImageState, new: ImageState) -> None:
    """Raise IllegalImageTransitionError unless `new` may follow `old`."""
    if new is not old and new not in _NEXT[old]:
        raise IllegalImageTransitionError(f"an image that is {old} cannot become {new}")


@dataclass(frozen=True, slots=True)
class PodVmImage:
    """One image that this cluster built. Sizes in bytes.

    `account` is where it is (such as aws/eu-west-1), `source` what it was made from, without secrets. `resources` maps
    kind to the cloud's id for everything that it brought; `blocks` says which parts of the disk the cloud has.
    `step` is what is done of the phase; `done` of `total` is in bytes, but in steps of the recipe (imagebuilder.steps).
    `attempts` counts how often somebody began to build it, `failures` how often that failed in a row.
    """

    id: str
    cluster: str
    account: str
    source: str
    state: ImageState
    created_at: datetime
    changed_at: datetime
    digest: str = ""
    arch: str = ""
    image_id: str = ""
    phase: str = ""
    step: str = ""
    done: int = 0
    total: int | None = None
    rate: float = 0.0
    resources: Mapping[str, str] = field(default_factory=dict)
    measurements: Mapping[str, str] = field(default_factory=dict)
    blocks: bytes = field(default=b"", repr=False)
    attempts: int = 0
    failures: int = 0
    retry_at: datetime | None = None
    reason: str = ""
    failure: str = ""
    cancelled: bool = False
    version: int = 0

    @property
    def share(self) -> float | None:
        """How much of the phase is done, 0 to 1; None when that cannot be told."""
        return min(self.done / self.total, 1.0) if self.total else None

    @property
    def remaining(self) -> float | None:
        """Seconds until the phase ends at the present rate; None when that cannot be told."""
        return (self.total - self.done) / self.rate if self.total and self.rate > 0 else None

    @property
    def in_bytes(self) -> bool:
        """Whether that is what `done` counts."""
        return self.step not in STEPS

    def told(self) -> str:
        """How far it is, in words that may follow "the pod VM image"."""
        match self.state:
            case ImageState.BUILDING if self.retry_at is not None:
                return f"is being built: it is tried again after {self.reason}: {self.failure}"
            case ImageState.BUILDING:
                words = [self.step or self.phase or "source"]
                if self.share is not None:
                    words.append(f"{self.share * 100:.0f} %")
                if self.remaining is not None:
                    words.append(f"{self.remaining:.0f} s left")
                return f"is being built: {', '.join(words)}"
            case ImageState.FAILED:
                return f"could not be built, {self.reason}: {self.failure}; `caa image retry` tries again"
            case _:
                return f"is {self.state}"


def described(image: PodVmImage) -> dict[str, Any]:
    """An image as programs are told of it, of JSON's types."""
    return {
        "id": image.id,
        "image": image.image_id or None,
        "state": str(image.state),
        "account": image.account,
        "source": image.source,
        "digest": image.digest or None,
        "arch": image.arch or None,
        "phase": image.phase or None,
        "step": image.step or None,
        "percent": None if image.share is None else round(100 * image.share),
        "bytes_done": image.done if image.in_bytes else 0,
        "bytes_total": image.total if image.in_bytes else None,
        "bytes_per_second": round(image.rate) if image.in_bytes else 0,
        "seconds_remaining": None if image.remaining is None else round(image.remaining),
        "attempts": image.attempts,
        "failures": image.failures,
        "retry_at": image.retry_at.isoformat() if image.retry_at else None,
        "reason": image.reason or None,
        "failure": image.failure or None,
        "resources": dict(image.resources),
        "measurements": dict(image.measurements),
        "created_at": image.created_at.isoformat(),
        "changed_at": image.changed_at.isoformat(),
    }


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to build for a cluster, until somebody else has it. `fence` grows with every holder."""

    name: str
    holder: str
    fence: int


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else has the lease, for so many seconds more unless it is renewed."""

    holder: str
    seconds: float
