"""The provider as the rest of the service sees it: asynchronous, bounded, and never abandoned half-way.

A provider call blocks a thread. Cancelling its caller cannot stop the thread, so a cancelled caller here still
waits for the thread's end before the cancellation goes on: whoever cleans up afterwards finds a cloud at rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from caa.clock import Clock
from providers.base import Instance, InstanceState, LaunchRequest, Offering, OwnerScope, Provider, ProviderError

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# Enough to keep a burst of launches busy; each worker is one blocking call and about 8 MiB of stack.
WORKERS = 16
# A list call that fails is repeated after at most this long: an address is of no use to anybody much later.
LIST_RETRY_SECONDS = 5.0

# States from which a pod VM never comes back.
DEAD_STATES = frozenset({InstanceState.STOPPED, InstanceState.FAILED, InstanceState.TERMINATING})


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


@dataclass(slots=True)
class _Waiter:
    instance_id: str
    wanted: Callable[[Instance | None], bool]
    future: asyncio.Future[Instance | None]
    seen: bool = False
    """Until an instance was listed once, its absence says nothing: lists lag behind launches."""


@dataclass(slots=True)
class Cloud:
    """The provider's calls in a bounded thread pool, and one list call for all who wait for an instance."""

    provider: Provider
    scope: OwnerScope
    clock: Clock
    _waiters: list[_Waiter] = field(default_factory=list)
    _watching: asyncio.Task[None] | None = None
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(WORKERS, thread_name_prefix="cloud"))

    async def offerings(self) -> Sequence[Offering]:
        """Everything that may be asked for."""
        return await self._run(self.provider.offerings)

    async def launch(self, request: LaunchRequest) -> Instance:
        """Ask for an instance; returns when the cloud accepted."""
        return await self._run(self.provider.launch, request)

    async def instances(self) -> list[Instance]:
        """Every instance of this node."""
        return await self._run(self.provider.instances, self.scope)

    async def terminate(self, instance_id: str) -> None:
        """Ask for an instance's end."""
        await self._run(self.provider.terminate, instance_id)

    async def discard(self, request: LaunchRequest) -> None:
        """Undo a launch whose outcome is unknown."""
        await self._run(self.provider.discard, request)

    async def address(self, instance: Instance) -> Instance:
        """Wait until the instance has an address, or is dead."""
        if instance.addresses:
            return instance
        found = await self._wait(instance.id, lambda i: i is None or bool(i.addresses) or i.state in DEAD_STATES)
        return _or_gone(found, instance)

    async def death(self, instance: Instance) -> Instance:
        """Wait until the instance is dead or gone."""
        found = await self._wait(instance.id, lambda i: i is None or i.state in DEAD_STATES)
        return _or_gone(found, instance)

    async def close(self) -> None:
        """End the threads; calls under way are waited for."""
        if self._watching:
            self._watching.cancel()
        await asyncio.to_thread(self._pool.shutdown)
        self.provider.close()

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()

        async def in_thread() -> T:
            return await loop.run_in_executor(self._pool, lambda: call(*args, **kwargs))

        return await finish(in_thread())

    async def _wait(self, instance_id: str, wanted: Callable[[Instance | None], bool]) -> Instance | None:
        waiter = _Waiter(instance_id, wanted, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        try:
            return await waiter.future
        finally:
            self._waiters.remove(waiter)

    async def _watch(self) -> None:
        """One list call at a time for all waiters, for as long as there are any."""
        while self._waiters:
            pause = self.provider.watch_interval
            try:
                listed = {instance.id: instance for instance in await self.instances()}
            except ProviderError as error:
                log.warning("instances cannot be listed now: %s", error)
                pause = max(pause, LIST_RETRY_SECONDS)
            else:
                for waiter in self._waiters:
                    found = listed.get(waiter.instance_id)
                    waiter.seen = waiter.seen or found is not None
                    if waiter.seen and not waiter.future.done() and waiter.wanted(found):
                        waiter.future.set_result(found)
            await self.clock.sleep(pause)


def _or_gone(found: Instance | None, known: Instance) -> Instance:
    return found or Instance(id=known.id, name=known.name, state=InstanceState.TERMINATING, owner=known.owner)
