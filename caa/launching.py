"""One launch: walk the ranked offerings, commit an attempt for each, ask the cloud until one is accepted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from caa.errors import StartFailedError
from caa.explain import RULES, ignored
from caa.node import Node
from caa.poduserdata import pod_user_data
from caa.sandbox import (
    Attempt,
    AttemptState,
    Launched,
    Sandbox,
    SandboxState,
    attempt_token,
    instance_name,
    launch_request,
)
from caa.sizing import Requirements, rank, requirements
from caa.threads import finish
from caa.unavailable import first_covering, passed_over, refusal, shown
from providers.base import (
    DeniedError,
    Instance,
    InvalidRequestError,
    Offering,
    OfferingRefusedError,
    QuotaError,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)

# Asking again with the same token costs nothing but the call; the caller's deadline ends it.
LAUNCH_RETRY = wait_exponential(multiplier=0.25, max=5) + wait_random(0, 0.25)
# The cloud may or may not have acted, or certainly did not: either way the same request is sent again.
REPEATABLE = (ThrottledError, UnavailableError, UnknownOutcomeError)
# What was passed over is told of at most a few dozen offerings; the whole is in `caa explain`.
WHY_LIMIT = 2000
# It will say no for ever.
PERMANENT = (DeniedError, InvalidRequestError)


@dataclasses.dataclass(frozen=True, slots=True)
class Refused:
    """Why one offering was not to be had in this start."""

    sentence: str
    quota: bool  # the account may have no more, rather than the cloud having none


class Launching:
    """The launches of one start. What was refused in one is passed over in the next."""

    def __init__(self, node: Node, sandbox: Sandbox) -> None:
        self._node = node
        self._sandbox = sandbox
        self._refusals: dict[Offering, Refused] = {}

    async def best(self) -> tuple[Attempt, Instance]:
        """Walk the offerings until one is launched, passing over those that were refused before.

        First finish the attempt that is still open, if any: it asked for what it asked for, whatever is configured now.
        """
        node, sandbox = self._node, self._sandbox
        attempts = await node.db(node.ledger.attempts, sandbox.id)
        open_attempt = next((a for a in attempts if a.unsettled), None)
        if open_attempt is not None:
            await node.cloud.launch_turn()
            launched = await self._launch(open_attempt)
            if launched:
                return launched
        wanted = requirements(sandbox.annotations)
        # One that was built here by its name: it may have been replaced when the attempt has to be made again.
        image = node.policy.image(wanted) or node.built_image()
        offerings = await self._ranked(wanted, image)
        rule = RULES[wanted.rule]
        for sentence in ignored(wanted, offerings) if not attempts else ():
            await node.record(sandbox.id, "Ignored", sentence)
        number = len(attempts)
        while await self._next_offering(offerings):
            await node.cloud.launch_turn()
            # While this start waited for its turn, others may have been refused what it was about to ask for.
            offering = await self._next_offering(offerings)
            if offering is None:
                break
            number += 1
            told = "; ".join(refused.sentence for refused in self._refusals.values())
            why = f"{rule}; passed over: {told}" if told else rule
            attempt = await self._intend(number, offering, image, why)
            launched = await self._launch(attempt)
            if launched:
                return launched
        quota = all(refused.quota for refused in self._refusals.values())
        told = "; ".join(refused.sentence for refused in self._refusals.values())
        raise StartFailedError(f"no offering could be had: {told}", reason="NoQuota" if quota else "NoCapacity")

    async def _next_offering(self, offerings: list[Offering]) -> Offering | None:
        """The best one that nothing is known against, noting what is passed over and why."""
        node = self._node
        now = node.clock.now()
        known = await node.db(node.ledger.account.unavailable, node.cloud.account, now)
        for offering in offerings:
            if offering in self._refusals:
                continue
            against = first_covering(known, offering, now)
            if against is None:
                return offering
            self._refusals[offering] = Refused(passed_over(against, offering, now), against.quota)
        return None

    async def _intend(self, number: int, offering: Offering, image: str, why: str) -> Attempt:
        """Commit the attempt. Only then may the cloud be asked."""
        node, sandbox = self._node, self._sandbox
        name = instance_name(sandbox.pod_name, sandbox.id, number)
        auths, without = await node.pull_secrets.of_pod(sandbox)
        user_data, left_out = pod_user_data(node, sandbox, name, sandbox.pod_network, auths)
        for sentence in (*without, *left_out):
            await node.record(sandbox.id, "LeftOut", sentence, attempt=number)
        attempt = Attempt(
            sandbox_id=sandbox.id,
            number=number,
            name=name,
            token=attempt_token(node.scope.cluster, sandbox.id, number),
            offering=offering,
            image=image,
            user_data=user_data,
            state=AttemptState.INTENDED,
            created_at=node.clock.now(),
        )
        event = node.event(
            sandbox.id,
            "LaunchIntended",
            f"{offering.instance_type} with {offering.vcpus} vCPUs and {offering.memory_mib} MiB is asked for",
            attempt=number,
            why=why[:WHY_LIMIT],
            image=image or node.cloud.default_image,
            **self._price(offering),
            **place(offering),
        )
        return await node.db(node.ledger.add_attempt, attempt, sandbox_version=sandbox.version, event=event)

    async def _launch(self, attempt: Attempt) -> tuple[Attempt, Instance] | None:
        """Launch and record as one piece, which even a cancelled start finishes. None when another offering may do."""
        try:
            return await finish(self._launch_and_record(attempt))
        except OfferingRefusedError as error:
            await self.rule_out(attempt.offering, error)
            return None

    async def rule_out(self, offering: Offering, error: OfferingRefusedError) -> None:
        """Note what was refused, for this start and for all others."""
        node = self._node
        self._refusals[offering] = Refused(f"{shown(offering)}: {error.reason}, {error}", isinstance(error, QuotaError))
        known = refusal(node.cloud.account, offering, error, node.clock.now())
        if known is not None:
            await node.db(node.ledger.account.mark_unavailable, known)

    async def _launch_and_record(self, attempt: Attempt) -> tuple[Attempt, Instance]:
        node, sandbox = self._node, self._sandbox
        begun = node.clock.monotonic()
        try:
            instance = await self._launch_patiently(attempt)
        except (OfferingRefusedError, *PERMANENT) as error:
            refused = dataclasses.replace(
                attempt, state=AttemptState.REFUSED, error_reason=error.reason, error=str(error)
            )
            event = node.event(
                sandbox.id,
                error.reason,
                str(error),
                attempt=attempt.number,
                outcome="refused",
                request_id=error.request_id,
                seconds=round(node.clock.monotonic() - begun, 3),
                **place(attempt.offering),
            )
            await node.db(node.ledger.save_attempt, refused, event=event)
            raise
        accepted = dataclasses.replace(
            attempt,
            state=AttemptState.ACCEPTED,
            instance_id=instance.id,
            addresses=instance.addresses,
            launched=Launched(instance.instance_type, instance.image, instance.groups),
        )
        if attempt.state is AttemptState.ACCEPTED:  # continued after a restart; it was recorded then
            return attempt, instance
        event = node.event(
            sandbox.id,
            "LaunchAccepted",
            f"the cloud accepted instance {attempt.name}",
            attempt=attempt.number,
            instance=instance.id,
            outcome="accepted",
            request_id=instance.request_id,
            seconds=round(node.clock.monotonic() - begun, 3),
            **place(attempt.offering),
        )
        return await node.db(node.ledger.save_attempt, accepted, event=event), instance

    async def _launch_patiently(self, attempt: Attempt) -> Instance:
        """The turn for the first call has come already. Repeats wait for their own, which a throttled call delays.

        Each call that came to nothing is an event; of a row of equal ones only the first, for it may be a long row.
        """
        node, sandbox, said = self._node, self._sandbox, ""

        def wait(state: RetryCallState) -> float:
            throttled = state.outcome is not None and isinstance(state.outcome.exception(), ThrottledError)
            return 0.0 if throttled else LAUNCH_RETRY(state)

        async for attempted in again_while_repeatable(node, wait):
            if attempted.retry_state.attempt_number > 1:
                await node.cloud.launch_turn()
            with attempted:
                await still_wanted(node, sandbox.id)
                begun = node.clock.monotonic()
                try:
                    return await node.cloud.launch(launch_request(sandbox, attempt))
                except REPEATABLE as error:
                    if error.reason != said:
                        said = error.reason
                        await node.record(
                            sandbox.id,
                            "LaunchRepeated",
                            f"the launch is asked for again: {error}",
                            attempt=attempt.number,
                            outcome="unknown" if isinstance(error, UnknownOutcomeError) else "repeated",
                            reason=error.reason,
                            request_id=error.request_id,
                            seconds=round(node.clock.monotonic() - begun, 3),
                            **place(attempt.offering),
                        )
                    raise
        raise AssertionError("unreachable: the retry ends by returning or raising")

    async def _ranked(self, wanted: Requirements, image: str) -> list[Offering]:
        """What to ask for, the best first.

        A cloud that cannot say at the moment what it has is asked again, until the caller gives up.
        """
        node = self._node
        async for attempted in again_while_repeatable(node, LAUNCH_RETRY):
            with attempted:
                await still_wanted(node, self._sandbox.id)
                offered = await node.cloud.offerings()
                return rank(wanted, offered, node.policy, await node.cloud.image_arch(image))
        raise AssertionError("unreachable: the retry ends by returning or raising")

    def _price(self, offering: Offering) -> dict[str, float]:
        """For an hour, if it is known."""
        price = self._node.policy.price(offering)
        return {} if price is None else {"price": price}


def again_while_repeatable(node: Node, wait: Callable[[RetryCallState], float]) -> AsyncRetrying:
    """Repeat what the cloud may answer otherwise the next time; the caller's deadline ends it."""
    return AsyncRetrying(retry=retry_if_exception_type(REPEATABLE), wait=wait, sleep=node.clock.sleep, reraise=True)


async def still_wanted(node: Node, sandbox_id: str) -> None:
    """The caller may be gone for good while the cloud does not answer: nothing was made yet, so stop asking."""
    current = await node.db(node.ledger.sandbox, sandbox_id)
    if current is None or current.state is not SandboxState.STARTING:
        raise asyncio.CancelledError


def place(offering: Offering) -> dict[str, str]:
    """What was asked for, as events tell it."""
    return {
        "instance_type": offering.instance_type,
        "zone": offering.zone,
        "market": offering.market.value,
    }
