"""What Prometheus reads at /metrics. Counters come from events and calls as they happen, gauges from a look when asked.

Labels are bounded: offerings and reason words come from the configuration and the providers' tables, and past a limit
all others are one. No label names a sandbox or a pod.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

import caa
from caa.audit import Audit, Verdict
from caa.cloud import OUTCOMES, ApiCall
from caa.errors import CallError, UnavailableError
from caa.limiter import Limiter
from caa.node import Node
from caa.phases import Start, Starts
from caa.reload import Status
from caa.sandbox import Event
from providers.base import ApiClass

# From a call's answer to the ten minutes a shim waits.
START_BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 45, 60, 120, 300, 600)
CALL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
# Ten types in five zones and two markets are 100. Each has about 120 series.
MOST_OFFERINGS = 100
# The providers' tables have some thirty reasons each; a cloud's own codes come through where a table has none.
MOST_REASONS = 60
OTHER = "other"
# Prometheus gives a scrape up after ten seconds, unless told otherwise; a database may take longer to be away.
LEDGER_SECONDS = 5.0
# By what a start is refused with.
IMAGE_STATES = {"ready": "", "building": "ImageBuilding", "failed": "ImageFailed", "missing": "ImageMissing"}
_OFFERING = ("provider", "instance_type", "zone", "market")


class Bounded:
    """The first so many values as they are, all later ones as "other"."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._known: set[tuple[str, ...]] = set()

    def __call__(self, *values: str) -> tuple[str, ...]:
        """The values for labels."""
        if values not in self._known:
            if len(self._known) >= self._most:
                return (OTHER,) * len(values)
            self._known.add(values)
        return values


class Metrics:
    """The metrics of one node."""

    def __init__(
        self,
        node: Node,
        limiter: Limiter,
        *,
        audit: Callable[[], Audit | None],
        configuration: Callable[[], Status],
        ready: Callable[[], bool],
        image_refusal: Callable[[], CallError | None],
    ) -> None:
        self._node, self._limiter = node, limiter
        self._audit, self._configuration, self._ready = audit, configuration, ready
        self._image_refusal = image_refusal
        self._starting, self._offering, self._reason = Starts(), Bounded(MOST_OFFERINGS), Bounded(MOST_REASONS)
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self._start_seconds = histogram(
            "caa_start_seconds",
            "Seconds from the request of a start to the agent's answer.",
            START_BUCKETS,
            *_OFFERING,
        )
        self._phase_seconds = histogram(
            "caa_start_phase_seconds",
            "Seconds of each phase of a start that succeeded.",
            START_BUCKETS,
            "phase",
            *_OFFERING,
        )
        self._starts = counter("caa_starts_total", "Starts that are over, by outcome.", "provider", "outcome", "reason")
        self._attempts = counter(
            "caa_launch_attempts_total", "Answers of the cloud to launches.", *_OFFERING, "outcome", "reason"
        )
        self._fallbacks = counter(
            "caa_fallbacks_total", "Launches of another offering than the one asked for first.", "provider"
        )
        self._end_seconds = histogram(
            "caa_terminate_seconds",
            "Seconds until the cloud took the end of an instance.",
            CALL_BUCKETS,
            "provider",
        )
        self._calls = counter("caa_cloud_calls_total", "Calls to the cloud's API.", "provider", "api", "outcome")
        self._call_seconds = histogram(
            "caa_cloud_call_seconds", "Seconds a call to the cloud's API took.", CALL_BUCKETS, "provider", "api"
        )
        self._turn_seconds = histogram(
            "caa_limiter_wait_seconds",
            "Seconds a call waited for its turn at the cloud's API.",
            START_BUCKETS,
            "provider",
            "api",
        )
        self._orphans = counter("caa_orphans_total", "Instances without a sandbox that were terminated.", "provider")
        self._refused = counter("caa_configurations_total", "Changes of the configuration.", "outcome")
        self._ledger_usable = gauge(
            "caa_ledger_available", "1 when the ledger can be used; without it what it counts is left out."
        )
        self._sandboxes = gauge("caa_sandboxes", "Sandboxes of this node, by state.", "state")
        self._limit = gauge("caa_node_limit", "How many pod VMs this node may have at once; below 0 there is no limit.")
        self._waiting = gauge("caa_limiter_waiting", "Calls that wait for their turn.", "provider", "api")
        self._paused = gauge(
            "caa_limiter_paused_seconds", "Seconds for which calls rest after a refusal.", "provider", "api"
        )
        self._unavailable = gauge(
            "caa_offerings_unavailable",
            "Offerings that are not asked for now because the cloud refused them.",
            "provider",
        )
        self._findings = gauge("caa_audit_findings", "Instances by what the newest look says of them.", "verdict")
        self._looked = gauge("caa_audit_timestamp_seconds", "When instances were last looked at.")
        self._image = gauge("caa_image", "1 for the state that the pod VM image is in.", "state")
        self._is_ready = gauge("caa_ready", "1 when the service takes calls.")
        self._generation = gauge("caa_configuration_generation", "Which configuration applies, counted from the start.")
        self._change_refused = gauge("caa_configuration_refused", "1 while a change of the configuration is refused.")
        self._restart_keys = gauge("caa_configuration_restart_keys", "Changed keys that wait for a restart.")
        settings = node.current.settings
        gauge("caa_build_info", "The service's version.", "version").labels(caa.__version__).set(1)
        gauge(
            "caa_settings_info", "How the service is set up.", "provider", "cluster", "node", "ledger", "tunnel"
        ).labels(
            node.cloud.name,
            node.scope.cluster,
            node.scope.node,
            settings.ledger_url.partition(":")[0].partition("+")[0],
            settings.tunnel_type,
        ).set(1)
        # From the start, so that the first of them is an increase.
        self._orphans.labels(node.cloud.name)
        for outcome in ("applied", "refused"):
            self._refused.labels(outcome)
        for api in node.cloud.limits:
            for outcome in OUTCOMES:
                self._calls.labels(node.cloud.name, api.value, outcome)
        self._fallbacks.labels(node.cloud.name)
        self._asking: asyncio.Task[None] | None = None

    def on_event(self, event: Event) -> None:
        """For `Node.watchers`."""
        provider = self._node.cloud.name
        start = self._starting.add(event)
        if start is not None:
            self._on_start(start)
        reason = str(event.data.get("reason", event.kind if event.data.get("outcome") == "refused" else ""))
        match event.kind:
            case "LaunchIntended" if (event.attempt or 0) > 1:
                self._fallbacks.labels(provider).inc()
            case "InstanceTerminated":
                self._end_seconds.labels(provider).observe(float(event.data.get("seconds", 0)))
            case "OrphanTerminated":
                self._orphans.labels(provider).inc()
            case "ConfigurationApplied":
                self._refused.labels("applied").inc()
            case "ConfigurationRefused":
                self._refused.labels("refused").inc()
        if "instance_type" in event.data and "outcome" in event.data:
            offering = self._offering(*_place(event.data))
            self._attempts.labels(provider, *offering, str(event.data["outcome"]), *self._reason(reason)).inc()

    def on_call(self, call: ApiCall) -> None:
        """For `Cloud.watcher`."""
        provider = self._node.cloud.name
        self._calls.labels(provider, call.api.value, call.outcome).inc()
        self._call_seconds.labels(provider, call.api.value).observe(call.seconds)

    def on_turn(self, api: ApiClass, seconds: float) -> None:
        """For `Limiter.watcher`."""
        self._turn_seconds.labels(self._node.cloud.name, api.value).observe(seconds)

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the format that an Accept header asks for, and that format's content type."""
        await self._look()
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _on_start(self, start: Start) -> None:
        provider, last = self._node.cloud.name, start.events[-1]
        if not start.ran:
            # A stop during a start is no failure of the start.
            outcome = "stopped" if last.kind in ("StopRequested", "CallerGone", "Superseded") else "failed"
            self._starts.labels(provider, outcome, *self._reason(last.kind)).inc()
            return
        self._starts.labels(provider, "running", "").inc()
        offering = self._offering(*_place(last.data))
        self._start_seconds.labels(provider, *offering).observe(start.seconds)
        spent: dict[str, float] = {}
        for phase in start.phases:
            spent[phase.name] = spent.get(phase.name, 0.0) + (phase.seconds or 0.0)
        for name, seconds in spent.items():
            self._phase_seconds.labels(name, provider, *offering).observe(seconds)

    async def _look(self) -> None:
        usable = await self._ledger_answers()
        self._ledger_usable.set(usable)
        if not usable:
            # What they were says nothing of what they are.
            for gauge in (self._sandboxes, self._paused, self._unavailable):
                gauge.clear()
        node = self._node
        for api in node.cloud.limits:
            self._waiting.labels(node.cloud.name, api.value).set(self._limiter.waiting[api])
        self._limit.set(node.limit)
        self._is_ready.set(self._ready())
        refusal = self._image_refusal()
        for image_state, reason in IMAGE_STATES.items():
            self._image.labels(image_state).set((refusal.reason if refusal else "") == reason)
        configuration = self._configuration()
        self._generation.set(configuration.generation)
        self._change_refused.set(configuration.refused is not None)
        self._restart_keys.set(len(configuration.restart_needed))
        audit = self._audit()
        for verdict in Verdict:
            self._findings.labels(verdict.value).set(audit.counts[verdict] if audit else 0)
        if audit:
            self._looked.set(audit.at.timestamp())

    async def _ledger_answers(self) -> bool:
        """Whether it did within LEDGER_SECONDS. A question that hangs is not asked again beside itself."""
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_ledger())
        asking = self._asking
        await asyncio.wait((asking,), timeout=LEDGER_SECONDS)
        if not asking.done():
            return False
        if self._asking is asking:
            self._asking = None
        try:
            asking.result()
        except UnavailableError:
            return False
        return True

    async def _ask_ledger(self) -> None:
        """Raises UnavailableError."""
        node, provider = self._node, self._node.cloud.name
        now = node.clock.now()
        counts = await node.db(node.ledger.count_by_state, *_scope(node))
        names = {api: self._limiter.name(api) for api in node.cloud.limits}
        paused = await node.db(node.ledger.account.paused_until, list(names.values()))
        unavailable = await node.db(node.ledger.account.unavailable, node.cloud.account, now)
        for state, count in counts.items():
            self._sandboxes.labels(state.value).set(count)
        for api, name in names.items():
            left = (paused[name] - now).total_seconds() if name in paused else 0.0
            self._paused.labels(provider, api.value).set(max(0.0, left))
        self._unavailable.labels(provider).set(len(unavailable))


def _place(data: Mapping[str, object]) -> tuple[str, str, str]:
    return str(data.get("instance_type", "")), str(data.get("zone", "")), str(data.get("market", ""))


def _scope(node: Node) -> tuple[str, str]:
    return node.scope.cluster, node.scope.node
