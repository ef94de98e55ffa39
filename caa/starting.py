"""One start: rank the offerings, record an attempt, launch, find the address, reach the agent."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential, wait_random

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.tls import CIPHER_SUITES
from caa.cloud import DEAD_STATES
from caa.directvolumes import pod_uid, read_volumes
from caa.ending import Ending
from caa.errors import CallError, StartFailedError
from caa.explain import RULES, ignored
from caa.ledger import LimitReachedError, StaleWriteError
from caa.logs import about
from caa.node import Node
from caa.podnetwork.errors import PodNetworkError
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
from caa.ttrpc.frames import StatusError
from caa.tunnels import tunnel_failure
from caa.unavailable import first_covering, passed_over, refusal, shown
from providers.base import (
    DeniedError,
    Instance,
    InvalidRequestError,
    Offering,
    OfferingRefusedError,
    ProviderError,
    QuotaError,
    ThrottledError,
    UnavailableError,
    UnknownOutcomeError,
)

log = logging.getLogger(__name__)

# The name every image with its own certificate answers to; it cannot know the VM's name.
FIXED_SERVER_NAME = "podvm-server"
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


class GivenUpError(Exception):
    """The cloud accepted an instance, and then gave up on it; another offering may do."""

    def __init__(self, refusal: OfferingRefusedError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


Notify = Callable[[], Awaitable[None]]


class Starting:
    """Takes sandboxes of this node from created to running, each with the configuration of its beginning."""

    def __init__(self, node: Node, ending: Ending, end_other: Callable[[str, str, str], Awaitable[None]]) -> None:
        self._node = node
        self._ending = ending
        self._end_other = end_other

    async def run(self, sandbox_id: str, notify: Notify) -> Sandbox:
        """Start the sandbox, or begin its end and raise why. Also continues a start that a restart cut off."""
        with about(sandbox_id):
            try:
                with self._node.unchanging() as node:
                    return await Starting(node, self._ending, self._end_other)._run(sandbox_id, notify)
            except Exception as error:
                failed = self._failure(error)
                if failed.reason == "Internal":
                    log.exception("the start failed")
                await self._ending.begin(sandbox_id, failed.reason, str(failed))
                await notify()
                raise failed from error

    async def _run(self, sandbox_id: str, notify: Notify) -> Sandbox:
        node = self._node
        begun = node.clock.monotonic()
        sandbox = await self._set_starting(sandbox_id)
        await self._supersede(sandbox)
        volumes = await pod_volumes(sandbox)
        disk = next((volume for volume in volumes if volume.disk_id), None)
        if disk is not None:
            raise StartFailedError(
                f"the volume {disk.path} is the disk {disk.disk_id} of the cloud, and {node.cloud.name} cannot attach "
                "it to a pod VM",
                reason="VolumesUnsupported",
            )
        await node.reports.before_launch(sandbox)
        refusals: dict[Offering, Refused] = {}
        while True:
            attempt, instance = await self._launch_best(sandbox, refusals)
            await notify()
            await open_agent_socket(node, sandbox, attempt, volumes)
            try:
                timings = await self._reach_agent(sandbox, attempt, instance)
                break
            except GivenUpError as lost:
                await self._clear_for_another(sandbox, attempt, lost.refusal)
                await self._rule_out(attempt.offering, lost.refusal, refusals)
        running = dataclasses.replace(sandbox, state=SandboxState.RUNNING, changed_at=node.clock.now())
        event = node.event(
            sandbox_id,
            "Running",
            f"the agent in {attempt.name} answered",
            attempt=attempt.number,
            state="running",
            seconds=round(node.clock.monotonic() - begun, 3),
            **timings,
            **_place(attempt.offering),
        )
        saved = await node.db(node.ledger.save_sandbox, running, event=event)
        await notify()
        return saved

    async def _set_starting(self, sandbox_id: str) -> Sandbox:
        node = self._node
        sandbox = await node.db(node.ledger.sandbox, sandbox_id)
        assert sandbox is not None
        if sandbox.state is SandboxState.STARTING:
            return sandbox  # continued after a restart
        starting = dataclasses.replace(sandbox, state=SandboxState.STARTING, changed_at=node.clock.now())
        event = node.event(sandbox_id, "StartRequested", "an instance is to be launched", state="starting")
        try:
            return await node.db(node.ledger.start_sandbox, starting, limit=node.limit, event=event)
        except LimitReachedError as error:
            raise limit_reached(error.count, node.limit) from None

    async def _supersede(self, sandbox: Sandbox) -> None:
        """A pod has one sandbox; when a newer one starts, the older one's VM goes at once."""
        node = self._node
        same_pod = await node.db(
            node.ledger.sandboxes,
            cluster=node.scope.cluster,
            node=node.scope.node,
            namespace=sandbox.pod_namespace,
            pod=sandbox.pod_name,
            states=frozenset({SandboxState.CREATED, SandboxState.STARTING, SandboxState.RUNNING}),
        )
        for other in same_pod:
            if other.id != sandbox.id and other.created_at < sandbox.created_at:
                await self._end_other(other.id, "Superseded", f"sandbox {sandbox.id} runs the same pod now")

    async def _clear_for_another(self, sandbox: Sandbox, attempt: Attempt, refusal: OfferingRefusedError) -> None:
        """End an instance that the cloud gave up on, with all that was made for it here."""
        node = self._node
        await node.record(sandbox.id, refusal.reason, str(refusal), attempt=attempt.number, outcome="given-up")
        await node.proxy.close(sandbox.id)
        await node.tunnels.teardown(sandbox)
        await self._still_wanted(sandbox.id)
        async for attempted in self._again_while_repeatable(LAUNCH_RETRY):
            with attempted:
                current = next(
                    one for one in await node.db(node.ledger.attempts, sandbox.id) if one.number == attempt.number
                )
                if current.unsettled:
                    await self._ending.end_attempt(sandbox, current, node.clock.now())

    async def _launch_best(self, sandbox: Sandbox, refusals: dict[Offering, Refused]) -> tuple[Attempt, Instance]:
        """Walk the offerings until one is launched, passing over those that `refusals` has already.

        First finish the attempt that is still open, if any: it asked for what it asked for, whatever is configured now.
        """
        node = self._node
        attempts = await node.db(node.ledger.attempts, sandbox.id)
        open_attempt = next((a for a in attempts if a.unsettled), None)
        if open_attempt is not None:
            await node.cloud.launch_turn()
            launched = await self._launch(sandbox, open_attempt, refusals)
            if launched:
                return launched
        wanted = requirements(sandbox.annotations)
        # One that was built here by its name: it may have been replaced when the attempt has to be made again.
        image = node.policy.image(wanted) or node.built_image()
        offerings = await self._ranked(sandbox.id, wanted, image)
        rule = RULES[wanted.rule]
        for sentence in ignored(wanted, offerings) if not attempts else ():
            await node.record(sandbox.id, "Ignored", sentence)
        number = len(attempts)
        while await self._next_offering(offerings, refusals):
            await node.cloud.launch_turn()
            # While this start waited for its turn, others may have been refused what it was about to ask for.
            offering = await self._next_offering(offerings, refusals)
            if offering is None:
                break
            number += 1
            told = "; ".join(refused.sentence for refused in refusals.values())
            why = f"{rule}; passed over: {told}" if told else rule
            attempt = await self._intend(sandbox, number, offering, image, why)
            launched = await self._launch(sandbox, attempt, refusals)
            if launched:
                return launched
        quota = all(refused.quota for refused in refusals.values())
        told = "; ".join(refused.sentence for refused in refusals.values())
        raise StartFailedError(f"no offering could be had: {told}", reason="NoQuota" if quota else "NoCapacity")

    async def _next_offering(self, offerings: list[Offering], refusals: dict[Offering, Refused]) -> Offering | None:
        """The best one that nothing is known against, noting what is passed over and why."""
        node = self._node
        now = node.clock.now()
        known = await node.db(node.ledger.account.unavailable, node.cloud.account, now)
        for offering in offerings:
            if offering in refusals:
                continue
            against = first_covering(known, offering, now)
            if against is None:
                return offering
            refusals[offering] = Refused(passed_over(against, offering, now), against.quota)
        return None

    async def _intend(self, sandbox: Sandbox, number: int, offering: Offering, image: str, why: str) -> Attempt:
        """Commit the attempt. Only then may the cloud be asked."""
        node = self._node
        name = instance_name(sandbox.pod_name, sandbox.id, number)
        user_data, left_out = pod_user_data(node, sandbox, name, sandbox.pod_network)
        for sentence in left_out:
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
            **_place(offering),
        )
        return await node.db(node.ledger.add_attempt, attempt, sandbox_version=sandbox.version, event=event)

    async def _launch(
        self, sandbox: Sandbox, attempt: Attempt, refusals: dict[Offering, Refused]
    ) -> tuple[Attempt, Instance] | None:
        """Launch and record as one piece, which even a cancelled start finishes. None when another offering may do."""
        try:
            return await finish(self._launch_and_record(sandbox, attempt))
        except OfferingRefusedError as error:
            await self._rule_out(attempt.offering, error, refusals)
            return None

    async def _rule_out(
        self, offering: Offering, error: OfferingRefusedError, refusals: dict[Offering, Refused]
    ) -> None:
        """Note what was refused, for this start and for all others."""
        node = self._node
        refusals[offering] = Refused(f"{shown(offering)}: {error.reason}, {error}", isinstance(error, QuotaError))
        known = refusal(node.cloud.account, offering, error, node.clock.now())
        if known is not None:
            await node.db(node.ledger.account.mark_unavailable, known)

    async def _launch_and_record(self, sandbox: Sandbox, attempt: Attempt) -> tuple[Attempt, Instance]:
        node = self._node
        begun = node.clock.monotonic()
        try:
            instance = await self._launch_patiently(sandbox, attempt)
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
                **_place(attempt.offering),
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
            **_place(attempt.offering),
        )
        return await node.db(node.ledger.save_attempt, accepted, event=event), instance

    async def _launch_patiently(self, sandbox: Sandbox, attempt: Attempt) -> Instance:
        """The turn for the first call has come already. Repeats wait for their own, which a throttled call delays.

        Each call that came to nothing is an event; of a row of equal ones only the first, for it may be a long row.
        """
        node, said = self._node, ""

        def wait(state: RetryCallState) -> float:
            throttled = state.outcome is not None and isinstance(state.outcome.exception(), ThrottledError)
            return 0.0 if throttled else LAUNCH_RETRY(state)

        async for attempted in self._again_while_repeatable(wait):
            if attempted.retry_state.attempt_number > 1:
                await node.cloud.launch_turn()
            with attempted:
                await self._still_wanted(sandbox.id)
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
                            **_place(attempt.offering),
                        )
                    raise
        raise AssertionError("unreachable: the retry ends by returning or raising")

    async def _ranked(self, sandbox_id: str, wanted: Requirements, image: str) -> list[Offering]:
        """What to ask for, the best first.

        A cloud that cannot say at the moment what it has is asked again, until the caller gives up.
        """
        async for attempted in self._again_while_repeatable(LAUNCH_RETRY):
            with attempted:
                await self._still_wanted(sandbox_id)
                cloud = self._node.cloud
                offered = await cloud.offerings()
                return rank(wanted, offered, self._node.policy, await cloud.image_arch(image))
        raise AssertionError("unreachable: the retry ends by returning or raising")

    def _again_while_repeatable(self, wait: Callable[[RetryCallState], float]) -> AsyncRetrying:
        return AsyncRetrying(
            retry=retry_if_exception_type(REPEATABLE), wait=wait, sleep=self._node.clock.sleep, reraise=True
        )

    async def _still_wanted(self, sandbox_id: str) -> None:
        """The caller may be gone for good while the cloud does not answer: nothing was made yet, so stop asking."""
        current = await self._node.db(self._node.ledger.sandbox, sandbox_id)
        if current is None or current.state is not SandboxState.STARTING:
            raise asyncio.CancelledError

    async def _reach_agent(self, sandbox: Sandbox, attempt: Attempt, instance: Instance) -> dict[str, float]:
        """Wait for the address and for the agent behind it; returns the seconds of each phase."""
        node = self._node
        begun = node.clock.monotonic()
        found = await node.cloud.address(instance)
        if found.state in DEAD_STATES:
            raise lost(attempt, found, "it had an address")
        address_seconds = round(node.clock.monotonic() - begun, 3)
        addressed = dataclasses.replace(attempt, addresses=found.addresses)
        event = node.event(
            sandbox.id,
            "AddressKnown",
            f"{attempt.name} has {', '.join(found.addresses)}",
            attempt=attempt.number,
            seconds=address_seconds,
        )
        await node.db(node.ledger.save_attempt, addressed, event=event)
        dial = asyncio.ensure_future(
            node.proxy.connect(sandbox.id, list(found.addresses), node.forwarder_port, node.proxy_timeout)
        )
        death = asyncio.ensure_future(node.cloud.death(found))
        tunnel = asyncio.ensure_future(self._build_tunnel(sandbox, found.addresses))
        try:
            await asyncio.wait((dial, death), return_when=asyncio.FIRST_COMPLETED)
            if tunnel.done():
                tunnel.result()  # why it cannot be built, rather than what came of that
            if not dial.done():
                raise lost(attempt, death.result(), "its agent answered")
            reached = dial.result()
            tunnel_seconds = await tunnel
        except (StatusError, OSError, TimeoutError) as error:
            raise StartFailedError(
                f"the agent of {attempt.name} cannot be reached: {error}", reason="AgentUnreachable"
            ) from error
        finally:
            for task in (dial, death, tunnel):
                task.cancel()
        return {
            "address_seconds": address_seconds,
            "port_open_seconds": round(reached.tcp_seconds, 3),
            "agent_seconds": round(reached.agent_seconds, 3),
            **tunnel_seconds,
        }

    def _price(self, offering: Offering) -> dict[str, float]:
        """For an hour, if it is known."""
        price = self._node.policy.price(offering)
        return {} if price is None else {"price": price}

    async def _build_tunnel(self, sandbox: Sandbox, addresses: Sequence[str]) -> dict[str, float]:
        node = self._node
        if sandbox.pod_network is None:
            return {}
        begun = node.clock.monotonic()
        try:
            await node.tunnels.setup(sandbox, addresses)
        except PodNetworkError as error:
            raise tunnel_failure(error) from error
        return {"tunnel_seconds": round(node.clock.monotonic() - begun, 3)}

    def _failure(self, error: Exception) -> CallError:
        if isinstance(error, CallError):
            return error
        if isinstance(error, ProviderError):
            return StartFailedError(str(error), reason=error.reason)
        if isinstance(error, StaleWriteError):
            return StartFailedError("the sandbox was stopped while it was starting", reason="Stopped")
        return StartFailedError(f"{type(error).__name__}: {error}", reason="Internal")


def _place(offering: Offering) -> dict[str, str]:
    """What was asked for, as events tell it."""
    return {
        "instance_type": offering.instance_type,
        "zone": offering.zone,
        "market": offering.market.value,
    }


def lost(attempt: Attempt, instance: Instance, before: str) -> Exception:
    """Why there is no use in waiting for this instance: another offering may do, or none will."""
    if instance.refusal is not None:
        return GivenUpError(instance.refusal)
    return StartFailedError(f"instance {attempt.name} is {instance.state} before {before}", reason="InstanceLost")


def limit_reached(count: int, limit: int) -> StartFailedError:
    """Why a node with so many pod VMs starts no other."""
    return StartFailedError(
        f"this node has {count} pod VMs, and may have {limit} at once (PEERPODS_LIMIT_PER_NODE)", reason="LimitReached"
    )


async def pod_volumes(sandbox: Sandbox) -> list[CloudVolume]:
    """The CSI volumes that the pod VM is to mount itself. Only where CreateVM tells the pod's UID, as CRI-O does."""
    uid = pod_uid(sandbox.annotations)
    return await asyncio.to_thread(read_volumes, uid) if uid else []


async def open_agent_socket(node: Node, sandbox: Sandbox, attempt: Attempt, volumes: Sequence[CloudVolume]) -> None:
    """Have the proxy listen on the sandbox's agent socket. Also after a restart, with the same keys."""
    await node.proxy.open(
        sandbox.id,
        sandbox.socket_path,
        attempt.name if node.tls.keys else FIXED_SERVER_NAME,
        ca_file=node.tls.ca_file,
        cert_file=node.tls.cert_file,
        key_file=node.tls.key_file,
        tls_min_version=node.tls.profile.min_version,
        tls_ciphers=[name for name in node.tls.profile.cipher_suites if name in CIPHER_SUITES],
        pod_uid=pod_uid(sandbox.annotations) if volumes else "",
        volumes=volumes,
    )
