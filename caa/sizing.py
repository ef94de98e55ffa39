"""Annotations + offerings + policy -> ranked offerings, or a refusal that says why. Pure.

The first of the ranked offerings is launched; the others are what a capacity error falls back to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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


class NoOfferingError(CallError):
    """Nothing that may be asked for fits the pod."""

    reason = "NoInstanceType"


@dataclass(frozen=True, slots=True)
class Requirements:
    """What the pod asks for. Zero and "" mean: not specified."""

    machine_type: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    gpus: int = 0
    gpu_model: str = ""
    image: str = ""


def requirements(annotations: Mapping[str, str]) -> Requirements:
    """Read the sizing annotations. Raises InvalidInputError naming the annotation that is no number."""
    return Requirements(
        machine_type=annotations.get(MACHINE_TYPE, "").strip(),
        # The Rust shim sends fractions ("1.5"); a VM has whole vCPUs.
        vcpus=math.ceil(_number(annotations, VCPUS, "a number of vCPUs such as 2 or 1.5", float)),
        memory_mib=int(_number(annotations, MEMORY, "a whole number of MiB such as 2048", int)),
        gpus=int(_number(annotations, GPUS, "a whole number of GPUs", int)),
        gpu_model=annotations.get(GPU_MODEL, "").strip(),
        image=annotations.get(IMAGE, "").strip(),
    )


def rank(wanted: Requirements, offerings: Iterable[Offering]) -> list[Offering]:
    """Every offering that fits, the smallest first: by GPUs, memory, vCPUs, name, market, zone.

    Raises NoOfferingError when none fits, in the words that existing end-to-end tests look for.
    """
    if wanted.machine_type:
        return _of_type(wanted.machine_type, list(offerings))
    fitting = [sized for sized in (_sized(wanted, offering) for offering in offerings) if _fits(wanted, sized)]
    if not fitting:
        raise NoOfferingError(_refusal(wanted))
    return sorted(fitting, key=lambda o: (o.gpus, o.memory_mib, o.vcpus, o.instance_type, *_place(o)))


def _of_type(machine_type: str, offerings: list[Offering]) -> list[Offering]:
    chosen = [o for o in offerings if o.instance_type == machine_type and not o.flexible]
    if not chosen:
        names = ", ".join(sorted({o.instance_type for o in offerings if not o.flexible}))
        raise NoOfferingError(
            f'requested instance type ("{machine_type}") is not part of supported instance types list '
            f"(annotation {MACHINE_TYPE}; supported: {names or 'none, this cloud sizes by vCPUs and memory'})"
        )
    return sorted(chosen, key=_place)


def _place(offering: Offering) -> tuple[bool, str]:
    """Among the same type: spot first where it is offered at all, for it costs less; then the zone."""
    return offering.market is not Market.SPOT, offering.zone


def _sized(wanted: Requirements, offering: Offering) -> Offering:
    if not offering.flexible:
        return offering
    return dataclasses.replace(
        offering,
        vcpus=wanted.vcpus or offering.vcpus,
        memory_mib=wanted.memory_mib or offering.memory_mib,
    )


def _fits(wanted: Requirements, offering: Offering) -> bool:
    return (
        offering.vcpus >= wanted.vcpus
        and offering.memory_mib >= wanted.memory_mib
        and offering.gpus >= wanted.gpus
        and (wanted.gpus > 0 or offering.gpus == 0)
        and (not wanted.gpu_model or wanted.gpu_model == offering.gpu_model)
    )


def _refusal(wanted: Requirements) -> str:
    if wanted.gpus:
        return (
            "failed to get instance type based on GPU, vCPU, and memory annotations: no instance type found for the "
            f"given GPUs ({wanted.gpus}), vCPUs ({wanted.vcpus}), and memory ({wanted.memory_mib})"
        )
    return (
        "failed to get instance type based on vCPU and memory annotations: no instance type found for the "
        f"given vcpus ({wanted.vcpus}) and memory ({wanted.memory_mib})"
    )


def _number(annotations: Mapping[str, str], key: str, allowed: str, kind: type[int] | type[float]) -> float:
    text = annotations.get(key, "").strip()
    if not text:
        return 0
    try:
        value = kind(text)
    except ValueError:
        value = -1
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInputError(key, f"annotation {key} is {text!r}; it must be {allowed}, or 0 for the default")
    return value
