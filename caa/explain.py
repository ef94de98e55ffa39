"""What a pod with these annotations would get now, and why not something else. Pure; nothing is asked of any cloud.

Stands on the same functions as a start, so that it cannot say anything else than what a start does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from caa.errors import CallError
from caa.sizing import (
    MACHINE_TYPE,
    NO_POLICY,
    ImageNotAllowedError,
    Need,
    NoOfferingError,
    Policy,
    Requirements,
    Rule,
    rank,
)
from caa.unavailable import Unavailable, first_covering, passed_over
from providers.base import Offering

RULES = {
    Rule.MACHINE_TYPE: "the pod names its instance type, and gets that or none",
    Rule.GPUS: "the smallest type with the GPUs the pod asks for, and enough vCPUs and memory",
    Rule.SIZE: "the smallest type without GPUs that has the vCPUs and the memory the pod asks for",
    Rule.DEFAULT: "the pod asks for nothing, and gets the default type, or one no smaller where there is none left",
}


@dataclass(frozen=True, slots=True)
class Considered:
    """One offering, with the size it would be asked for."""

    offering: Offering
    order: int  # from 1, in which it is asked for; 0 when it does not do
    price: float | None  # for an hour; None when not known
    refused: str = ""  # why it does not do
    passed_over: str = ""  # why the cloud is not asked for it now


@dataclass(frozen=True, slots=True)
class Explanation:
    """What would be launched, and what became of each offering: those that do in their order, then the others."""

    wanted: Requirements
    image: str
    considered: tuple[Considered, ...]
    ignored: tuple[str, ...]  # wishes that another one outweighs, in sentences
    refusal: CallError | None = None  # why nothing would be launched

    @property
    def chosen(self) -> Considered | None:
        """What would be launched."""
        if self.refusal is not None:
            return None
        return next(one for one in self.considered if one.order and not one.passed_over)


def explain(
    wanted: Requirements,
    offerings: Sequence[Offering],
    policy: Policy = NO_POLICY,
    arch: str = "",
    unavailable: Iterable[Unavailable] = (),
    now: datetime | None = None,
) -> Explanation:
    """Walk through a start without launching. `unavailable` as of `now` is what the cloud refused a moment ago."""
    refusal: CallError | None = None
    try:
        ranked = rank(wanted, offerings, policy, arch)
    except NoOfferingError as error:
        ranked, refusal = [], error
    known = list(unavailable)
    against = [first_covering(known, one, now) if now else None for one in ranked]
    fitting = [
        Considered(one, order, policy.price(one), passed_over=passed_over(last, one, now) if last and now else "")
        for order, (one, last) in enumerate(zip(ranked, against, strict=True), 1)
    ]
    need = Need.of(wanted, offerings, policy, arch)
    others = sorted((one for one in offerings if need.why_not(one)), key=lambda one: (one.instance_type, one.zone))
    if fitting and all(against):
        told = "; ".join(one.passed_over for one in fitting)
        quota = all(last.quota for last in against if last)
        refusal = CallError(f"no offering could be had: {told}", reason="NoQuota" if quota else "NoCapacity")
    try:
        image = policy.image(wanted) or policy.default_image
    except ImageNotAllowedError as error:
        image, refusal = wanted.image, error
    refused = [Considered(one, 0, policy.price(one), refused=need.why_not(one)) for one in others]
    return Explanation(wanted, image, (*fitting, *refused), tuple(ignored(wanted, ranked)), refusal)


def ignored(wanted: Requirements, ranked: Sequence[Offering]) -> Iterable[str]:
    """What the pod asks for that its other wishes outweigh."""
    size = [f"{wanted.vcpus} vCPUs"] * bool(wanted.vcpus) + [f"{wanted.memory_mib} MiB"] * bool(wanted.memory_mib)
    match wanted.rule:
        case Rule.MACHINE_TYPE:
            gpus = [f"{wanted.gpus} GPUs"] * bool(wanted.gpus)
            if gpus + size:
                yield f"{', '.join(gpus + size)}: ignored, because annotation {MACHINE_TYPE} names the type"
        case Rule.DEFAULT if size and not any(one.flexible for one in ranked):
            yield f"{', '.join(size)}: ignored, because 0 vCPUs ask for the default type"
