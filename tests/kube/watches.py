"""Watches of the API server's stand-in: a stream of events to one client, until time, the client or a test ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.kube.history import Object, event
from tests.kube.kinds import Kind
from tests.kube.objects import Objects
from tests.kube.refusal import Refusal, gone
from tests.kube.selectors import Selector

# As the real one, about.
BOOKMARK_SECONDS = 60.0
# How soon it is seen that a client has gone.
_LOOK_SECONDS = 0.25
INITIAL_END = "k8s.io/initial-events-end"


@dataclass(eq=False)
class Watch:
    """One stream. `at` is the version that its client has seen."""

    kind: Kind
    namespace: str
    chosen: Selector
    at: int
    bookmarks: bool
    seconds: float
    pending: list[Object] = field(default_factory=list)
    """What is sent before anything new."""
    ended: str = ""
    """`close` or `reset`: how a test has the stream end."""
    bookmark_now: bool = False


class Watches:
    """Those under way. Everything here is done with the server's lock held, except waiting."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._open: list[Watch] = []

    def open(self, objects: Objects, kind: Kind, namespace: str, chosen: Selector, query: dict[str, str]) -> Watch:
        """Begin one. Raises Refusal, 410 for a version that is forgotten."""
        given = query.get("resourceVersion", "")
        initial = query.get("sendInitialEvents") == "true"
        bookmarks = query.get("allowWatchBookmarks") == "true"
        at = number(given)
        if at > objects.history.version:
            raise Refusal(504, f"Too large resource version: {at}, current: {objects.history.version}", retry_after=1)
        pending: list[Object] = []
        if initial or at == 0:
            pending += [{"type": "ADDED", "object": one} for one in objects.list(kind, namespace, chosen)]
            at = objects.history.version
            if initial and bookmarks:
                pending.append(_bookmark(kind, at, {INITIAL_END: "true"}))
        elif at < objects.history.oldest:
            raise gone(given)
        seconds = float(query.get("timeoutSeconds", "0")) or float("inf")
        watch = Watch(kind, namespace, chosen, at, bookmarks, seconds, pending)
        self._open.append(watch)
        return watch

    def close(self, watch: Watch) -> None:
        """It is over."""
        if watch in self._open:
            self._open.remove(watch)

    def count(self, name: str) -> int:
        """How many there are of a kind ("" is any)."""
        return sum(name in ("", one.kind.plural, one.kind.full) for one in self._open)

    def end(self, name: str, how: str) -> None:
        """Have those of a kind end."""
        for one in self._open:
            if name in ("", one.kind.plural, one.kind.full):
                one.ended = how
        self._changed.notify_all()

    def bookmark(self) -> None:
        """Send one to each who wants them."""
        for one in self._open:
            one.bookmark_now = one.bookmarks
        self._changed.notify_all()

    def events(self, objects: Callable[[], Objects], watch: Watch, hung_up: Callable[[], bool]) -> Iterator[Object]:
        """What to send, without the lock held. Ends with `watch.ended` set when it was cut off."""
        begun = told = time.monotonic()
        while True:
            with self._changed:
                found, watch.pending = watch.pending + self._news(objects(), watch), []
                if watch.bookmark_now or (watch.bookmarks and time.monotonic() > told + BOOKMARK_SECONDS):
                    watch.bookmark_now = False
                    found.append(_bookmark(watch.kind, watch.at))
                if not found and not watch.ended:
                    self._changed.wait(min(_LOOK_SECONDS, max(0.0, begun + watch.seconds - time.monotonic())))
            if found:
                told = time.monotonic()
            yield from found
            if watch.ended or hung_up():
                return
            if time.monotonic() >= begun + watch.seconds:
                if watch.bookmarks:
                    yield _bookmark(watch.kind, watch.at)
                return

    def _news(self, objects: Objects, watch: Watch) -> list[Object]:
        if watch.ended or watch.at == objects.history.version:
            return []
        found = []
        for change in objects.history.since(watch.at):
            group, plural, space, _ = change.key
            here = (group, plural) == (watch.kind.group, watch.kind.plural) and watch.namespace in ("", space)
            told = event(change, watch.chosen) if here else None
            if told is not None:
                body = {"apiVersion": watch.kind.api_version, "kind": watch.kind.kind, **told[1]}
                found.append({"type": told[0], "object": body})
        watch.at = objects.history.version
        return found


def number(version: str) -> int:
    """A resourceVersion; 0 for none. Raises Refusal."""
    if not version:
        return 0
    if not version.isdecimal():
        raise Refusal(400, f"invalid resource version {version!r}")
    return int(version)


def _bookmark(kind: Kind, at: int, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    metadata: Object = {"resourceVersion": str(at), "creationTimestamp": None}
    if annotations:
        metadata["annotations"] = annotations
    return {"type": "BOOKMARK", "object": {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata}}
