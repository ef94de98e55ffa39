"""The domain: a sandbox, its states, and which state may follow which. Pure.

A sandbox is one pod sandbox of Kata, by its id. This service owns it from CreateVM to StopVM, and the ledger
is the only truth about it.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from providers.base import LaunchRequest, Offering, Owner


class SandboxState(enum.StrEnum):
    """Where a sandbox is in its life. Each state says what is true of it and what ends it."""

    CREATED = "created"
    """CreateVM was answered. Nothing was asked of any cloud. Ends by StartVM, StopVM, or being left alone too long."""

    STARTING = "starting"
    """StartVM is under way, or its caller may still come back. At most one attempt is unsettled."""

    RUNNING = "running"
    """The agent in the pod VM answered and StartVM was told so. Ends by StopVM, or when shim or VM is gone."""

    STOPPING = "stopping"
    """Everything this sandbox brought must go: by StopVM, a failed start, or reaping. Goes on until the cloud
    confirms. Says in `failure` whether it ends as stopped or failed."""

    STOPPED = "stopped"
    """Ended as asked, and the cloud confirmed that nothing is left. Final."""

    FAILED = "failed"
    """Ended by an error, told in `failure`, and the cloud confirmed that nothing is left. Final."""


class AttemptState(enum.StrEnum):
    """What we know of one launch attempt."""

    INTENDED = "intended"
    """Recorded before the cloud is asked. After a restart this means: unknown, so repeat or discard by its token."""

    ACCEPTED = "accepted"
    """The cloud gave an instance id. The instance exists, or existed."""

    REFUSED = "refused"
    """The cloud said no before making anything. Nothing to clean up."""

    ENDED = "ended"
    """The cloud confirmed that nothing of this attempt exists any more."""


class Door(enum.StrEnum):
    """Which front door a sandbox came through. It decides who counts as still there after a restart."""

    TTRPC = "ttrpc"  # a shim: its calls end with its connection and never come back
    REST = "rest"  # may call again with the same id


FINAL_STATES = frozenset({SandboxState.STOPPED, SandboxState.FAILED})
LIVE_STATES = frozenset(SandboxState) - FINAL_STATES

TRANSITIONS: dict[SandboxState, frozenset[SandboxState]] = {
    SandboxState.CREATED: frozenset({SandboxState.STARTING, SandboxState.STOPPING}),
    SandboxState.STARTING: frozenset({SandboxState.RUNNING, SandboxState.STOPPING}),
    SandboxState.RUNNING: frozenset({SandboxState.STOPPING}),
    SandboxState.STOPPING: FINAL_STATES,
    SandboxState.STOPPED: frozenset(),
    SandboxState.FAILED: frozenset(),
}

ATTEMPT_TRANSITIONS: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.INTENDED: frozenset({AttemptState.ACCEPTED, AttemptState.REFUSED, AttemptState.ENDED}),
    AttemptState.ACCEPTED: frozenset({AttemptState.ENDED}),
    AttemptState.REFUSED: frozenset(),
    AttemptState.ENDED: frozenset(),
}


class IllegalTransitionError(Exception):
    """A state was to follow one it may not follow. Always a defect of this service, never of a caller."""


def check_transition(old: SandboxState, new: SandboxState) -> None:
    """Raise IllegalTransitionError unless `new` may follow `old`."""
    if new not in TRANSITIONS[old]:
        allowed = ", ".join(sorted(TRANSITIONS[old])) or "nothing, it is final"
        raise IllegalTransitionError(f"a sandbox cannot go from {old} to {new}; after {old} may come: {allowed}")


def check_attempt_transition(old: AttemptState, new: AttemptState) -> None:
    """Raise IllegalTransitionError unless `new` may follow `old`."""
    if new not in ATTEMPT_TRANSITIONS[old]:
        raise IllegalTransitionError(f"a launch attempt cannot go from {old} to {new}")


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One row of the ledger. `version` counts its writes; a write with an old version is refused."""

    id: str
    cluster: str
    node: str
    pod_namespace: str
    pod_name: str
    door: Door
    annotations: dict[str, str]
    netns_path: str  # "" for a pod on the host's network
    socket_path: str
    state: SandboxState
    created_at: datetime
    changed_at: datetime  # when the state last changed
    failure_reason: str = ""  # stable CamelCase word; "" while nothing went wrong
    failure: str = ""  # the sentence for people
    agent_seen: bool = False  # a shim was connected to the agent socket at some time
    version: int = 1
    pod_network: dict[str, Any] | None = None  # the `pod-network` object of apf.json; None without a namespace
    tunnel_id: int | None = None  # the VNI of its tunnel; no two live sandboxes of a node have the same


@dataclass(frozen=True, slots=True)
class Launched:
    """What the cloud said it made, in its answer to the launch: what an audit holds the instance against later.

    "" and () are what the cloud did not tell. Public addresses come later than the answer: they are those with which
    the instance was first seen after its start, None until then.
    """

    instance_type: str = ""
    image: str = ""
    groups: tuple[str, ...] = ()  # security groups
    public_addresses: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One recorded intention to launch one offering for one sandbox, committed before the cloud is asked."""

    sandbox_id: str
    number: int  # from 1
    name: str
    token: str
    offering: Offering
    image: str
    user_data: bytes = field(repr=False)
    state: AttemptState
    created_at: datetime
    instance_id: str = ""
    addresses: tuple[str, ...] = ()
    error_reason: str = ""
    error: str = ""
    version: int = 1
    launched: Launched | None = None  # None until the cloud accepted

    @property
    def unsettled(self) -> bool:
        """True while something of it may exist in the cloud."""
        return self.state in (AttemptState.INTENDED, AttemptState.ACCEPTED)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a sandbox, or to a node. Append-only; never holds a key, a token or user data."""

    sandbox_id: str  # "" for what happened to the node itself
    at: datetime
    kind: str  # stable CamelCase word
    message: str
    attempt: int | None = None
    data: dict[str, str | int | float | bool] = field(default_factory=dict)
    cluster: str = ""  # who wrote it; "" in events of before this was recorded
    node: str = ""
    id: int | None = None  # given by the ledger, ascending


def launch_request(sandbox: Sandbox, attempt: Attempt) -> LaunchRequest:
    """The request that repeats `attempt` exactly."""
    owner = Owner(
        cluster=sandbox.cluster,
        node=sandbox.node,
        sandbox_id=sandbox.id,
        pod_namespace=sandbox.pod_namespace,
        pod_name=sandbox.pod_name,
        attempt=attempt.number,
    )
    return LaunchRequest(
        name=attempt.name,
        token=attempt.token,
        owner=owner,
        offering=attempt.offering,
        user_data=attempt.user_data,
        image=attempt.image,
    )


def attempt_token(cluster: str, sandbox_id: str, number: int) -> str:
    """The idempotency token of an attempt: 64 hex characters, EC2's limit for a ClientToken.

    Derived, not random, so that it is the same after any restart; a new attempt never shares one.
    """
    return hashlib.sha256(f"{cluster}\0{sandbox_id}\0{number}".encode()).hexdigest()


# What CRI-O sends where containerd sends the pod's name.
CRIO_NAME = re.compile(r"k8s_(?P<pod>[^_]+)_[^_]+_(?P<uid>[^_/]+)_\d+")

# The host-name limit, which is also what the incumbent cuts at (so VM names look as operators know them).
NAME_LIMIT = 63
_SANDBOX_HEX = re.compile(r"[0-9a-f]{64}")


def instance_name(pod_name: str, sandbox_id: str, number: int) -> str:
    """`podvm-<pod>-<8 of the sandbox id>`, with `-<n>` from the second attempt on: at most 63 of [a-z0-9-].

    Ids of the container runtime are random, so their first 8 characters serve. Any other id is hashed first,
    for ids that people make up ("web-1", "web-2") begin alike.
    """
    short = sandbox_id if _SANDBOX_HEX.fullmatch(sandbox_id) else hashlib.sha256(sandbox_id.encode()).hexdigest()
    tail = f"-{short[:8]}" + (f"-{number}" if number > 1 else "")
    pod = re.sub(r"[^a-z0-9-]", "-", pod_name.lower())
    return f"podvm-{pod}"[: NAME_LIMIT - len(tail)].rstrip("-") + tail


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a caller says of a new sandbox, as it came: nothing in it is checked yet, annotations are untrusted."""

    id: str
    annotations: dict[str, str]
    netns_path: str  # "" for a pod on the host's network
    door: Door
