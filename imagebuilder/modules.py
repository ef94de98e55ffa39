"""Choosing kernel modules, always with what they depend on: a driver without its helper loads as little as none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from imagebuilder.tools import BuildError


def below(entry: str, path: str) -> bool:
    """Chooses by place: an entry is a file or a directory below the release's `kernel` directory."""
    return path == f"kernel/{entry}" or path.startswith(f"kernel/{entry}/")


def named(entry: str, path: str) -> bool:
    """Chooses by the name that modprobe takes."""
    return Path(path).name.removesuffix(".ko").replace("-", "_") == entry


def choose(modules: Path, entries: Iterable[str], matches: Callable[[str, str], bool], source: str) -> list[str]:
    """Paths, relative to the release's directory `modules`, of every chosen module and all it depends on.

    `modules` must hold depmod's list of the whole kernel package, or dependencies go unseen. Raises BuildError
    naming an entry of the list `source` that chooses nothing.
    """
    depends: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        depends[path] = needed.split()
    chosen: dict[str, None] = {}
    for entry in entries:
        found = [path for path in depends if matches(entry, path)]
        if not found:
            raise BuildError(f"{source}: the kernel package has no {entry}")
        for path in found:
            chosen |= dict.fromkeys([path, *depends[path]])
    return list(chosen)
