"""Ledger rows + cloud instances -> what agrees, and what does not. Pure.

`caa audit` shows it. The instances are those with this node's owner tags, so anybody else's VMs are not looked at.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from caa.reconcile import unowned
from caa.sandbox import Attempt, Sandbox, SandboxState
from providers.base import Instance, InstanceState


class Verdict(enum.StrEnum):
    """What an audit says of one instance, or of one that should be there."""

    MATCH = "match"
    """It is as it was launched."""

    PENDING = "pending"
    """It is being launched or ended, or what is odd about it was seen only once: nothing to say yet."""

    ORPHAN = "orphan"
    """It has this node's owner tags, and no sandbox accounts for it: it costs money for nothing."""

    MISSING = "missing"
    """A sandbox should have it, and the cloud does not."""

    DRIFTED = "drifted"
    """Somebody changed it: its type, image, security groups, address or state."""


DIFFERENCES = frozenset({Verdict.ORPHAN, Verdict.MISSING, Verdict.DRIFTED})


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which an instance is not as it was launched."""

    what: str  # "type", "image", "groups", "public address", "address" or "state"
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of one instance. What is not known is ""."""

    verdict: Verdict
    message: str
    instance_id: str
    name: str
    sandbox_id: str
    pod_namespace: str
    pod_name: str
    differences: tuple[Difference, ...] = ()

    @property
    def key(self) -> tuple[Verdict, str, str]:
        """The same in two audits: the same thing is still wrong."""
        return self.verdict, self.sandbox_id, self.instance_id


@dataclass(frozen=True, slots=True)
class Audit:
    """One comparison."""

    at: datetime
    findings: tuple[Finding, ...]

    @property
    def differences(self) -> tuple[Finding, ...]:
        """The findings that are not as they should be."""
        return tuple(finding for finding in self.findings if finding.verdict in DIFFERENCES)

    @property
    def counts(self) -> Mapping[Verdict, int]:
        """How many findings there are of each verdict; every verdict is among the keys."""
        found = Counter(finding.verdict for finding in self.findings)
        return {verdict: found[verdict] for verdict in Verdict}


def compare(
    sandboxes: Iterable[Sandbox],
    attempts: Collection[Attempt],
    instances: Collection[Instance],
    now: datetime,
    lag: timedelta,
) -> Audit:
    """Hold the ledger's live sandboxes and all their attempts against a list of instances that is older than both.

    `lag` is how long the cloud may not list what it just made.
    """
    own: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        own.setdefault(attempt.sandbox_id, []).append(attempt)
    listed = {instance.id: instance for instance in instances}
    rows = tuple(sandboxes)
    findings = [
        finding for sandbox in rows for finding in _of_sandbox(sandbox, own.get(sandbox.id, []), listed, now - lag)
    ]
    findings += [_orphan(instance) for instance in unowned(rows, attempts, instances)]
    return Audit(now, tuple(findings))


def confirmed(audit: Audit, earlier: Audit) -> Audit:
    """The audit, with what is odd only if it was so in the earlier one, too.

    A list that is a moment older than the ledger shows orphans and misses instances that are all right.
    """
    known = {finding.key for finding in earlier.findings}
    return replace(audit, findings=tuple(_unless_new(finding, known) for finding in audit.findings))


def _unless_new(finding: Finding, known: Collection[tuple[Verdict, str, str]]) -> Finding:
    if finding.verdict not in DIFFERENCES or finding.key in known:
        return finding
    return replace(finding, verdict=Verdict.PENDING)


def _of_sandbox(
    sandbox: Sandbox, attempts: list[Attempt], listed: Mapping[str, Instance], settled_before: datetime
) -> Iterator[Finding]:
    unsettled = [attempt for attempt in attempts if attempt.unsettled]
    if sandbox.state is SandboxState.RUNNING and not any(attempt.instance_id for attempt in unsettled):
        yield _finding(Verdict.MISSING, "the sandbox runs, and the ledger holds no instance for it", sandbox, None)
    for attempt in unsettled:
        instance = listed.get(attempt.instance_id) if attempt.instance_id else None
        yield _of_attempt(sandbox, attempt, instance, settled_before)


def _of_attempt(sandbox: Sandbox, attempt: Attempt, instance: Instance | None, settled_before: datetime) -> Finding:
    if sandbox.state is SandboxState.STOPPING:
        return _finding(Verdict.PENDING, "it is being ended", sandbox, attempt)
    if not attempt.instance_id:
        return _finding(Verdict.PENDING, "it is being launched", sandbox, attempt)
    seen = attempt.launched is not None and attempt.launched.public_addresses is not None
    if instance is None and not seen and attempt.created_at > settled_before:
        return _finding(
            Verdict.PENDING, "it was launched a moment ago, and the cloud may list it later", sandbox, attempt
        )
    if instance is None or instance.state is InstanceState.TERMINATING:
        return _finding(Verdict.MISSING, f"the cloud has no instance {attempt.instance_id} any more", sandbox, attempt)
    differences = tuple(_differences(attempt, instance))
    if not differences:
        return _finding(Verdict.MATCH, "it is as it was launched", sandbox, attempt)
    told = "; ".join(f"{one.what} is {one.found or 'none'}, not {one.expected or 'none'}" for one in differences)
    return replace(_finding(Verdict.DRIFTED, told, sandbox, attempt), differences=differences)


def _differences(attempt: Attempt, instance: Instance) -> Iterator[Difference]:
    """Only of what was recorded and is told: an absent fact differs from nothing."""
    if instance.state in (InstanceState.STOPPED, InstanceState.FAILED):
        yield Difference("state", InstanceState.RUNNING.value, instance.state.value)
    launched = attempt.launched
    wanted_type = (launched.instance_type if launched else "") or attempt.offering.instance_type
    wanted_image = (launched.image if launched else "") or attempt.image
    for what, expected, found in (
        ("type", wanted_type, instance.instance_type),
        ("image", wanted_image, instance.image),
    ):
        # Azure's names are the same in any case.
        if expected and found and expected.lower() != found.lower():
            yield Difference(what, expected, found)
    if launched and launched.groups and set(launched.groups) != set(instance.groups):
        yield Difference("groups", _listing(launched.groups), _listing(instance.groups))
    if (
        launched
        and launched.public_addresses is not None
        and set(launched.public_addresses) != set(instance.public_addresses)
    ):
        yield Difference("public address", _listing(launched.public_addresses), _listing(instance.public_addresses))
    if attempt.addresses and instance.addresses and set(attempt.addresses).isdisjoint(instance.addresses):
        yield Difference("address", _listing(attempt.addresses), _listing(instance.addresses))


def _listing(values: Iterable[str]) -> str:
    return ",".join(sorted(values))


def _finding(verdict: Verdict, message: str, sandbox: Sandbox, attempt: Attempt | None) -> Finding:
    return Finding(
        verdict=verdict,
        message=message,
        instance_id=attempt.instance_id if attempt else "",
        name=attempt.name if attempt else "",
        sandbox_id=sandbox.id,
        pod_namespace=sandbox.pod_namespace,
        pod_name=sandbox.pod_name,
    )


def _orphan(instance: Instance) -> Finding:
    owner = instance.owner
    return Finding(
        verdict=Verdict.ORPHAN,
        message="no sandbox accounts for it",
        instance_id=instance.id,
        name=instance.name,
        sandbox_id=owner.sandbox_id if owner else "",
        pod_namespace=owner.pod_namespace if owner else "",
        pod_name=owner.pod_name if owner else "",
    )
