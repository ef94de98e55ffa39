"""The use case behind `caa audit`: look at ledger and cloud twice, tell what differs, and end what nobody owns."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from caa.audit import DIFFERENCES, Audit, Finding, Verdict, compare, confirmed
from caa.errors import CallError, UnavailableError
from caa.node import Node
from caa.reconcile import World
from providers.base import ProviderError

log = logging.getLogger(__name__)

End = Callable[[str, str, str], Awaitable[None]]
"""Begins the end of a sandbox, by its id, for a reason and with a sentence: `Lifecycle.end`."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """What was done about one finding, or why it could not be done."""

    finding: Finding
    done: str
    error: str = ""


class Auditor:
    """Audits this node. What differs is told when it was seen twice."""

    def __init__(self, node: Node, end: End) -> None:
        self._node = node
        self._end = end
        self._seen: Audit | None = None
        self.latest: Audit | None = None
        """Of the newest look of all, the rounds of the reconciler included; None before the first."""

    def watch(self, world: World) -> None:
        """What the reconciler saw in a round, which costs no call of its own."""
        if world.instances is not None:
            now = compare(world.sandboxes, world.attempts, world.instances, world.now, self._lag())
            self._seen, self.latest = now, confirmed(now, self._seen or now)

    async def look(self) -> Audit:
        """Compare now. Raises UnavailableError when cloud or ledger cannot be asked."""
        first = await self._compare()
        if any(finding.verdict in DIFFERENCES for finding in first.findings):
            first = confirmed(await self._compare(), first)
        self.latest = first
        return first

    async def fix(self) -> list[Fixed]:
        """End the instances that no sandbox accounts for, and the sandboxes whose instance is gone.

        What somebody changed is left alone: a pod may run in it. Raises UnavailableError.
        """
        return [await self._fix(finding) for finding in (await self.look()).differences]

    async def _fix(self, finding: Finding) -> Fixed:
        try:
            match finding.verdict:
                case Verdict.ORPHAN:
                    await self._node.record(
                        finding.sandbox_id,
                        "OrphanTerminated",
                        f"an audit found that no sandbox accounts for instance {finding.name}",
                        instance=finding.instance_id,
                    )
                    await self._node.cloud.terminate(finding.instance_id)
                    return Fixed(finding, "the instance was terminated")
                case Verdict.MISSING:
                    await self._end(finding.sandbox_id, "InstanceLost", f"an audit found that {finding.message}")
                    return Fixed(finding, "the end of the sandbox was begun")
        except (ProviderError, CallError) as error:
            return Fixed(finding, "", str(error))
        return Fixed(finding, "", "left alone: a pod may run in it, and ends with it")

    async def _compare(self) -> Audit:
        node = self._node
        try:
            # The cloud first: whatever it shows was recorded before, so a later reading of the ledger has it.
            instances = await node.cloud.instances()
        except ProviderError as error:
            text = f"{node.cloud.name} cannot list instances now: {error}"
            raise UnavailableError(text, reason=error.reason) from error
        sandboxes, attempts = await node.db(node.ledger.snapshot, node.scope.cluster, node.scope.node)
        return compare(sandboxes, attempts, instances, node.clock.now(), self._lag())

    def _lag(self) -> timedelta:
        return timedelta(seconds=self._node.cloud.lag)
