"""What the front doors may read of the ledger, as asyncio calls. Each is one hop to a thread, however much it reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime
from typing import ParamSpec, TypeVar

from caa.errors import UnavailableError
from caa.ledger import Cursor, Ledger, LedgerError
from caa.sandbox import Attempt, Event, Sandbox, SandboxState

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SandboxRecord:
    """A sandbox and its launch attempts, by number."""

    sandbox: Sandbox
    attempts: tuple[Attempt, ...]


class LedgerReader:
    """Reads only. Every method raises UnavailableError while the ledger cannot be used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def sandbox(self, sandbox_id: str) -> SandboxRecord | None:
        """One sandbox, or None."""

        def read() -> SandboxRecord | None:
            sandbox = self._ledger.sandbox(sandbox_id)
            return None if sandbox is None else self._record(sandbox)

        return await _in_thread(read)

    async def sandboxes(
        self,
        *,
        node: str | None = None,
        states: Collection[SandboxState] | None = None,
        namespace: str | None = None,
        pod: str | None = None,
        limit: int | None = None,
        after: Cursor | None = None,
    ) -> list[SandboxRecord]:
        """The sandboxes that match every filter given, oldest first; `after` is where the last page ended."""

        def read() -> list[SandboxRecord]:
            found = self._ledger.sandboxes(
                node=node, states=states, namespace=namespace, pod=pod, limit=limit, after=after
            )
            return self._records(found)

        return await _in_thread(read)

    async def recent(self, ended_after: datetime, limit: int) -> list[SandboxRecord]:
        """Those that are not over and those that ended after `ended_after`, the newest first, `limit` at most."""

        def read() -> list[SandboxRecord]:
            return self._records(self._ledger.recent_sandboxes(ended_after=ended_after, limit=limit))

        return await _in_thread(read)

    async def trail(
        self,
        *,
        after_id: int = 0,
        limit: int,
        sandbox_id: str | None = None,
        node: str | None = None,
        kinds: Collection[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Event]:
        """Events of all sandboxes and nodes that match every filter given, in order."""

        def read() -> list[Event]:
            return self._ledger.trail(
                after_id=after_id,
                limit=limit,
                sandbox_id=sandbox_id,
                node=node,
                kinds=kinds,
                since=since,
                until=until,
            )

        return await _in_thread(read)

    async def last_event_id(self) -> int:
        """The id of the newest event of all."""
        return await _in_thread(self._ledger.last_event_id)

    async def attempts(self, sandbox_id: str) -> list[Attempt]:
        """The launch attempts of a sandbox, by number."""
        return await _in_thread(self._ledger.attempts, sandbox_id)

    async def events(self, sandbox_id: str, after_id: int = 0, limit: int | None = None) -> list[Event]:
        """The trail of a sandbox in order, from after `after_id`."""
        return await _in_thread(self._ledger.events, sandbox_id, after_id, limit)

    def _records(self, sandboxes: list[Sandbox]) -> list[SandboxRecord]:
        attempts = self._ledger.attempts_of([sandbox.id for sandbox in sandboxes])
        return [SandboxRecord(sandbox, tuple(attempts.get(sandbox.id, ()))) for sandbox in sandboxes]

    def _record(self, sandbox: Sandbox) -> SandboxRecord:
        return SandboxRecord(sandbox, tuple(self._ledger.attempts(sandbox.id)))


async def _in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(call, *args, **kwargs)
    except LedgerError as error:
        raise UnavailableError(f"the ledger cannot be used now: {error}", reason="LedgerUnavailable") from error
