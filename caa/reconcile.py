"""Ledger rows + cloud instances + agent links + clock -> what must be done. The planner is pure.

It runs once at the start and then for ever, and knows no difference between the two: whatever a crash left
half done looks to it like any other row. The cloud is listed before the ledger is read, so every instance it
sees has its row already, for rows are committed before the cloud is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from caa.sandbox import LIVE_STATES, Attempt, Door, Sandbox, SandboxState
from providers.base import Instance, InstanceState


@dataclass(frozen=True, slots=True)
class Graces:
    """How long to wait before acting on what may still be about to change."""

    orphan: timedelta = timedelta(seconds=30)
    """An instance without a row: longer than any list lags behind a launch of this node."""

    vanished: timedelta = timedelta(seconds=10)
    """A running instance that lists no longer show: longer than two lists apart, in case one was stale."""

    no_shim: timedelta = timedelta(seconds=60)
    """A running sandbox without an agent connection: the shim dials within 30 s of StartVM or never."""

    rest_return: timedelta = timedelta(seconds=60)
    """A start that a restart cut off, asked for over REST: time for its caller to ask again."""

    never_started: timedelta = timedelta(minutes=10)
    """CreateVM without StartVM: the shim calls both within a second."""

    launching: timedelta = timedelta(minutes=10)
    """A start without an instance: no shim waits longer, and a burst of 1,000 launches is through in 9 minutes."""

    reaching: timedelta = timedelta(minutes=15)
    """An accepted instance whose agent does not answer: longer than any image takes to boot."""

    stopping: timedelta = timedelta(minutes=5)
    """An end that does not come: clouds take instances away in a minute or two. Said once; trying goes on."""


@dataclass(frozen=True, slots=True)
class Link:
    """What the agent proxy says of one sandbox."""

    shim_connections: int
    agent_seen: bool
    idle_seconds: float  # since the last shim connection ended, or since the socket was opened


@dataclass(frozen=True, slots=True)
class World:
    """Everything the planner looks at. `instances` and `links` are None when they could not be had."""

    now: datetime
    service_started: datetime
    sandboxes: tuple[Sandbox, ...]  # live ones only
    attempts: tuple[Attempt, ...]  # all attempts of those
    instances: tuple[Instance, ...] | None
    links: Mapping[str, Link] | None
    starting_here: frozenset[str] = frozenset()  # sandboxes whose start this process works on
    cleaning_here: frozenset[str] = frozenset()
    tunnels_here: frozenset[str] = frozenset()  # sandboxes whose tunnel this process built or looked at


@dataclass(frozen=True, slots=True)
class Memory:
    """Since when something odd has been seen, so that one stale list convinces nobody."""

    missing: Mapping[str, datetime] = field(default_factory=dict)  # by instance id
    unowned: Mapping[str, datetime] = field(default_factory=dict)
    said_stuck: frozenset[str] = frozenset()  # sandboxes


@dataclass(frozen=True, slots=True)
class End:
    """Begin the end of a sandbox, for this reason ("" when it ends as asked)."""

    sandbox_id: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class CleanUp:
    """Go on removing what a stopping sandbox brought."""

    sandbox_id: str


@dataclass(frozen=True, slots=True)
class Reopen:
    """Open the agent socket again: the proxy does not know this running sandbox."""

    sandbox_id: str


@dataclass(frozen=True, slots=True)
class MendTunnel:
    """Look whether the tunnel of a running sandbox is as it must be, and make it so."""

    sandbox_id: str


@dataclass(frozen=True, slots=True)
class MarkSeen:
    """Record that a shim was connected, for after the next restart."""

    sandbox_id: str


@dataclass(frozen=True, slots=True)
class TerminateOrphan:
    """End an instance of ours that no row accounts for."""

    instance_id: str
    name: str
    sandbox_id: str


@dataclass(frozen=True, slots=True)
class SayStuck:
    """Record, for people, that a sandbox stays in a state that it should have left."""

    sandbox_id: str
    message: str


Action = End | CleanUp | Reopen | MendTunnel | MarkSeen | TerminateOrphan | SayStuck


def observe(world: World, memory: Memory) -> Memory:
    """Memory after this look. Without a list of instances nothing new is learnt of them."""
    if world.instances is None:
        return memory
    listed = {instance.id for instance in world.instances}
    wanted = {a.instance_id for a in world.attempts if a.unsettled and a.instance_id}
    return Memory(
        missing={i: memory.missing.get(i, world.now) for i in wanted - listed},
        unowned={
            i.id: memory.unowned.get(i.id, world.now) for i in unowned(world.sandboxes, world.attempts, world.instances)
        },
        said_stuck=memory.said_stuck,
    )


def said(actions: Iterable[Action], world: World, memory: Memory) -> Memory:
    """Memory after acting: what is stuck was said now, and is forgotten with its sandbox."""
    now_said = {action.sandbox_id for action in actions if isinstance(action, SayStuck)}
    return replace(memory, said_stuck=(memory.said_stuck | now_said) & {s.id for s in world.sandboxes})


def plan(world: World, memory: Memory, graces: Graces) -> list[Action]:
    """What to do now, with `memory` as `observe` just returned it. Each sandbox gets at most one action."""
    by_sandbox: dict[str, list[Attempt]] = {}
    for attempt in world.attempts:
        by_sandbox.setdefault(attempt.sandbox_id, []).append(attempt)
    superseded = _superseded(world)
    actions: list[Action] = []
    for sandbox in world.sandboxes:
        action = superseded.get(sandbox.id) or _for_sandbox(
            sandbox, by_sandbox.get(sandbox.id, []), world, memory, graces
        )
        if action:
            actions.append(action)
    for instance in unowned(world.sandboxes, world.attempts, world.instances or ()):
        seen = memory.unowned.get(instance.id, world.now)
        since = min(seen, instance.created_at or world.now)
        # Seen twice: its sandbox may have ended between the list and the reading of the ledger.
        if seen < world.now and world.now - since >= graces.orphan:
            owner = instance.owner.sandbox_id if instance.owner else ""
            actions.append(TerminateOrphan(instance.id, instance.name, owner))
    return actions


def _for_sandbox(
    sandbox: Sandbox, attempts: list[Attempt], world: World, memory: Memory, graces: Graces
) -> Action | None:
    if sandbox.state is SandboxState.STOPPING:
        if sandbox.id not in world.cleaning_here:
            return CleanUp(sandbox.id)
        if world.now - sandbox.changed_at >= graces.stopping and sandbox.id not in memory.said_stuck:
            return SayStuck(sandbox.id, _still_there(attempts))
        return None
    if sandbox.state is SandboxState.CREATED:
        if world.now - sandbox.changed_at >= graces.never_started:
            return End(sandbox.id, "NeverStarted", "the sandbox was created, but StartVM never came")
        return None
    if sandbox.state is SandboxState.STARTING:
        return _for_starting(sandbox, attempts, world, graces)
    return _for_running(sandbox, attempts, world, memory, graces)


def _for_starting(sandbox: Sandbox, attempts: list[Attempt], world: World, graces: Graces) -> Action | None:
    if sandbox.id in world.starting_here:
        launched = next((a for a in reversed(attempts) if a.unsettled and a.instance_id), None)
        if launched is None and world.now - sandbox.changed_at >= graces.launching:
            return End(sandbox.id, "LaunchTimeout", f"no instance could be had in {graces.launching}")
        if launched is not None and world.now - launched.created_at >= graces.launching + graces.reaching:
            return End(
                sandbox.id, "AgentTimeout", f"the agent of {launched.name} has not answered for {graces.reaching}"
            )
        return None
    # A restart cut this start off. A shim's call ended with its connection; a REST caller may ask again.
    if sandbox.door is Door.REST and world.now - world.service_started < graces.rest_return:
        return None
    return End(sandbox.id, "CallerGone", "the service restarted during the start, and its caller did not come back")


def _for_running(
    sandbox: Sandbox, attempts: list[Attempt], world: World, memory: Memory, graces: Graces
) -> Action | None:
    dead = _dead_instance(attempts, world, memory, graces)
    if dead:
        return End(sandbox.id, "InstanceLost", dead)
    # Last: a tunnel that cannot be mended must not keep a sandbox from being reaped.
    return _for_link(sandbox, world, graces) or _for_tunnel(sandbox, world)


def _for_tunnel(sandbox: Sandbox, world: World) -> Action | None:
    carried = sandbox.pod_network is not None and sandbox.id not in world.tunnels_here
    return MendTunnel(sandbox.id) if carried else None


def _for_link(sandbox: Sandbox, world: World, graces: Graces) -> Action | None:
    if world.links is None:
        return None
    link = world.links.get(sandbox.id)
    if link is None:
        return Reopen(sandbox.id)
    if link.agent_seen and not sandbox.agent_seen:
        return MarkSeen(sandbox.id)
    # Over REST nobody need ever connect; a shim always does.
    shim_expected = sandbox.agent_seen or link.agent_seen or sandbox.door is Door.TTRPC
    # The socket is open since before the launch, and the shim dials when StartVM is answered. So it has the grace from
    # then on, also where the VM took longer to boot.
    idle = min(timedelta(seconds=link.idle_seconds), world.now - sandbox.changed_at)
    if shim_expected and link.shim_connections == 0 and idle >= graces.no_shim:
        return End(sandbox.id, "ShimGone", "no shim is connected to the agent socket any more")
    return None


def _dead_instance(attempts: list[Attempt], world: World, memory: Memory, graces: Graces) -> str:
    """Why the sandbox's instance is dead, or ""."""
    if world.instances is None:
        return ""
    current = next((a for a in reversed(attempts) if a.unsettled and a.instance_id), None)
    if current is None:
        return "the ledger holds no instance for it"
    for instance in world.instances:
        if instance.id == current.instance_id:
            if instance.state in (InstanceState.STOPPED, InstanceState.FAILED, InstanceState.TERMINATING):
                return f"instance {instance.name} is {instance.state} though nobody here asked for it"
            return ""
    since = memory.missing.get(current.instance_id)
    if since is not None and world.now - since >= graces.vanished:
        return f"instance {current.name} ({current.instance_id}) no longer exists though nobody here asked for it"
    return ""


def _still_there(attempts: list[Attempt]) -> str:
    left = ", ".join(f"{a.name} ({a.instance_id or 'no instance known'})" for a in attempts if a.unsettled)
    return f"what the sandbox brought is not gone yet: {left or 'its agent socket'}"


def _superseded(world: World) -> dict[str, Action]:
    """One VM per pod: a newer sandbox of the same pod that has been started ends the older ones."""
    newest: dict[tuple[str, str], Sandbox] = {}
    for sandbox in world.sandboxes:
        if sandbox.state in (SandboxState.STARTING, SandboxState.RUNNING):
            pod = (sandbox.pod_namespace, sandbox.pod_name)
            if pod not in newest or newest[pod].created_at < sandbox.created_at:
                newest[pod] = sandbox
    actions: dict[str, Action] = {}
    for sandbox in world.sandboxes:
        newer = newest.get((sandbox.pod_namespace, sandbox.pod_name))
        if newer and newer.created_at > sandbox.created_at and sandbox.state is not SandboxState.STOPPING:
            actions[sandbox.id] = End(sandbox.id, "Superseded", f"sandbox {newer.id} runs the same pod now")
    return actions


def unowned(
    sandboxes: Iterable[Sandbox], attempts: Collection[Attempt], instances: Iterable[Instance]
) -> list[Instance]:
    """Instances of this node that no live sandbox accounts for."""
    live = {s.id for s in sandboxes if s.state in LIVE_STATES}
    known = {a.instance_id for a in attempts if a.unsettled and a.instance_id}
    intended = {a.name for a in attempts if a.unsettled and not a.instance_id}
    return [
        instance
        for instance in instances
        if instance.state is not InstanceState.TERMINATING
        and not (
            instance.owner is not None
            and instance.owner.sandbox_id in live
            and (instance.id in known or instance.name in intended)
        )
    ]
