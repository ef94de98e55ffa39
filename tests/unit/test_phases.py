"""What a sandbox's events tell of the phases of its start, and the trace that is made of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from caa.phases import Phase, Start, phases_of
from caa.sandbox import Event
from caa.traces import trace_of

BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)
A = {"instance_type": "small", "zone": "a"}
B = {"instance_type": "small", "zone": "b"}


def at(second: float, kind: str, attempt: int | None = None, **data: str | float) -> Event:
    """An event of so many seconds after the beginning."""
    return Event("web", BEGIN + timedelta(seconds=second), kind, f"{kind} happened", attempt, dict(data))


ASKED = at(0, "StartRequested", state="starting", pod_namespace="default", pod_name="web")
FALLBACK = [
    ASKED,
    at(1, "LaunchIntended", 1, **A),
    at(2, "QuotaExceeded", 1, outcome="refused", **A),
    at(3, "LaunchIntended", 2, **B),
    at(5, "LaunchAccepted", 2, outcome="accepted", **B),
    at(9, "AddressKnown", 2),
    at(30, "Running", 2, state="running", port_open_seconds=15, agent_seconds=21, tunnel_seconds=0.5, **B),
]
GIVEN_UP = [
    ASKED,
    at(1, "LaunchIntended", 1, **A),
    at(2, "LaunchAccepted", 1, outcome="accepted", **A),
    at(8, "AllocationFailed", 1, outcome="given-up"),
    at(10, "LaunchIntended", 2, **B),
    at(11, "LaunchAccepted", 2, outcome="accepted", **B),
    at(12, "AddressKnown", 2),
    at(42, "AgentUnreachable", state="stopping"),
]


def seconds(phase: Phase) -> tuple[str, float, float, str]:
    assert phase.end is not None
    return phase.name, (phase.begin - BEGIN).total_seconds(), (phase.end - BEGIN).total_seconds(), phase.outcome


def test_phases_follow_each_other_without_a_gap_but_for_the_tunnel_beside_them() -> None:
    assert [seconds(phase) for phase in Start(FALLBACK).phases] == [
        ("choose", 0, 1, ""),
        ("launch", 1, 2, "QuotaExceeded"),
        ("choose", 2, 3, ""),
        ("launch", 3, 5, "accepted"),
        ("address", 5, 9, ""),
        ("boot", 9, 24, ""),
        ("agent", 24, 30, ""),
        ("tunnel", 9, 9.5, ""),
    ]
    run = phases_of(FALLBACK)[-1]
    assert (run.name, run.end) == ("run", None)


def test_what_the_cloud_gives_up_on_ends_its_phase_with_the_reason() -> None:
    assert [seconds(phase) for phase in Start(GIVEN_UP).phases] == [
        ("choose", 0, 1, ""),
        ("launch", 1, 2, "accepted"),
        ("address", 2, 8, "AllocationFailed"),
        ("choose", 8, 10, ""),
        ("launch", 10, 11, "accepted"),
        ("address", 11, 12, ""),
        ("boot", 12, 42, ""),
    ]


def traced(events: list[Event]) -> tuple[ReadableSpan, list[ReadableSpan]]:
    """The root, and the spans below it in their order."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace_of(provider.get_tracer("test"), Start(events), "somewhere")
    *below, root = exporter.get_finished_spans()
    assert root.context is not None
    for span in below:
        assert span.parent is not None
        assert (span.parent.span_id, span.parent.trace_id) == (root.context.span_id, root.context.trace_id)
    return root, below


def test_spans_have_the_seconds_of_the_phases_and_add_up_to_the_start() -> None:
    root, below = traced(FALLBACK)
    assert (root.start_time, root.end_time) == tuple(int((BEGIN.timestamp() + s) * 10**9) for s in (0, 30))
    spent = [(span.end_time or 0) - (span.start_time or 0) for span in below if span.name != "tunnel"]
    assert sum(spent) == 30 * 10**9
    assert root.status.status_code is StatusCode.UNSET
    launches = [dict(span.attributes or {}) for span in below if span.name == "launch"]
    assert [(one["caa.attempt"], one["caa.zone"], one["caa.outcome"]) for one in launches] == [
        (1, "a", "QuotaExceeded"),
        (2, "b", "accepted"),
    ]
    assert not any("caa.zone" in (span.attributes or {}) for span in below if span.name == "choose")


@pytest.mark.parametrize(("kind", "failed"), [("AgentUnreachable", True), ("StopRequested", False)])
def test_a_start_that_fails_has_its_reason_at_the_root_and_where_it_happened(kind: str, failed: bool) -> None:
    root, below = traced([*GIVEN_UP[:-1], at(42, kind, state="stopping")])
    assert (root.attributes or {})["caa.reason"] == kind
    assert (root.status.status_code is StatusCode.ERROR) == failed
    wrong = {(span.name, span.status.description) for span in below if span.status.status_code is StatusCode.ERROR}
    assert wrong == {("address", "AllocationFailed"), *([("boot", kind)] if failed else [])}
