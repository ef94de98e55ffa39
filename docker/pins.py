"""Prints the part of requirements.lock that some extras need, hashes included: `pins.py EXTRA...`, in the checkout.

The lock file holds all extras, and says of each package "via" which others it is there. pip takes hashes only for whole
lists of exact versions, so a part of the lock must be closed under that relation.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

_ENTRY = re.compile(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def part(lock: str, roots: Iterable[str]) -> str:
    """The entries of `lock` that the packages `roots` need. Raises KeyError for a root that the lock does not have."""
    entries: dict[str, list[str]] = {}
    needs: dict[str, set[str]] = {}
    name = ""
    for line in lock.splitlines():
        if start := _ENTRY.match(line):
            name = normal(start[1])
            entries[name] = []
        elif line.lstrip().startswith("#"):
            via = _NAME.search(line.replace("# via", "#"))
            if via and name:
                needs.setdefault(normal(via[0]), set()).add(name)
            continue
        if name:
            entries[name].append(line)
    wanted: set[str] = set()
    todo = [normal(root) for root in roots]
    while todo:
        one = todo.pop()
        if one not in wanted:
            entries[one]  # a root without an entry
            wanted.add(one)
            todo.extend(needs.get(one, ()))
    return "".join(f"{line}\n" for name in sorted(wanted) for line in entries[name])


def normal(name: str) -> str:
    """A package's name in its one spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """See the module."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lists = [project["dependencies"], *(extras[extra] for extra in sys.argv[1:])]
    roots = [match[0] for text in (one for each in lists for one in each) if (match := _NAME.match(text))]
    sys.stdout.write(part(Path("requirements.lock").read_text(), roots))


if __name__ == "__main__":
    main()
