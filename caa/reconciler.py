"""The loop that looks at ledger, cloud and proxy, asks the planner, and does what it says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime

from caa.ending import PASSING, Ending
from caa.errors import UnavailableError
from caa.ledger import StaleWriteError
from caa.lifecycle import Lifecycle
from caa.node import Node
from caa.podnetwork.namespace import NamespaceGone
from caa.reconcile import (
    Action,
    CleanUp,
    End,
    Graces,
    Link,
    MarkSeen,
    Memory,
    MendTunnel,
    Reopen,
    SayStuck,
    TerminateOrphan,
    World,
    observe,
    plan,
    said,
)
from caa.sandbox import SandboxState
from caa.starting import open_agent_socket, pod_volumes
from caa.ttrpc.frames import StatusError
from providers.base import Instance, InstanceState, ProviderError

log = logging.getLogger(__name__)

# Fast enough that a dead shim's VM is gone a minute later, slow enough that listing costs nothing.
INTERVAL_SECONDS = 5.0
# A running VM answers in well under a second; a round must not hang on one that does not.
REOPEN_SECONDS = 5.0


class Reconciler:
    """Makes what is match what the ledger says should be."""

    def __init__(
        self,
        node: Node,
        lifecycle: Lifecycle,
        ending: Ending,
        *,
        revive_proxy: Callable[[], Awaitable[None]],
        graces: Graces | None = None,
        watcher: Callable[[World], None] = lambda _: None,
    ) -> None:
        """`watcher` is told what each round saw: audits. It must not raise."""
        self._node = node
        self._lifecycle = lifecycle
        self._ending = ending
        self._revive_proxy = revive_proxy
        self._graces = graces or Graces()
        self._watcher = watcher
        self._memory = Memory()
        self._service_started: datetime = node.clock.now()
        self._tunnels_here: set[str] = set()
        self._mending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Once every INTERVAL_SECONDS, for ever. One bad round never ends it."""
        while True:
            await self._node.clock.sleep(INTERVAL_SECONDS)
            try:
                await self.round()
            except Exception:
                log.exception("a reconcile round broke off; the next one looks again")

    async def close(self) -> None:
        """Leave the tunnels that are being looked at to the next process."""
        for task in self._mending:
            task.cancel()
        if self._mending:
            await asyncio.wait(self._mending)

    async def round(self) -> None:
        """Look once, plan, act."""
        world = await self._look()
        self._watcher(world)
        self._memory = observe(world, self._memory)
        actions = plan(world, self._memory, self._graces)
        self._memory = said(actions, world, self._memory)
        await asyncio.gather(*(self._act(action) for action in actions))
        await self._note_public_addresses(world)

    async def _note_public_addresses(self, world: World) -> None:
        """Record those with which an instance is first seen, for audits: launches are answered before there are any."""
        node = self._node
        running = {sandbox.id for sandbox in world.sandboxes if sandbox.state is SandboxState.RUNNING}
        listed = {i.id: i for i in world.instances or () if i.state is InstanceState.RUNNING}
        for attempt in world.attempts:
            instance, launched = listed.get(attempt.instance_id), attempt.launched
            if instance is None or launched is None or launched.public_addresses is not None:
                continue
            if attempt.unsettled and attempt.sandbox_id in running:
                noted = dataclasses.replace(launched, public_addresses=instance.public_addresses)
                with contextlib.suppress(StaleWriteError):  # it ends just now
                    await node.db(node.ledger.save_attempt, dataclasses.replace(attempt, launched=noted))

    async def _look(self) -> World:
        node = self._node
        # Before the ledger is read and after: a start that ends or begins meanwhile is this process's all the same.
        starting, cleaning = self._lifecycle.starting_here, self._ending.cleaning_here
        # The cloud first: whatever it shows was recorded before, so a later reading of the ledger has it.
        instances = await self._instances()
        links = await self._links()
        sandboxes, attempts = await node.db(node.ledger.snapshot, node.scope.cluster, node.scope.node)
        self._tunnels_here &= {sandbox.id for sandbox in sandboxes}
        return World(
            now=node.clock.now(),
            service_started=self._service_started,
            sandboxes=tuple(sandboxes),
            attempts=tuple(attempts),
            instances=instances,
            links=links,
            starting_here=starting | self._lifecycle.starting_here,
            cleaning_here=cleaning | self._ending.cleaning_here,
            tunnels_here=frozenset(self._tunnels_here),
        )

    async def _instances(self) -> tuple[Instance, ...] | None:
        try:
            return tuple(await self._node.cloud.instances())
        except (ProviderError, UnavailableError) as error:
            log.warning("instances cannot be listed now, so none is judged: %s", error)
            return None

    async def _links(self) -> dict[str, Link] | None:
        try:
            listed = await self._node.proxy.list()
        except (StatusError, OSError, TimeoutError) as error:
            log.warning("the agent proxy cannot be asked now, so no shim is judged: %s", error)
            await self._revive_proxy()
            return None
        return {s.id: Link(s.shim_connections, s.agent_seen, s.idle_seconds) for s in listed}

    async def _act(self, action: Action) -> None:
        try:
            match action:
                case End(sandbox_id, reason, message):
                    await self._lifecycle.end(sandbox_id, reason, message)
                case CleanUp(sandbox_id):
                    self._ending.clean_up_soon(sandbox_id)
                case Reopen(sandbox_id):
                    await self._reopen(sandbox_id)
                case MendTunnel(sandbox_id):
                    self._mend_soon(sandbox_id)
                case MarkSeen(sandbox_id):
                    await self._mark_seen(sandbox_id)
                case SayStuck(sandbox_id, message):
                    await self._node.record(sandbox_id, "Stuck", message)
                case TerminateOrphan(instance_id, name, sandbox_id):
                    log.warning("instance %s (%s) belongs to no sandbox and is terminated", name, instance_id)
                    # Without a sandbox's id in its tags it is an event of the node.
                    await self._node.record(
                        sandbox_id, "OrphanTerminated", f"instance {name} belonged to no sandbox", instance=instance_id
                    )
                    await self._node.cloud.terminate(instance_id)
        except StaleWriteError:
            pass  # somebody else moved the sandbox on; the next round looks again
        except PASSING as error:
            log.warning("%s failed and will be planned again: %s", type(action).__name__, error)

    async def _reopen(self, sandbox_id: str) -> None:
        """The proxy was restarted: listen again, so that a shim that comes back finds its agent."""
        node = self._node
        sandbox = await node.db(node.ledger.sandbox, sandbox_id)
        attempts = await node.db(node.ledger.attempts, sandbox_id)
        current = next((a for a in reversed(attempts) if a.unsettled and a.addresses), None)
        if sandbox is None or sandbox.state is not SandboxState.RUNNING or current is None:
            return
        await open_agent_socket(node, sandbox, current, await pod_volumes(sandbox))
        await node.record(sandbox_id, "AgentSocketReopened", "the agent proxy had lost the sandbox")
        # The proxy keeps the address and dials by itself when a shim comes; this only says whether it is right.
        await node.proxy.connect(sandbox_id, list(current.addresses), node.forwarder_port, REOPEN_SECONDS)

    def _mend_soon(self, sandbox_id: str) -> None:
        """Beside the rounds: a node's hundreds of tunnels take seconds, and none of them is in a hurry."""
        self._tunnels_here.add(sandbox_id)
        task = asyncio.create_task(self._mend(sandbox_id))
        self._mending.add(task)
        task.add_done_callback(self._mending.discard)

    async def _mend(self, sandbox_id: str) -> None:
        node = self._node
        try:
            sandbox = await node.db(node.ledger.sandbox, sandbox_id)
            attempts = await node.db(node.ledger.attempts, sandbox_id)
            current = next((a for a in reversed(attempts) if a.unsettled and a.addresses), None)
            if sandbox is None or sandbox.state is not SandboxState.RUNNING or current is None:
                return
            if not await node.tunnels.setup(sandbox, current.addresses):
                self._tunnels_here.discard(sandbox_id)
        except NamespaceGone as error:
            log.info("the tunnel of sandbox %s is left alone, for its pod is going: %s", sandbox_id, error)
        except PASSING as error:
            log.warning("the tunnel of sandbox %s cannot be mended, and will be tried again: %s", sandbox_id, error)
            self._tunnels_here.discard(sandbox_id)

    async def _mark_seen(self, sandbox_id: str) -> None:
        node = self._node
        sandbox = await node.db(node.ledger.sandbox, sandbox_id)
        if sandbox is not None and sandbox.state is SandboxState.RUNNING:
            event = node.event(sandbox_id, "ShimConnected", "a shim is connected to the agent socket")
            await node.db(node.ledger.save_sandbox, dataclasses.replace(sandbox, agent_seen=True), event=event)
