"""One start: launch an instance, find its address, reach the agent; another one when the cloud gives up on it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Sequence

from caa.agentproxy.messages import CloudVolume
from caa.agentproxy.tls import CIPHER_SUITES
from caa.cloud import DEAD_STATES
from caa.directvolumes import pod_uid, read_volumes
from caa.ending import Ending
from caa.errors import CallError, StartFailedError
from caa.launching import LAUNCH_RETRY, Launching, again_while_repeatable, place, still_wanted
from caa.ledger import LimitReachedError, StaleWriteError
from caa.logs import about
from caa.node import Node
from caa.podnetwork.errors import PodNetworkError
from caa.sandbox import Attempt, Sandbox, SandboxState
from caa.ttrpc.frames import StatusError
from caa.tunnels import tunnel_failure
from providers.base import Instance, OfferingRefusedError, ProviderError

log = logging.getLogger(__name__)

# The name every image with its own certificate answers to; it cannot know the VM's name.
FIXED_SERVER_NAME = "podvm-server"


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
        launching = Launching(node, sandbox)
        while True:
            attempt, instance = await launching.best()
            await notify()
            await open_agent_socket(node, sandbox, attempt, volumes)
            try:
                timings = await self._reach_agent(sandbox, attempt, instance)
                break
            except GivenUpError as lost:
                await self._clear_for_another(sandbox, attempt, lost.refusal)
                await launching.rule_out(attempt.offering, lost.refusal)
        running = dataclasses.replace(sandbox, state=SandboxState.RUNNING, changed_at=node.clock.now())
        event = node.event(
            sandbox_id,
            "Running",
            f"the agent in {attempt.name} answered",
            attempt=attempt.number,
            state="running",
            seconds=round(node.clock.monotonic() - begun, 3),
            **timings,
            **place(attempt.offering),
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
        event = node.event(
            sandbox_id,
            "StartRequested",
            "an instance is to be launched",
            state="starting",
            pod_namespace=sandbox.pod_namespace,
            pod_name=sandbox.pod_name,
        )
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
        await still_wanted(node, sandbox.id)
        async for attempted in again_while_repeatable(node, LAUNCH_RETRY):
            with attempted:
                current = next(
                    one for one in await node.db(node.ledger.attempts, sandbox.id) if one.number == attempt.number
                )
                if current.unsettled:
                    await self._ending.end_attempt(sandbox, current, node.clock.now())

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


def lost(attempt: Attempt, instance: Instance, before: str) -> Exception:
    """Why there is no use in waiting for this instance: another offering may do, or none will."""
    if isinstance(instance.refusal, OfferingRefusedError):
        return GivenUpError(instance.refusal)
    if instance.refusal is not None:
        return instance.refusal
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
