"""Sandboxes, attempts and events to store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from caa.ledger import Ledger
from caa.sandbox import Attempt, AttemptState, Door, Event, Sandbox, SandboxState, attempt_token
from providers.base import Market, Offering

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC)
USER_DATA = b"#cloud-config\n# \x00\xff PRIVATE-KEY-OF-THE-POD-VM\n"


def sandbox(sandbox_id: str = "sb-1", **changes: Any) -> Sandbox:
    """A sandbox as CreateVM records it."""
    plain = Sandbox(
        id=sandbox_id,
        cluster="c1",
        node="n1",
        pod_namespace="shop",
        pod_name="web-0",
        door=Door.TTRPC,
        annotations={"io.katacontainers.config.hypervisor.machine_type": "m5.large", "é": "ü\0"},
        netns_path="/run/netns/x",
        socket_path=f"/run/peerpod/pods/{sandbox_id}/agent.ttrpc",
        state=SandboxState.CREATED,
        created_at=NOW,
        changed_at=NOW,
    )
    return replace(plain, **changes)


def attempt(sandbox_id: str = "sb-1", number: int = 1, **changes: Any) -> Attempt:
    """An attempt as it is recorded before the cloud is asked."""
    plain = Attempt(
        sandbox_id=sandbox_id,
        number=number,
        name=f"podvm-web-0-{number}",
        token=attempt_token("c1", sandbox_id, number),
        offering=Offering("m5.large", "zone-a", 2, 8192, Market.SPOT, gpus=1, gpu_model="T4"),
        image="ami-1",
        user_data=USER_DATA,
        state=AttemptState.INTENDED,
        created_at=NOW,
    )
    return replace(plain, **changes)


def event(sandbox_id: str = "sb-1", kind: str = "Something", **changes: Any) -> Event:
    """An event."""
    return replace(Event(sandbox_id, NOW, kind, "It happened.", data={"zone": "a", "n": 1, "f": 0.5}), **changes)


def starting(ledger: Ledger, sandbox_id: str = "sb-1", **changes: Any) -> Sandbox:
    """A recorded sandbox whose StartVM is under way."""
    added = ledger.add_sandbox(sandbox(sandbox_id, **changes))
    return ledger.save_sandbox(replace(added, state=SandboxState.STARTING))


# A legal way from CREATED to each state.
PATHS: dict[SandboxState, tuple[SandboxState, ...]] = {
    SandboxState.CREATED: (),
    SandboxState.STARTING: (SandboxState.STARTING,),
    SandboxState.RUNNING: (SandboxState.STARTING, SandboxState.RUNNING),
    SandboxState.STOPPING: (SandboxState.STOPPING,),
    SandboxState.STOPPED: (SandboxState.STOPPING, SandboxState.STOPPED),
    SandboxState.FAILED: (SandboxState.STOPPING, SandboxState.FAILED),
}


def in_state(ledger: Ledger, state: SandboxState, sandbox_id: str = "sb-1", **changes: Any) -> Sandbox:
    """A recorded sandbox brought to `state` by legal steps."""
    found = ledger.add_sandbox(sandbox(sandbox_id, **changes))
    for step in PATHS[state]:
        found = ledger.save_sandbox(replace(found, state=step))
    return found
