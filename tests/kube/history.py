"""What happened to the objects of the API server's stand-in, in order, for those who watch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kube.selectors import Selector

Object = dict[str, Any]
Key = tuple[str, str, str, str]  # group, plural, namespace, name


@dataclass(frozen=True, slots=True)
class Change:
    """One write. `before` is None for a new object, `after` None for one that is gone."""

    version: int
    key: Key
    before: Object | None
    after: Object | None
    last: Object
    """As it is told when it is gone: its last state, at this version."""


@dataclass
class History:
    """Grows until a test cuts it off."""

    version: int = 0
    oldest: int = 0
    """A watch may start here or later."""
    changes: list[Change] = field(default_factory=list)

    def add(self, key: Key, before: Object | None, after: Object | None) -> str:
        """The new version, which is written into the object, too."""
        self.version += 1
        last = after if after is not None else dict(before or {})
        last["metadata"] = last["metadata"] | {"resourceVersion": str(self.version)}
        self.changes.append(Change(self.version, key, before, after, last))
        return str(self.version)

    def expire(self) -> None:
        """Forget. Whoever saw what there is now is too late as well, as if much had happened elsewhere."""
        self.version += 1
        self.oldest = self.version
        self.changes.clear()

    def since(self, version: int) -> Iterator[Change]:
        """All that is newer, oldest first."""
        first = len(self.changes)
        while first and self.changes[first - 1].version > version:
            first -= 1
        yield from self.changes[first:]


def event(change: Change, chosen: Selector) -> tuple[str, Object] | None:
    """What a watch with that selector is told of a change: an object may come into its sight, or leave it."""
    before = change.before is not None and chosen(change.before)
    after = change.after is not None and chosen(change.after)
    if after:
        return ("MODIFIED" if before else "ADDED"), change.last
    return ("DELETED", change.last) if before else None
