"""User tags of instances: for people and bills, beside everything else. Whose an instance is never depends on them.

The VPC API cannot set them; that is the tagging service's, in a call of its own. So they are attached in the background
to whatever a list shows, all instances of a list in one call, and again after a failure or a restart: attaching
what is attached changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from providers.base import ProviderError

log = logging.getLogger(__name__)

# The most that the tagging service takes in one call.
AT_ONCE = 100
# A right that is missing stays missing for a while, and nothing waits for the tags.
AGAIN_SECONDS = 300.0


class Tagger:
    """One thread, made when first needed. `attach` gets resource names (CRNs), and what raises ProviderError."""

    def __init__(self, attach: Callable[[list[str], list[str]], None], clock: Callable[[], float]) -> None:
        self._attach = attach
        self._clock = clock
        self._lock = threading.Lock()
        self._done: set[str] = set()
        self._not_before = float("-inf")
        self._pool: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def seen(self, crns: Iterable[str], tags: list[str]) -> None:
        """These exist now. Returns at once."""
        there = set(crns)
        with self._lock:
            self._done &= there
            new = sorted(there - self._done)
            busy = self._running is not None and not self._running.done()
            if not new or busy or self._clock() < self._not_before:
                return
            self._pool = self._pool or ThreadPoolExecutor(1, "ibmcloud-tags")
            self._running = self._pool.submit(self._tag, new[:AT_ONCE], tags)

    def close(self) -> None:
        """Wait for the call under way."""
        if self._pool is not None:
            self._pool.shutdown()

    def _tag(self, crns: list[str], tags: list[str]) -> None:
        try:
            self._attach(crns, tags)
        except ProviderError as error:
            log.warning("%d instances are without their user tags: %s", len(crns), error)
            with self._lock:
                self._not_before = self._clock() + AGAIN_SECONDS
        else:
            with self._lock:
                self._done.update(crns)
