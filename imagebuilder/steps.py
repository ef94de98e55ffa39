"""How far the recipe is: its steps, and how much of the whole each of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[str, int, int | None], None]
"""Called with the step, how much of it is done, and all there is if that is known. May raise to end the work.

In bytes of the step; but where the step is one of STEPS, in tenths of a second of all of them, as measured once.
"""

STEPS: Mapping[str, int] = {
    "package lists": 14,
    "download": 8,
    "unpack packages": 58,
    "install the base": 84,
    "install packages": 70,
    "kernel": 20,
    "files": 4,
    "initrd": 12,
    "file system": 14,
    "hash tree": 12,  # with dm-verity only
    "kernel image": 3,
    "disk": 8,
}
"""What the recipe does, in order, and the tenths of a second that it took on two cores with a mirror nearby."""

_TOTAL = sum(STEPS.values())
_BEFORE = {step: sum(list(STEPS.values())[:number]) for number, step in enumerate(STEPS)}


def tell(progress: Progress, step: str, share: float = 0.0) -> None:
    """The step has come to `share` of itself, 0 to 1."""
    progress(step, _BEFORE[step] + int(STEPS[step] * min(share, 1.0)), _TOTAL)
