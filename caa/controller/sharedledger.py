"""The ledger that nodes share, for the controller: its images, and the end of what a gone node had. Blocking.

Where each node has a ledger of its own, the controller has none.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime

from caa import configuring
from caa.controller.cloudconfig import values
from caa.ledger import Ledger, open_ledger
from caa.sandbox import AttemptState, Event, Sandbox, SandboxState, launch_request
from caa.settings import Settings
from providers.base import OwnerScope, Provider


class SharedLedger:
    """Opened when it is first asked for, and anew when it is another one. For several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: tuple[str, Ledger] | None = None

    def get(self) -> tuple[Settings, Ledger] | None:
        """None where there is none. Raises ConfigError, LedgerError."""
        given = values()
        if given is None:
            return None
        settings = configuring.read(given)
        if settings.ledger_url.startswith("sqlite"):
            return None
        with self._lock:
            if self._opened is not None and self._opened[0] != settings.ledger_url:
                self._close()
            if self._opened is None:
                self._opened = settings.ledger_url, open_ledger(settings.ledger_url)
            return settings, self._opened[1]

    def close(self) -> None:
        """Give back the connections."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._opened is not None:
            self._opened[1].close()
            self._opened = None


def close_node(ledger: Ledger, provider: Provider, scope: OwnerScope, now: datetime) -> list[str]:
    """End the sandboxes of a node that is gone and of whose instances none is left; returns their ids.

    What a launch without instance may have left is removed first. Raises ProviderError and LedgerError: call again.
    """
    sandboxes, attempts = ledger.snapshot(scope.cluster, scope.node)
    by_id = {sandbox.id: sandbox for sandbox in sandboxes}
    for attempt in attempts:
        if not attempt.unsettled:
            continue
        if not attempt.instance_id:
            provider.discard(launch_request(by_id[attempt.sandbox_id], attempt))
        ledger.save_attempt(replace(attempt, state=AttemptState.ENDED))
    for sandbox in sandboxes:
        _end(ledger, sandbox, now)
    return list(by_id)


def _end(ledger: Ledger, sandbox: Sandbox, now: datetime) -> None:
    def event(kind: str, message: str, state: SandboxState) -> Event:
        data: dict[str, str | int | float | bool] = {"state": state.value}
        return Event(sandbox.id, now, kind, message, data=data, cluster=sandbox.cluster, node=sandbox.node)

    if sandbox.state is not SandboxState.STOPPING:
        text = f"node {sandbox.node} is gone, and nothing of the sandbox is left"
        told = event("NodeGone", text, SandboxState.STOPPING)
        failed = replace(sandbox, state=SandboxState.STOPPING, changed_at=now, failure_reason="NodeGone", failure=text)
        sandbox = ledger.save_sandbox(failed, event=told)
    final = SandboxState.FAILED if sandbox.failure_reason else SandboxState.STOPPED
    told = event("Ended", f"nothing of the sandbox is left; it {final}", final)
    ledger.save_sandbox(replace(sandbox, state=final, changed_at=now), event=told)
