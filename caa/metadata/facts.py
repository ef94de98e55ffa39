"""What a dialect works with: facts about one pod VM, a request, an answer. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from caa.sandbox import Attempt, Sandbox

FORWARDED = ("x-forwarded-for", "forwarded")
"""A proxy was talked into asking on behalf of somebody else."""


@dataclass(frozen=True, slots=True)
class Facts:
    """One pod VM. `description` is the cloud's own, empty while the cloud has not told it."""

    sandbox: Sandbox
    attempt: Attempt
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The VM's first address; "" before it has one."""
        return self.attempt.addresses[0] if self.attempt.addresses else ""


@dataclass(frozen=True, slots=True)
class Policy:
    """What pods may have. `allow` holds words of `caa.metadata.keys.ALLOWABLE`."""

    allow: frozenset[str] = frozenset()
    hop_limit: int = 1


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request. Names of headers are in lower case; `path` is as it came, without the query."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def segments(self) -> tuple[str, ...]:
        """The parts of the path. Empty ones count for nothing, as with the clouds' own services."""
        return tuple(part for part in self.path.split("/") if part)

    @property
    def forwarded(self) -> bool:
        """Whether it came by way of a proxy."""
        return any(name in self.headers for name in FORWARDED)


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer. `hops` is how far it may travel; 0 is as far as usual."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain"
    headers: tuple[tuple[str, str], ...] = ()
    hops: int = 0


DialectName = Literal["aws", "azure", "ibmcloud"]


class Dialect(Protocol):
    """How one cloud's service speaks, about one pod VM."""

    @property
    def name(self) -> DialectName:
        """Of the cloud whose service it is."""
        ...

    def answer(self, request: Request, now: float) -> Answer:
        """The answer at `now`, seconds since 1970."""
        ...

    def document(self) -> Mapping[str, Any]:
        """All that the pod can read, by path."""
        ...


def text(status: int, body: str) -> Answer:
    """An answer for people."""
    return Answer(status, body.encode())


def as_json(status: int, document: object, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """An answer for programs."""
    return Answer(status, json.dumps(document).encode(), "application/json", headers)


def dig(document: Any, *path: str | int, default: Any = "") -> Any:
    """What is at `path` in JSON that came from outside; `default` where anything on the way is missing or null."""
    for step in path:
        if isinstance(step, str):
            document = document.get(step) if isinstance(document, Mapping) else None
        else:
            document = document[step] if isinstance(document, list) and step < len(document) else None
    return default if document is None else document
