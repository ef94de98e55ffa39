"""The end of a sandbox: record it first, then remove everything it brought, for as long as that takes."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Coroutine
from datetime import datetime

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from caa.errors import UnavailableError
from caa.ledger import StaleWriteError
from caa.node import Node
from caa.podnetwork.errors import PodNetworkError
from caa.sandbox import FINAL_STATES, Attempt, AttemptState, Sandbox, SandboxState, launch_request
from caa.ttrpc.frames import StatusError
from providers.base import ProviderError

log = logging.getLogger(__name__)

# A first repeat soon, since most refusals pass at once; ten seconds apart in the end, for lists and terminations are
# shared by all who repeat them.
RETRY = wait_exponential(multiplier=0.5, max=10) + wait_random(0, 0.5)
PASSING = (ProviderError, UnavailableError, StaleWriteError, StatusError, PodNetworkError, OSError, TimeoutError)


class Ending:
    """Ends sandboxes of this node. Clean-ups run in the background, one for each sandbox."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._said: dict[tuple[str, int], str] = {}
        """By sandbox and attempt: why its instance could not be ended the last time, so that it is told once."""

    @property
    def cleaning_here(self) -> frozenset[str]:
        """Sandboxes this process is removing."""
        return frozenset(self._tasks)

    async def begin(self, sandbox_id: str, reason: str, message: str) -> Sandbox | None:
        """Record that the sandbox ends, with its failure if there is one. Returns its row; None if unknown.

        A sandbox that is ending or has ended is left as it is.
        """
        node = self._node
        while True:
            sandbox = await node.db(node.ledger.sandbox, sandbox_id)
            if sandbox is None or (sandbox.cluster, sandbox.node) != (node.scope.cluster, node.scope.node):
                return None
            if sandbox.state in FINAL_STATES or sandbox.state is SandboxState.STOPPING:
                return sandbox
            ending = dataclasses.replace(
                sandbox,
                state=SandboxState.STOPPING,
                changed_at=node.clock.now(),
                failure_reason=reason,
                failure=message,
            )
            event = node.event(
                sandbox_id, reason or "StopRequested", message or "the sandbox is to stop", state="stopping"
            )
            try:
                return await node.db(node.ledger.save_sandbox, ending, event=event)
            except StaleWriteError:
                continue  # somebody else wrote first: look again

    def clean_up_soon(self, sandbox_id: str, after: asyncio.Task[Sandbox] | None = None) -> None:
        """Remove what the sandbox brought, in the background, once `after` has let go of it."""
        if sandbox_id not in self._tasks:
            self._spawn(sandbox_id, self._clean_up_after(sandbox_id, after))

    def abandon_soon(self, sandbox_id: str, after: asyncio.Task[Sandbox]) -> None:
        """The callers of a start are gone: end the sandbox, then clean up."""
        if sandbox_id not in self._tasks:
            self._spawn(sandbox_id, self._abandon(sandbox_id, after))

    async def close(self) -> None:
        """Leave the rest to the next process."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _spawn(self, sandbox_id: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks[sandbox_id] = task

        def done(ended: asyncio.Task[None]) -> None:
            self._tasks.pop(sandbox_id, None)
            if not ended.cancelled() and ended.exception() is not None:
                log.error(
                    "clean-up of sandbox %s broke off; it will be tried again", sandbox_id, exc_info=ended.exception()
                )

        task.add_done_callback(done)

    async def _abandon(self, sandbox_id: str, after: asyncio.Task[Sandbox]) -> None:
        async for attempt in self._patiently(sandbox_id):
            with attempt:
                await self.begin(
                    sandbox_id, "CallerGone", "the caller of StartVM went away before the pod VM was ready"
                )
        await self._clean_up_after(sandbox_id, after)

    async def _clean_up_after(self, sandbox_id: str, after: asyncio.Task[Sandbox] | None) -> None:
        if after is not None and not after.done():
            await asyncio.wait([after])
        let_go = self._node.clock.now() if after is not None else None
        async for attempt in self._patiently(sandbox_id):
            with attempt:
                await self._clean_up(sandbox_id, let_go)

    def _patiently(self, sandbox_id: str) -> AsyncRetrying:
        def say(state: RetryCallState) -> None:
            error = state.outcome.exception() if state.outcome else None
            log.warning("removing what sandbox %s brought failed, trying again: %s", sandbox_id, error)

        return AsyncRetrying(
            retry=retry_if_exception_type(PASSING), wait=RETRY, sleep=self._node.clock.sleep, before_sleep=say
        )

    async def _clean_up(self, sandbox_id: str, let_go: datetime | None) -> None:
        """`let_go`: when the start in this process ended, if there was one. It may have launched until then."""
        node = self._node
        sandbox = await node.db(node.ledger.sandbox, sandbox_id)
        if sandbox is None or sandbox.state is not SandboxState.STOPPING:
            return
        await node.proxy.close(sandbox_id)
        for attempt in await node.db(node.ledger.attempts, sandbox_id):
            if attempt.unsettled:
                await self.end_attempt(sandbox, attempt, let_go or sandbox.changed_at)
        await node.tunnels.teardown(sandbox)
        final = SandboxState.FAILED if sandbox.failure_reason else SandboxState.STOPPED
        ended = dataclasses.replace(sandbox, state=final, changed_at=node.clock.now())
        event = node.event(sandbox_id, "Ended", f"nothing of the sandbox is left; it {final}", state=final.value)
        await node.db(node.ledger.save_sandbox, ended, event=event)

    async def _say_not_ended(self, sandbox: Sandbox, attempt: Attempt, error: ProviderError, seconds: float) -> None:
        """An end that is tried again and again is told when its reason is a new one."""
        key = (sandbox.id, attempt.number)
        if self._said.get(key) == error.reason:
            return
        self._said[key] = error.reason
        await self._node.record(
            sandbox.id,
            "TerminateFailed",
            f"{attempt.name} is not ended yet, and it is tried again: {error}",
            attempt=attempt.number,
            instance=attempt.instance_id,
            outcome="repeated",
            reason=error.reason,
            request_id=error.request_id,
            seconds=round(seconds, 3),
        )

    async def end_attempt(self, sandbox: Sandbox, attempt: Attempt, given_up_at: datetime) -> None:
        """Ask for the end of whatever the attempt made, and record it. Raises what `Cloud.terminate` raises."""
        node = self._node
        begun = node.clock.monotonic()
        try:
            if attempt.instance_id:
                await node.cloud.terminate(attempt.instance_id, given_up_at)
                message = f"instance {attempt.name} was terminated"
            else:
                await node.cloud.discard(launch_request(sandbox, attempt), given_up_at)
                message = f"whatever the launch of {attempt.name} made was removed"
        except ProviderError as error:
            await self._say_not_ended(sandbox, attempt, error, node.clock.monotonic() - begun)
            raise
        self._said.pop((sandbox.id, attempt.number), None)
        event = node.event(
            sandbox.id,
            "InstanceTerminated",
            message,
            attempt=attempt.number,
            instance=attempt.instance_id,
            outcome="ended",
            seconds=round(node.clock.monotonic() - begun, 3),
        )
        ended = dataclasses.replace(attempt, state=AttemptState.ENDED)
        await node.db(node.ledger.save_attempt, ended, event=event)
        if await node.db(node.ledger.account.forget_quota, node.cloud.account):
            log.info("an instance less: quotas that were used up are asked for again")
