"""The provider as the rest of the service sees it: asynchronous, bounded, within the cloud's limits.

Lists and terminations are made once for all who want them. A call that the cloud refuses as one too many makes every
caller of that class wait, on every node.

The provider is exchanged when the configuration changes. Every call uses the one that is current when it is made; a
start asks a view of its own, which keeps the provider of its beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ParamSpec, TypeVar

from caa.clock import Clock
from caa.coalesced import Batch, Look
from caa.errors import UnavailableError
from caa.inuse import InUse
from caa.limiter import Limiter
from caa.threads import Threads
from providers.base import (
    ApiClass,
    Instance,
    InstanceState,
    LaunchRequest,
    MissingError,
    Offering,
    OwnerScope,
    Problem,
    Provider,
    ProviderError,
    Rate,
    ThrottledError,
    UnknownOutcomeError,
)
from providers.base import UnavailableError as CloudUnavailableError

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

# Enough for what clouds take: at EC2's two launches a second, each of two or three seconds, six are under way. With
# these the whole process has 16 threads.
WORKERS = 8
# A list call that fails is repeated after at most this long: an address is of no use to anybody much later.
LIST_RETRY_SECONDS = 5.0

# States from which a pod VM never comes back.
DEAD_STATES = frozenset({InstanceState.STOPPED, InstanceState.FAILED, InstanceState.TERMINATING})


@dataclass(slots=True)
class _Waiter:
    instance_id: str
    wanted: Callable[[Instance | None], bool]
    future: asyncio.Future[Instance | None]
    seen: bool = False
    """Until an instance was listed once, its absence says nothing: lists lag behind launches."""


@dataclass(frozen=True, slots=True)
class ApiCall:
    """A call that is over."""

    api: ApiClass
    outcome: str  # one of OUTCOMES
    seconds: float


OUTCOMES = ("ok", "throttled", "refused", "unavailable", "unknown", "broken")

_OUTCOMES: Mapping[type[ProviderError], str] = {
    CloudUnavailableError: "unavailable",
    UnknownOutcomeError: "unknown",
}


class RestingError(ThrottledError):
    """Not sent: while it waited for a thread the cloud had asked for a rest. It takes another turn."""


class Cloud:
    """One cloud account, for one node."""

    def __init__(self, provider: Provider, scope: OwnerScope, clock: Clock, limiter: Limiter) -> None:
        self.scope = scope
        self._providers = InUse(provider, self._retire)
        self._retired: set[asyncio.Task[None]] = set()
        self._clock = clock
        self._limiter = limiter
        self._threads = Threads(WORKERS, "cloud")
        self._listing = Look(self._list, provider.watch_interval, clock)
        self._endings = Batch(self._terminate, provider.terminate_batch, clock)
        self._waiters: list[_Waiter] = []
        self._watching: asyncio.Task[None] | None = None
        self._rests: dict[ApiClass, float] = {}  # until when, of this process's monotonic clock
        self._root = self
        self.watcher: Callable[[ApiCall], None] = lambda _: None
        """Told of every call when it is over: metrics. Must not raise."""

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[Cloud]:
        """This cloud, asked for offerings and launches by the provider of now whatever is exchanged meanwhile."""
        with self._providers.use() as provider:
            view = copy.copy(self)  # all else is shared: threads, queues, the one list, who waits
            view._providers = InUse(provider, self._retire)
            yield view

    async def examine(self, provider: Provider) -> list[Problem]:
        """What is wrong with a provider that may become this cloud's. Raises ProviderError, UnavailableError.

        A check may launch as a dry run, which EC2 counts as a launch; but a check waits in no queue of launches.
        """
        account = await self._threads.run(lambda: provider.account)
        if account != self.account:
            text = f"would lead to {account}; while the service runs, its VMs are in {self.account}"
            return [Problem("CLOUD_PROVIDER", text)]
        await self._limiter.turn(ApiClass.LAUNCH, queued=False)
        return await self._heeding(ApiClass.LAUNCH, provider.check)

    def exchange(self, provider: Provider) -> None:
        """From now on this one is asked. The old one is closed when nobody uses it any more."""
        self._providers.exchange(provider)

    def _retire(self, provider: Provider) -> None:
        task = asyncio.ensure_future(asyncio.to_thread(provider.close))
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    @property
    def _provider(self) -> Provider:
        return self._providers.current

    @property
    def account(self) -> str:
        """Whose limits, quotas and capacity these are."""
        return self._provider.account

    @property
    def lag(self) -> float:
        """Seconds for which the cloud may not list an instance that it just made."""
        return self._provider.lag

    @property
    def limits(self) -> Mapping[ApiClass, Rate]:
        """What the cloud takes of each class of calls."""
        return self._provider.limits

    @property
    def name(self) -> str:
        """Of the provider."""
        return self._provider.name

    @property
    def user_data_limit(self) -> int:
        """Bytes of user data that the cloud takes."""
        return self._provider.user_data_limit

    @property
    def default_type(self) -> str:
        """The instance type of a pod that asks for none."""
        return self._provider.default_type

    @property
    def default_image(self) -> str:
        """The image that a request without one boots."""
        return self._provider.default_image

    async def image_arch(self, image: str) -> str:
        """The architecture of an image ("": the configured one); "" where any image will do."""
        with self._providers.use() as provider:
            return await self._threads.run(provider.image_arch, image)

    async def offerings(self) -> Sequence[Offering]:
        """Everything that may be asked for."""
        with self._providers.use() as provider:
            return await self._threads.run(provider.offerings)

    async def launch_turn(self) -> None:
        """Wait until one launch may be asked for."""
        await self._limiter.turn(ApiClass.LAUNCH)

    async def launch(self, request: LaunchRequest) -> Instance:
        """Ask for an instance, in one's turn; returns when the cloud accepted."""
        with self._providers.use() as provider:
            return await self._heeding(ApiClass.LAUNCH, provider.launch, request)

    async def instances(self) -> list[Instance]:
        """Every instance of this node, seen after this call began."""
        return await self._listing.fresh()

    async def describe(self, instance_id: str) -> Mapping[str, Any]:
        """The cloud's own description of one instance, in one's turn. Raises ProviderError."""
        await self._limiter.turn(ApiClass.LIST)
        with self._providers.use() as provider:
            return await self._heeding(ApiClass.LIST, provider.describe, instance_id)

    async def terminate(self, instance_id: str, given_up_at: datetime | None = None) -> None:
        """Ask for an instance's end.

        That the cloud does not know it counts from `lag` seconds after `given_up_at` on, the moment from which
        nobody asked for it any more; or at once when that is None, for an instance that was seen.
        """
        try:
            await self._endings.end(instance_id)
        except MissingError as error:
            self._check_lag(given_up_at, error)

    async def discard(self, request: LaunchRequest, given_up_at: datetime) -> None:
        """Undo a launch of which no instance id is known, and that nobody asks for since `given_up_at`.

        To send the launch again would show the instance, too; but it would make one where there was none, and show
        nothing while the cloud has no capacity, or after image or configuration changed. So this only looks, and what
        it does not see counts when it is `lag` seconds old. Should an instance turn up later still, it has its owner
        tags, and is found as one that nobody wants.
        """
        made = [one for one in await self.instances() if one.owner and one.owner.launch == request.owner.launch]
        for instance in made:
            if instance.state is not InstanceState.TERMINATING:
                await self.terminate(instance.id)
        if not made:
            self._check_lag(given_up_at, f"no instance of the launch {request.name!r} is listed")
            with self._providers.use() as provider:
                await self._threads.run(provider.discard, request)

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
        self._listing.close()
        await self._endings.close()
        await self._threads.close()
        if self._retired:
            await asyncio.wait(self._retired)
        self._provider.close()

    async def _list(self) -> list[Instance]:
        await self._limiter.turn(ApiClass.LIST)
        with self._providers.use() as provider:
            return await self._heeding(ApiClass.LIST, provider.instances, self.scope)

    async def _terminate(self, instance_ids: Sequence[str]) -> Mapping[str, ProviderError]:
        await self._limiter.turn(ApiClass.TERMINATE)
        with self._providers.use() as provider:
            failed = await self._heeding(ApiClass.TERMINATE, provider.terminate, instance_ids)
        throttled = next((error for error in failed.values() if isinstance(error, ThrottledError)), None)
        if throttled:
            await self._limiter.refused(ApiClass.TERMINATE, throttled.retry_after)
        return failed

    async def _heeding(self, api: ApiClass, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        begun, outcome = self._clock.monotonic(), "ok"

        def call_or_rest() -> T:
            # Of many that had their turn most wait for a thread; the first one's refusal is for them, too.
            if self._clock.monotonic() < self._rests.get(api, 0.0):
                raise RestingError("Throttled", "the cloud asked for a rest before the call was sent")
            try:
                return call(*args, **kwargs)
            except ThrottledError as error:
                self._rests[api] = self._clock.monotonic() + (error.retry_after or 0.0)
                raise

        try:
            return await self._threads.run(call_or_rest)
        except RestingError:
            outcome = ""
            raise
        except ThrottledError as error:
            outcome = "throttled"
            await self._limiter.refused(api, error.retry_after)
            raise
        except ProviderError as error:
            outcome = _OUTCOMES.get(type(error), "refused")
            raise
        except BaseException:
            outcome = "broken"
            raise
        finally:
            if outcome:
                self._root.watcher(ApiCall(api, outcome, self._clock.monotonic() - begun))

    def _check_lag(self, given_up_at: datetime | None, why: object) -> None:
        if given_up_at is None:
            return
        left = given_up_at + timedelta(seconds=self._provider.lag) - self._clock.now()
        if left > timedelta():
            raise UnknownOutcomeError(
                "NotVisibleYet", f"{why}; that counts in {left.total_seconds():.0f} s, for new instances are shown late"
            )

    async def _wait(self, instance_id: str, wanted: Callable[[Instance | None], bool]) -> Instance | None:
        waiter = _Waiter(instance_id, wanted, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        root = self._root
        if root._watching is None or root._watching.done():
            root._watching = asyncio.create_task(root._watch())
        try:
            return await waiter.future
        finally:
            self._waiters.remove(waiter)

    async def _watch(self) -> None:
        """One list for all waiters, for as long as there are any."""
        while self._waiters:
            asked = list(self._waiters)
            try:
                listed = {instance.id: instance for instance in await self.instances()}
            except (ProviderError, UnavailableError) as error:
                log.warning("instances cannot be listed now: %s", error)
                await self._clock.sleep(LIST_RETRY_SECONDS)
                continue
            for waiter in asked:
                found = listed.get(waiter.instance_id)
                waiter.seen = waiter.seen or found is not None
                if waiter.seen and not waiter.future.done() and waiter.wanted(found):
                    waiter.future.set_result(found)
            # Nothing else to do at once: who waits runs first, and the next list keeps its distance.
            await self._clock.sleep(0)


def _or_gone(found: Instance | None, known: Instance) -> Instance:
    return found or Instance(id=known.id, name=known.name, state=InstanceState.TERMINATING, owner=known.owner)
