"""The routes of the audit: what differs between ledger and cloud, and the trail of events as JSON Lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from datetime import datetime
from typing import Annotated, Protocol

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from caa.api.rest.routers import errors
from caa.api.rest.schemas import EventView, Model, Moment, Pod, SandboxId, event_view
from caa.audit import Audit, Finding, Verdict
from caa.auditing import Fixed
from caa.sandbox import Event

# Of the draft that the json lines community uses; IANA has none yet.
JSON_LINES = "application/jsonl"
# Rows of one reading. The stream may be of any length, and never is in memory as a whole.
CHUNK = 500


class Auditor(Protocol):
    """The audit: `caa.auditing.Auditor`."""

    async def look(self) -> Audit:
        """Compare now."""
        ...

    async def fix(self) -> list[Fixed]:
        """Put right what is ours to put right."""
        ...


class Trail(Protocol):
    """What is read of the ledger: `caa.api.reader.LedgerReader`."""

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
        """Events that match every filter given, in order."""
        ...


class DifferenceView(Model):
    """One thing in which an instance is not as it was launched."""

    what: str = Field(description="type, image, groups, public address, address or state.")
    expected: str
    found: str


class FindingView(Model):
    """What is to be said of one instance. What is not known is empty."""

    verdict: Verdict
    message: str
    instance_id: str
    name: str
    sandbox_id: str
    pod: Pod | None
    differences: list[DifferenceView]


class AuditView(Model):
    """Ledger and cloud compared, for the instances that this node owns."""

    at: datetime
    clean: bool = Field(description="Whether nothing is an orphan, missing or drifted.")
    counts: dict[Verdict, int]
    findings: list[FindingView]


class FixedView(Model):
    """What was done about a finding."""

    finding: FindingView
    done: str | None = Field(description="What was done; null when nothing was.")
    error: str | None = Field(description="Why nothing was done.")


class FixView(Model):
    """What was put right, and how things are afterwards."""

    fixed: list[FixedView]
    audit: AuditView


class TrailEvent(EventView):
    """One line of the trail."""

    sandbox_id: str = Field(description="Empty for what happened to the node itself.")
    cluster: str
    node: str


def audit_router(auditor: Auditor, trail: Trail) -> APIRouter:
    """Audits, and the trail of events."""
    router = APIRouter(prefix="/v1", tags=["audit"])

    @router.get("/audit", operation_id="audit", responses=errors(401, 503))
    async def audit() -> AuditView:
        """Compare ledger and cloud now. Lists the cloud's instances; changes nothing."""
        return audit_view(await auditor.look())

    @router.post("/audit/fix", operation_id="fixAudit", responses=errors(401, 503))
    async def fix() -> FixView:
        """End instances that no sandbox accounts for, and sandboxes whose instance is gone; only those this node owns.

        What drifted is left alone, for a pod may run in it.
        """
        fixed = await auditor.fix()
        after = await auditor.look()
        views = [
            FixedView(finding=_finding(one.finding), done=one.done or None, error=one.error or None) for one in fixed
        ]
        return FixView(fixed=views, audit=audit_view(after))

    @router.get(
        "/events",
        operation_id="exportEvents",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "One event a line, oldest first.",
                "content": {JSON_LINES: {"schema": {"$ref": "#/components/schemas/TrailEvent"}}},
            },
            **errors(401, 422, 503),
        },
    )
    async def events(
        request: Request,
        after: Annotated[int, Query(ge=0, le=2**63 - 1, description="The id of the last event seen.")] = 0,
        sandbox: Annotated[SandboxId | None, Query(description="Only of this sandbox.")] = None,
        node: Annotated[str | None, Query(max_length=253, description="Only written by this node.")] = None,
        kind: Annotated[list[str] | None, Query(description="Only of this kind; may be given more than once.")] = None,
        since: Annotated[Moment | None, Query(description="Only from this moment on.")] = None,
        until: Annotated[Moment | None, Query(description="Only before this moment.")] = None,
    ) -> StreamingResponse:
        """The trail of all sandboxes and of the nodes themselves, as JSON Lines."""

        async def read(after_id: int) -> list[Event]:
            return await trail.trail(
                after_id=after_id,
                limit=CHUNK,
                sandbox_id=sandbox,
                node=node,
                kinds=kind or (),
                since=since,
                until=until,
            )

        first = await read(after)  # what cannot be read is an error, not half an answer

        async def lines() -> AsyncIterator[str]:
            chunk = first
            while chunk:
                yield "".join(trail_event(event).model_dump_json() + "\n" for event in chunk)
                chunk = await read(chunk[-1].id or 0) if len(chunk) == CHUNK else []

        return StreamingResponse(lines(), media_type=JSON_LINES)

    return router


def audit_view(audit: Audit) -> AuditView:
    """An audit as callers see it."""
    return AuditView(
        at=audit.at,
        clean=not audit.differences,
        counts=dict(audit.counts),
        findings=[_finding(finding) for finding in audit.findings],
    )


def trail_event(event: Event) -> TrailEvent:
    """An event as a line of the trail."""
    return TrailEvent(
        **event_view(event).model_dump(), sandbox_id=event.sandbox_id, cluster=event.cluster, node=event.node
    )


def _finding(finding: Finding) -> FindingView:
    return FindingView(
        verdict=finding.verdict,
        message=finding.message,
        instance_id=finding.instance_id,
        name=finding.name,
        sandbox_id=finding.sandbox_id,
        pod=Pod(namespace=finding.pod_namespace, name=finding.pod_name) if finding.pod_name else None,
        differences=[
            DifferenceView(what=one.what, expected=one.expected, found=one.found) for one in finding.differences
        ],
    )
