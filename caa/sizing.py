"""Annotations + offerings + policy -> ranked offerings, or a refusal that says why. Pure.

The first of the ranked offerings is launched; the others are what a capacity error falls back to. What decides, in
this order (see `Rule`): the instance type, GPUs, vCPUs and memory, the default. Smallest means: the fewest GPUs, then
the lowest price where prices are known, then the least memory, the fewest vCPUs, the name.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from caa.errors import CallError, InvalidInputError
from providers.base import Market, Offering

PREFIX = "io.katacontainers.config.hypervisor."
POD_NAME = "io.kubernetes.cri.sandbox-name"
POD_NAMESPACE = "io.kubernetes.cri.sandbox-namespace"
MACHINE_TYPE = PREFIX + "machine_type"
VCPUS = PREFIX + "default_vcpus"
MEMORY = PREFIX + "default_memory"
GPUS = PREFIX + "default_gpus"
GPU_MODEL = PREFIX + "default_gpu_model"
IMAGE = PREFIX + "image"

# Beyond any machine, and far below where numbers lose precision; a typing mistake with more digits is told as one.
MOST = 2**31 - 1


class NoOfferingError(CallError):
    """Nothing that may be asked for fits the pod."""

    reason = "NoInstanceType"


class ImageNotAllowedError(CallError):
    """The pod names an image that pods may not choose."""

    reason = "ImageNotAllowed"


class Rule(enum.StrEnum):
    """Which of a pod's wishes decides. The first that holds; the wishes of those after it are ignored."""

    MACHINE_TYPE = "machine_type"
    """The instance type is named: that one, and no other in its place."""

    GPUS = "gpus"
    """GPUs are asked for, by number or model: the smallest type that has them, and enough vCPUs and memory."""

    SIZE = "size"
    """vCPUs, memory or both are asked for: the smallest type that has enough, without GPUs."""

    DEFAULT = "default"
    """Nothing is asked for, or 0 vCPUs: the default type; where the cloud has none left, one that is no smaller."""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the pod asks for. Zero and "" mean: not specified."""

    machine_type: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    gpus: int = 0
    gpu_model: str = ""
    image: str = ""
    no_vcpus: bool = False  # "0" is written beside a memory, rather than nothing

    @property
    def rule(self) -> Rule:
        """Which wish decides."""
        if self.machine_type:
            return Rule.MACHINE_TYPE
        if self.gpus:
            return Rule.GPUS
        # As documented for the incumbent: with 0 vCPUs the memory says nothing either.
        if (self.vcpus or self.memory_mib) and not self.no_vcpus:
            return Rule.SIZE
        return Rule.DEFAULT


@dataclass(frozen=True, slots=True)
class Policy:
    """What the configuration says of every pod."""

    default_type: str = ""  # of a pod that asks for nothing; without one the smallest
    default_image: str = ""
    images: tuple[str, ...] = ()  # that pods may name, beside the default
    prices: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """For an hour, by instance type and market; a market of "" is every one that has no price of its own."""

    def price(self, offering: Offering) -> float | None:
        """For an hour; None when not known."""
        own = self.prices.get((offering.instance_type, offering.market))
        return own if own is not None else self.prices.get((offering.instance_type, ""))

    def image(self, wanted: Requirements) -> str:
        """The image to ask for; "" is the configured one. Raises ImageNotAllowedError."""
        if wanted.image in ("", self.default_image):
            return ""
        if wanted.image not in self.images:
            raise ImageNotAllowedError(
                f'requested image ("{wanted.image}") is not one that pods may choose (annotation {IMAGE}; '
                f"PODVM_IMAGES allows: {', '.join(self.images) or 'none'})"
            )
        return wanted.image


NO_POLICY = Policy()


def requirements(annotations: Mapping[str, str]) -> Requirements:
    """Read the sizing annotations. Raises InvalidInputError naming the annotation that is no number."""
    # The Rust shim sends fractions ("1.5"); a VM has whole vCPUs.
    vcpus = math.ceil(_number(annotations, VCPUS, "a number of vCPUs such as 2 or 1.5", float))
    memory_mib = int(_number(annotations, MEMORY, "a whole number of MiB such as 2048", int))
    gpu_model = annotations.get(GPU_MODEL, "").strip()
    gpus = int(_number(annotations, GPUS, "a whole number of GPUs", int))
    return Requirements(
        machine_type=annotations.get(MACHINE_TYPE, "").strip(),
        vcpus=vcpus,
        memory_mib=memory_mib,
        # A model without a number is one of it: Kata sends a 0 for a number that nobody wrote.
        gpus=gpus or (1 if gpu_model else 0),
        gpu_model=gpu_model,
        image=annotations.get(IMAGE, "").strip(),
        no_vcpus=memory_mib > 0 and vcpus == 0 and bool(annotations.get(VCPUS, "").strip()),
    )


def rank(
    wanted: Requirements, offerings: Iterable[Offering], policy: Policy = NO_POLICY, arch: str = ""
) -> list[Offering]:
    """Every offering that fits, the one to ask for first. `arch` is that of the image; "" when not known.

    The order is total: in whatever order offerings come, the answer is the same. Raises NoOfferingError when none
    fits, in the words that existing end-to-end tests look for.
    """
    offered = list(offerings)
    need = Need.of(wanted, offered, policy, arch)
    why_not = need.why_not
    fitting = [sized(wanted, one) if one.flexible else one for one in offered if not why_not(one)]
    if not fitting:
        raise NoOfferingError(refusal(wanted, offered, policy, need.arch))
    return in_order(fitting, need, policy)


@dataclass(frozen=True, slots=True)
class Need:
    """What an offering must have, whichever rule it comes from."""

    machine_type: str = ""
    first_type: str = ""  # goes before all others
    vcpus: int = 0
    memory_mib: int = 0
    gpus: int = 0  # exactly none, or at least so many
    gpu_model: str = ""  # in lower case
    any_gpus: bool = False
    arch: str = ""

    @staticmethod
    def of(wanted: Requirements, offerings: Sequence[Offering], policy: Policy, arch: str) -> Need:
        """Of a pod, by the rule that decides.

        Where images of several architectures are configured, a pod that names no type runs on that of the default type.
        """
        default = next((one for one in offerings if one.instance_type == policy.default_type), None)
        if wanted.rule is not Rule.MACHINE_TYPE and default is not None:
            arch = arch or default.arch
        match wanted.rule:
            case Rule.MACHINE_TYPE:
                return Need(machine_type=wanted.machine_type, any_gpus=True, arch=arch)
            case Rule.DEFAULT if policy.default_type:
                if default is None:
                    return Need(machine_type=policy.default_type)
                return Need(
                    first_type=default.instance_type,
                    vcpus=default.vcpus,
                    memory_mib=default.memory_mib,
                    gpus=default.gpus,
                    gpu_model=default.gpu_model.lower(),
                    arch=arch,
                )
            case Rule.DEFAULT:
                return Need(arch=arch)
        return Need(
            vcpus=wanted.vcpus,
            memory_mib=wanted.memory_mib,
            gpus=wanted.gpus,
            gpu_model=wanted.gpu_model.lower(),
            arch=arch,
        )

    def why_not(self, offering: Offering) -> str:  # a list of reasons
        """Why an offering does not do; "" when it does."""
        if offering.unusable:
            return offering.unusable
        if self.machine_type and (offering.flexible or offering.instance_type != self.machine_type):
            return f"is not {self.machine_type}"
        if self.arch and offering.arch and offering.arch != self.arch:
            return f"is {offering.arch}, and the image is {self.arch}"
        if offering.gpus < self.gpus:
            return f"has {_count(offering.gpus, 'GPU')} of {self.gpus}"
        if offering.gpus and not self.gpus and not self.any_gpus:
            return f"has {_count(offering.gpus, 'GPU')}, and none is asked for"
        if self.gpu_model and offering.gpu_model.lower() != self.gpu_model:
            return f"has GPUs of the model {offering.gpu_model or 'unknown'}"
        if offering.flexible:  # as large as it is asked to be
            return ""
        if offering.memory_mib < self.memory_mib:
            return f"has {offering.memory_mib} MiB of {self.memory_mib}"
        if offering.vcpus < self.vcpus:
            return f"has {_count(offering.vcpus, 'vCPU')} of {self.vcpus}"
        return ""


def sized(wanted: Requirements, offering: Offering) -> Offering:
    """A flexible offering with the size it is asked for; each number by itself."""
    return dataclasses.replace(
        offering,
        vcpus=wanted.vcpus or offering.vcpus,
        memory_mib=wanted.memory_mib or offering.memory_mib,
    )


def in_order(fitting: Iterable[Offering], need: Need, policy: Policy) -> list[Offering]:
    """The smallest first. Of one type and price spot first, for it costs less where it is offered; then by zone."""
    # A type is offered in several zones, so there are far fewer kinds to put in order than offerings: half the time.
    kinds: dict[tuple[int, int, int, str, bool], list[Offering]] = {}
    for one in sorted(fitting, key=attrgetter("zone")):
        kind = (one.gpus, one.memory_mib, one.vcpus, one.instance_type, one.market is not Market.SPOT)
        kinds.setdefault(kind, []).append(one)

    def key(kind: tuple[int, int, int, str, bool]) -> tuple[bool, int, float, int, int, str, bool]:
        gpus, memory_mib, vcpus, name, on_demand = kind
        price = policy.price(kinds[kind][0])
        # What has no price comes after all that has.
        known = math.inf if price is None else price
        return name != need.first_type, gpus, known, memory_mib, vcpus, name, on_demand

    return [one for kind in sorted(kinds, key=key) for one in kinds[kind]]


def refusal(wanted: Requirements, offered: Sequence[Offering], policy: Policy, arch: str) -> str:
    """Why nothing fits, with what was asked for and the most there is."""
    usable = [one for one in offered if not one.unusable]
    runs = [one for one in usable if not arch or not one.arch or one.arch == arch]
    if usable and not runs:
        have = ", ".join(sorted({one.arch for one in usable}))
        return f"no instance type found that runs the image: it is {arch}, and the supported types are {have}"
    match wanted.rule:
        case Rule.MACHINE_TYPE:
            return _type_refusal(wanted.machine_type, offered, policy, arch)
        case Rule.GPUS:
            model = f" of the model {wanted.gpu_model}" if wanted.gpu_model else ""
            return (
                "failed to get instance type based on GPU, vCPU, and memory annotations: no instance type found for "
                f"the given GPUs ({wanted.gpus}), vCPUs ({wanted.vcpus}), and memory ({wanted.memory_mib}){model}; "
                f"{_largest([one for one in runs if one.gpus], 'type with GPUs')}"
            )
        case Rule.SIZE:
            return (
                "failed to get instance type based on vCPU and memory annotations: no instance type found for the "
                f"given vcpus ({wanted.vcpus}) and memory ({wanted.memory_mib}); "
                f"{_largest([one for one in runs if not one.gpus], 'type without GPUs')}"
            )
    if policy.default_type:
        default = next((one.unusable for one in offered if one.instance_type == policy.default_type), "")
        said = default or "is not to be had here"
        return f'the default instance type ("{policy.default_type}") {said}; {_supported(runs)}'
    return f"no instance type without GPUs is to be had here; {_supported(runs)}"


def _type_refusal(name: str, offered: Sequence[Offering], policy: Policy, arch: str) -> str:
    others = {one.instance_type: one for one in offered if not one.flexible}
    if name in others and all(one.unusable for one in offered if one.instance_type == name):
        return f'requested instance type ("{name}") {others[name].unusable}'
    if name in others:
        return f'requested instance type ("{name}") is {others[name].arch}, and the image is {arch}'
    if others and others.keys() == {policy.default_type}:
        said = f'is not default ("{policy.default_type}") and supported instance types list is empty'
    else:
        said = "is not part of supported instance types list"
    return (
        f'failed to verify instance type: requested instance type ("{name}") {said} '
        f"(annotation {MACHINE_TYPE}; {_supported(offered)})"
    )


def _supported(offered: Iterable[Offering]) -> str:
    names = ", ".join(sorted({one.instance_type for one in offered if not one.flexible}))
    return f"supported: {names or 'none, this cloud sizes by vCPUs and memory'}"


def _largest(offered: Sequence[Offering], what: str) -> str:
    if not offered:
        return f"there is no {what}"
    one = max(offered, key=lambda one: (one.gpus, one.memory_mib, one.vcpus, one.instance_type))
    gpus = f"{_count(one.gpus, 'GPU')}{f' ({one.gpu_model})' if one.gpu_model else ''}, " if one.gpus else ""
    return f"the largest {what} is {one.instance_type} with {gpus}{_count(one.vcpus, 'vCPU')} and {one.memory_mib} MiB"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"


def _number(annotations: Mapping[str, str], key: str, allowed: str, kind: type[int] | type[float]) -> float:
    text = annotations.get(key, "").strip()
    if not text:
        return 0
    try:
        # Python's own spellings of numbers ("1_000", "٣") are nobody else's.
        value = kind(text) if text.isascii() and "_" not in text else -1
    except ValueError:
        value = -1
    if not (math.isfinite(value) and 0 <= value <= MOST):
        shown = text if len(text) <= 100 else text[:100] + "…"
        raise InvalidInputError(key, f"annotation {key} is {shown!r}; it must be {allowed}, or 0 for the default")
    return value
