"""One OpenTelemetry trace for each start that is over: its phases as spans, its events on the span of the whole.

Made of the trail's events after the start, with the times that these have. So a start never waits for a collector, and
a trace tells what metrics and the page's timeline tell. Loaded only when CAA_TRACES_ENDPOINT is set.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from datetime import datetime

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

import caa
from caa.phases import Phase, Start, Starts
from caa.sandbox import Event

log = logging.getLogger(__name__)

# A collector stands beside the service; what takes longer is not there, and its traces are dropped.
SEND_SECONDS = 3.0
# When the service stops, what is left may take this long.
STOP_SECONDS = 5.0
# A few events of a sandbox quote the cloud at length.
MESSAGE_LIMIT = 500
# What of an event's data is of use to whoever reads a trace. No other: data are free to grow.
_SHOWN = ("instance_type", "zone", "market", "instance", "outcome", "reason", "request_id", "seconds", "image", "why")
_ASKED_FOR = ("StopRequested", "CallerGone", "Superseded")


class Traces:
    """Sends traces to a collector, in batches, from a thread of its own."""

    def __init__(self, endpoint: str, *, provider: str, cluster: str, node: str) -> None:
        self._cloud = provider
        self._starts = Starts()
        resource = {
            "service.name": "caa",
            "service.version": caa.__version__,
            "k8s.node.name": node,
            "k8s.cluster.name": cluster,
        }
        self._provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
        # The library tells each failed attempt with a trace of its own.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        # A token may be in the query.
        exporter = _Told(OTLPSpanExporter(endpoint, timeout=SEND_SECONDS), endpoint.partition("?")[0])
        self._provider.add_span_processor(BatchSpanProcessor(exporter, export_timeout_millis=SEND_SECONDS * 1000))
        self._tracer = self._provider.get_tracer("caa", caa.__version__)

    def on_event(self, event: Event) -> None:
        """For `Node.watchers`."""
        start = self._starts.add(event)
        if start is not None:
            trace_of(self._tracer, start, self._cloud)

    async def close(self) -> None:
        """Send what is left, for a while."""
        # A thread that the process does not wait for: the library waits for up to 30 seconds, whatever it is told.
        sending = threading.Thread(target=self._provider.shutdown, name="last-traces", daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, STOP_SECONDS)
        if sending.is_alive():
            log.info("some traces were not sent")


def trace_of(tracer: Tracer, start: Start, cloud: str) -> None:
    """One trace: the start, below it its phases, each launch by its offering."""
    first, last = start.events[0], start.events[-1]
    root = tracer.start_span("StartVM", kind=SpanKind.SERVER, start_time=_nanoseconds(first.at))
    root.set_attributes(
        {
            "caa.sandbox.id": first.sandbox_id,
            "k8s.namespace.name": str(first.data.get("pod_namespace", "")),
            "k8s.pod.name": str(first.data.get("pod_name", "")),
            "cloud.provider": cloud,
            **_shown(last.data),
        }
    )
    for event in start.events:
        about = {"message": event.message[:MESSAGE_LIMIT], **_shown(event.data)}
        root.add_event(event.kind, about, timestamp=_nanoseconds(event.at))
    places = {event.attempt: _shown(event.data) for event in start.events if event.kind == "LaunchIntended"}
    failed = not start.ran and last.kind not in _ASKED_FOR
    phases = start.phases
    for phase in phases:
        # What a start failed in did not go well either.
        failure = last.kind if failed and phase is phases[-1] else ""
        _phase(tracer, root, phase, places.get(phase.attempt, {}), last.at, failure)
    if not start.ran:
        root.set_attribute("caa.reason", last.kind)
    if failed:
        root.set_status(Status(StatusCode.ERROR, f"{last.kind}: {last.message[:MESSAGE_LIMIT]}"))
    root.end(_nanoseconds(last.at))


def _phase(
    tracer: Tracer, root: Span, phase: Phase, place: Mapping[str, str | float], end: datetime, failure: str
) -> None:
    span = tracer.start_span(phase.name, set_span_in_context(root), start_time=_nanoseconds(phase.begin))
    # Where another offering is chosen, the attempt is the one before.
    if phase.attempt is not None and phase.name != "choose":
        span.set_attributes({"caa.attempt": phase.attempt, **place})
    if phase.outcome:
        span.set_attribute("caa.outcome", phase.outcome)
    error = failure or (phase.outcome if phase.outcome != "accepted" else "")
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(_nanoseconds(phase.end or end))


def _shown(data: Mapping[str, object]) -> dict[str, str | float]:
    found: dict[str, str | float] = {}
    for name in _SHOWN:
        value = data.get(name)
        if isinstance(value, str | int | float) and value != "":
            found[f"caa.{name}"] = value if isinstance(value, int | float) else value[:MESSAGE_LIMIT]
    return found


def _nanoseconds(at: datetime) -> int:
    # Not of the seconds as a float, which has no more than microseconds to spare.
    return int(at.timestamp() * 1_000_000) * 1000


class _Told(SpanExporter):
    """Says once that the collector cannot be reached, and once that it can again."""

    def __init__(self, inner: SpanExporter, endpoint: str) -> None:
        self._inner, self._endpoint, self._failing = inner, endpoint, False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception:  # the library's own, of any kind: a trace is never worth more than the service
            result = SpanExportResult.FAILURE
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            log.warning("CAA_TRACES_ENDPOINT: %s does not take traces; they are dropped until it does", self._endpoint)
        elif self._failing and not failing:
            log.info("CAA_TRACES_ENDPOINT: %s takes traces again", self._endpoint)
        self._failing = failing
        return result

    def shutdown(self) -> None:
        self._inner.shutdown()
