"""Calls made once for all who want the same at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice
from typing import Generic, TypeVar

from caa.clock import Clock
from providers.base import ProviderError

T = TypeVar("T")

# Stops come in crowds (a drained node, a scaled-down deployment). A tenth of a second is nothing to the end of a VM.
WINDOW_SECONDS = 0.1
# So many who waited are told before others have a turn: hundreds at once held up the event loop.
AT_ONCE = 25


class Look(Generic[T]):
    """One look at a time, none sooner after another than `interval` seconds. Who asks during one gets the next.

    So whatever one did before asking, the answer was given after it.
    """

    def __init__(self, look: Callable[[], Awaitable[T]], interval: float, clock: Clock) -> None:
        self._look = look
        self._interval = interval
        self._clock = clock
        self._began = -interval
        self._next: asyncio.Future[T] | None = None
        self._task: asyncio.Task[None] | None = None

    async def fresh(self) -> T:
        """What a look that began after this call saw. Raises what the look raised."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._serve())
        return await asyncio.shield(self._next)

    def close(self) -> None:
        """End it; who still waits waits for ever."""
        if self._task is not None:
            self._task.cancel()

    async def _serve(self) -> None:
        while self._next is not None:
            await self._clock.sleep(max(0.0, self._began + self._interval - self._clock.monotonic()))
            waiting, self._next = self._next, None
            self._began = self._clock.monotonic()
            try:
                waiting.set_result(await self._look())
            except Exception as error:
                waiting.set_exception(error)
                waiting.exception()  # whoever asked may be gone; that is no reason for a warning


class Batch:
    """Ends instances, as many in one call as the provider takes."""

    def __init__(
        self, end: Callable[[Sequence[str]], Awaitable[Mapping[str, ProviderError]]], most: int, clock: Clock
    ) -> None:
        self._end = end
        self._most = most
        self._clock = clock
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def end(self, instance_id: str) -> None:
        """Ask for its end. Raises ProviderError. The call is made even if the caller goes meanwhile."""
        future = self._waiting.get(instance_id)
        if future is None:
            future = self._waiting[instance_id] = asyncio.get_running_loop().create_future()
            if len(self._waiting) == 1 or self._most == 1:
                task = asyncio.create_task(self._send())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        await asyncio.shield(future)

    async def close(self) -> None:
        """Wait for the calls under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _send(self) -> None:
        if self._most > 1:
            await self._clock.sleep(WINDOW_SECONDS)
        while self._waiting:
            batch = {one: self._waiting.pop(one) for one in list(islice(self._waiting, self._most))}
            try:
                failed = await self._end(list(batch))
            except Exception as error:
                for future in batch.values():
                    _fail(future, error)
                continue
            for number, (instance_id, future) in enumerate(batch.items(), 1):
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
                if instance_id in failed:
                    _fail(future, failed[instance_id])
                else:
                    future.set_result(None)


def _fail(future: asyncio.Future[None], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # whoever asked may be gone
