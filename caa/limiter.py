"""Waiting for one's turn to call a cloud: one queue a node, one bucket for all nodes that share the ledger."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from caa.clock import Clock
from caa.threads import Threads
from providers.base import ApiClass, Rate

# After a pause others may have taken the token one waited for, or the pause may be over early; look again by then.
LONGEST_SLEEP = 5.0


class Buckets(Protocol):
    """Where the buckets are kept: the ledger's AccountStore, which says what each method does."""

    def take_token(self, name: str, rate: Rate, now: datetime) -> float: ...

    def call_refused(self, name: str, rate: Rate, now: datetime, retry_after: float | None) -> None: ...


class Limiter:
    """Keeps the calls of one cloud account below what the cloud takes."""

    def __init__(
        self, buckets: Buckets, threads: Threads, clock: Clock, account: str, limits: Mapping[ApiClass, Rate]
    ) -> None:
        self._buckets = buckets
        self._threads = threads
        self._clock = clock
        self._account = account
        self._limits = limits
        # In the order of their coming; only the first of them asks the ledger, however many wait.
        self._queues = {api: asyncio.Lock() for api in ApiClass}
        self.waiting = dict.fromkeys(ApiClass, 0)
        """How many calls of each class wait for their turn."""
        self.watcher: Callable[[ApiClass, float], None] = lambda _, __: None
        """Told how many seconds a call waited for its turn: metrics. Must not raise."""

    async def turn(self, api: ApiClass, *, queued: bool = True) -> None:
        """Wait until one call of this class may be made. Raises UnavailableError when the ledger cannot be used.

        Who is not `queued` waits for a token beside the first of the queue, not behind the last.
        """
        rate = self._limits.get(api)
        if rate is None:
            return
        begun = self._clock.monotonic()
        self.waiting[api] += 1
        try:
            async with self._queues[api] if queued else contextlib.nullcontext():
                while wait := await self._threads.run(
                    self._buckets.take_token, self.name(api), rate, self._clock.now()
                ):
                    await self._clock.sleep(min(wait, LONGEST_SLEEP))
        finally:
            self.waiting[api] -= 1
        self.watcher(api, self._clock.monotonic() - begun)

    async def refused(self, api: ApiClass, retry_after: float | None) -> None:
        """The cloud said "too many": everybody waits, on every node."""
        rate = self._limits.get(api)
        if rate is not None:
            await self._threads.run(self._buckets.call_refused, self.name(api), rate, self._clock.now(), retry_after)

    def name(self, api: ApiClass) -> str:
        """Of the bucket of these calls."""
        return f"{self._account} {api}"
