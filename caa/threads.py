"""Blocking calls in threads, never abandoned half-way.

Cancelling a caller cannot stop a thread. So a cancelled caller here still waits for the thread's end before the
cancellation goes on: whoever cleans up afterwards finds cloud and ledger at rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)
# For `asyncio.to_thread`: reads of files and of the ledger for people, and now and then a check of the configuration.
OTHERS = 3
P = ParamSpec("P")
T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when cancelled meanwhile; the cancellation goes on after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done() and task.cancelled():
                raise
            cancelled = error
        except Exception:  # the task's own, raised again by result() below
            break
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            log.info("a call of a caller who is gone failed: %s", task.exception())
        raise cancelled
    return task.result()


def bound_others() -> None:
    """Give the running event loop its few threads for what has no pool of its own, in place of as many as it likes."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(OTHERS, "others"))


class Threads:
    """A bounded pool of threads for one kind of calls."""

    def __init__(self, workers: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result, or what it raises."""
        loop = asyncio.get_running_loop()

        async def in_thread() -> T:
            return await loop.run_in_executor(self._pool, lambda: call(*args, **kwargs))

        return await finish(in_thread())

    async def close(self) -> None:
        """End the threads; calls under way are waited for."""
        await asyncio.to_thread(self._pool.shutdown)
