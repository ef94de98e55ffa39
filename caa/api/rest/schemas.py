"""What the REST interface takes and gives, and how records become that.

Never part of an answer: user data, idempotency tokens, keys.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from caa.api.reader import SandboxRecord
from caa.errors import InvalidInputError
from caa.explain import RULES, Considered, Explanation
from caa.ledger import Cursor
from caa.sandbox import Event, Sandbox, SandboxState
from caa.sizing import Rule
from providers.base import Market

# Kubernetes' own limit for the annotations of one object.
ANNOTATION_BYTES = 256 * 1024
# What a person, or one page of a table, can take; a page of 1000 is about 1 MB.
PAGE_DEFAULT, PAGE_LIMIT = 100, 1000
_DATE = re.compile(r"\d{4}-\d\d-\d\d")

SandboxId = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64),
    Field(description="Letters, digits, '_', '.' and '-', beginning with a letter or digit; at most 64."),
]


def _no_number(given: object) -> object:
    # Which pydantic takes for seconds or milliseconds since 1970, whatever is nearer.
    if isinstance(given, str) and not _DATE.match(given):
        raise ValueError("must be a date and time of RFC 3339, such as 2026-01-31T12:00:00Z")
    return given


def _to_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the year 1 or after the year 9999 in UTC") from None


Moment = Annotated[AwareDatetime, BeforeValidator(_no_number), AfterValidator(_to_utc)]
"""With a time zone, as all that is stored."""
Annotations = dict[str, Annotated[str, StringConstraints(max_length=ANNOTATION_BYTES)]]


class Model(BaseModel):
    """Base of everything below."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NewSandbox(Model):
    """What POST /v1/sandboxes takes."""

    id: SandboxId
    annotations: Annotations = Field(
        description="As Kata gives them. io.kubernetes.cri.sandbox-name and io.kubernetes.cri.sandbox-namespace name "
        "the pod and are required."
    )
    network_namespace_path: Annotated[str, StringConstraints(pattern=r"^(/.*)?$", max_length=4095)] = Field(
        "", description="Absolute path of the pod's network namespace; empty for a pod on the host's network."
    )


class Pod(Model):
    """The pod a sandbox is of."""

    namespace: str
    name: str


class Failure(Model):
    """What went wrong."""

    reason: str = Field(description="A stable CamelCase word.")
    detail: str = Field(description="A sentence for people.")


class InstanceView(Model):
    """The newest instance of a sandbox, as it was last seen."""

    id: str = Field(description="The cloud's own id.")
    name: str
    type: str
    zone: str
    market: str
    address: str | None
    image: str = Field(description="The image asked for; empty for the one that is configured.")


class SandboxView(Model):
    """A sandbox."""

    id: str
    state: SandboxState
    pod: Pod
    node: str
    cluster: str
    agent_socket_path: str
    network_namespace_path: str
    failure: Failure | None
    created_at: datetime
    changed_at: datetime = Field(description="When the state last changed.")
    instance: InstanceView | None
    attempts: int = Field(description="How many launch attempts were made.")


class SandboxPage(Model):
    """Sandboxes, oldest first."""

    sandboxes: list[SandboxView]
    next_cursor: str | None = Field(description="Give this as `cursor` for the next page; null on the last one.")


class EventView(Model):
    """Something that happened to a sandbox."""

    id: int
    at: datetime
    kind: str = Field(description="A stable CamelCase word.")
    message: str
    attempt: int | None
    data: dict[str, str | int | float | bool]


class EventPage(Model):
    """Events, oldest first."""

    events: list[EventView]
    next_after: int = Field(description="Give this as `after` for what comes later; there may be nothing yet.")


class StoppedState(StrEnum):
    """The states of a sandbox that was told to stop, and one for an id nobody knows."""

    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"


class Stopped(Model):
    """The answer to a stop. What is left to remove is removed by the service, whoever is still listening."""

    id: str
    state: StoppedState


class PodToSize(Model):
    """What POST /v1/sizing/explain takes."""

    annotations: Annotations = Field(description="As Kata gives them; only those of sizing are looked at.")


class Wanted(Model):
    """What a pod asks for. 0 and "" mean: nothing."""

    machine_type: str
    vcpus: int
    memory_mib: int
    gpus: int
    gpu_model: str


class OfferingView(Model):
    """Something that the cloud could be asked for, with the size it would have."""

    order: int = Field(description="The place, from 1, in which it is asked for; 0 when it does not do.")
    type: str
    zone: str
    market: Market
    arch: str
    vcpus: int
    memory_mib: int
    gpus: int
    gpu_model: str
    price: float | None = Field(description="For an hour, from CAA_PRICES_FILE; null when not known.")
    refused: str | None = Field(description="Why it does not do; null when it does.")
    passed_over: str | None = Field(description="Why the cloud is not asked for it at the moment; null when it is.")


class SizingView(Model):
    """What a pod would get."""

    wanted: Wanted
    rule: Rule = Field(description="Which of the pod's wishes decides.")
    rule_text: str = Field(description="The same in a sentence.")
    ignored: list[str] = Field(description="What the pod asks for that other wishes outweigh.")
    image: str
    chosen: OfferingView | None = Field(description="What would be launched; null when nothing would.")
    refusal: Failure | None = Field(description="Why nothing would be launched.")
    offerings: list[OfferingView] = Field(description="Those that do, in their order, and then the others.")


class Version(Model):
    """The service's own."""

    version: str


class Healthy(Model):
    """All is well."""

    status: str = "ok"


def sandbox_view(record: SandboxRecord) -> SandboxView:
    """A sandbox as callers see it."""
    sandbox = record.sandbox
    return SandboxView(
        id=sandbox.id,
        state=sandbox.state,
        pod=Pod(namespace=sandbox.pod_namespace, name=sandbox.pod_name),
        node=sandbox.node,
        cluster=sandbox.cluster,
        agent_socket_path=sandbox.socket_path,
        network_namespace_path=sandbox.netns_path,
        failure=Failure(reason=sandbox.failure_reason, detail=sandbox.failure) if sandbox.failure_reason else None,
        created_at=sandbox.created_at,
        changed_at=sandbox.changed_at,
        instance=_instance(record),
        attempts=len(record.attempts),
    )


def event_view(event: Event) -> EventView:
    """An event as callers see it."""
    assert event.id is not None  # the ledger gives every stored event one
    return EventView(
        id=event.id, at=event.at, kind=event.kind, message=event.message, attempt=event.attempt, data=event.data
    )


def sizing_view(explained: Explanation) -> SizingView:
    """An explanation as callers see it."""
    wanted, chosen, refusal = explained.wanted, explained.chosen, explained.refusal
    return SizingView(
        wanted=Wanted(
            machine_type=wanted.machine_type,
            vcpus=wanted.vcpus,
            memory_mib=wanted.memory_mib,
            gpus=wanted.gpus,
            gpu_model=wanted.gpu_model,
        ),
        rule=wanted.rule,
        rule_text=RULES[wanted.rule],
        ignored=list(explained.ignored),
        image=explained.image,
        chosen=_offering(chosen) if chosen else None,
        refusal=Failure(reason=refusal.reason, detail=str(refusal)) if refusal else None,
        offerings=[_offering(one) for one in explained.considered],
    )


def _offering(one: Considered) -> OfferingView:
    offering = one.offering
    return OfferingView(
        order=one.order,
        type=offering.instance_type,
        zone=offering.zone,
        market=offering.market,
        arch=offering.arch,
        vcpus=offering.vcpus,
        memory_mib=offering.memory_mib,
        gpus=offering.gpus,
        gpu_model=offering.gpu_model,
        price=one.price,
        refused=one.refused or None,
        passed_over=one.passed_over or None,
    )


def stopped_view(sandbox_id: str, sandbox: Sandbox | None) -> Stopped:
    """The answer to a stop; None is an id nobody knows."""
    return Stopped(id=sandbox_id, state=StoppedState(sandbox.state) if sandbox else StoppedState.UNKNOWN)


def _instance(record: SandboxRecord) -> InstanceView | None:
    for attempt in reversed(record.attempts):
        if attempt.instance_id:
            return InstanceView(
                id=attempt.instance_id,
                name=attempt.name,
                type=attempt.offering.instance_type,
                zone=attempt.offering.zone,
                market=attempt.offering.market,
                address=attempt.addresses[0] if attempt.addresses else None,
                image=attempt.image,
            )
    return None


_CURSOR: TypeAdapter[Cursor] = TypeAdapter(Cursor)


def cursor_text(sandbox: Sandbox) -> str:
    """Where a page that ends with `sandbox` ended. Opaque to callers, so that the order may change one day."""
    return base64.urlsafe_b64encode(_CURSOR.dump_json((sandbox.created_at, sandbox.id))).decode().rstrip("=")


def read_cursor(text: str) -> Cursor:
    """The other way. Raises InvalidInputError."""
    try:
        at, sandbox_id = _CURSOR.validate_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        if at.tzinfo is None:
            raise ValueError("no time zone")
    except (binascii.Error, ValidationError, ValueError):
        raise InvalidInputError("cursor", f"cursor {text[:100]!r} is none that this service gave") from None
    return at, sandbox_id
