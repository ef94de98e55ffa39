"""How long ago, for people. Pure."""

from __future__ import annotations


def age(seconds: float) -> str:
    """A length of time in its largest unit: 59s, 3m, 5h, 12d. Clocks that disagree give 0s."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"
