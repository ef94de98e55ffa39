"""Records of the ledger -> what the page shows. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from caa.age import age
from caa.api.reader import SandboxRecord
from caa.phases import PHASES, Phase
from caa.prices import Prices
from caa.web.consoles import console_link

SHORT_ID = 12
# A bar of no time at all is still to be seen. In thousandths of the timeline.
_THINNEST = 4


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table. "" is what is not known."""

    id: str
    short_id: str
    state: str
    reason: str  # why it failed
    failure: str
    pod: str
    node: str
    instance_id: str
    console: str  # link to the instance
    type: str
    zone: str
    market: str
    cost: str  # for an hour, in the currency of the price file
    created_at: str
    age: str

    @property
    def text(self) -> str:
        """What a search looks at."""
        shown = (self.id, self.state, self.reason, self.pod, self.node, self.instance_id, self.type, self.zone)
        return " ".join((*shown, self.market)).lower()


def row(record: SandboxRecord, provider: str, prices: Prices, now: datetime) -> Row:
    """A sandbox with its newest attempt that has an instance, or its newest attempt."""
    sandbox = record.sandbox
    attempt = next((one for one in reversed(record.attempts) if one.instance_id), None)
    attempt = attempt or (record.attempts[-1] if record.attempts else None)
    offering = attempt.offering if attempt else None
    kind, market = (offering.instance_type, str(offering.market)) if offering else ("", "")
    price = prices.get((kind, market), prices.get((kind, "")))
    zone = offering.zone if offering else ""
    instance = attempt.instance_id if attempt else ""
    return Row(
        id=sandbox.id,
        short_id=sandbox.id[:SHORT_ID],
        state=sandbox.state.value,
        reason=sandbox.failure_reason,
        failure=sandbox.failure,
        pod=f"{sandbox.pod_namespace}/{sandbox.pod_name}",
        node=sandbox.node,
        instance_id=instance,
        console=console_link(provider, zone, instance),
        type=kind,
        zone=zone,
        market=market,
        cost="" if price is None else f"{price:.4f}",
        created_at=sandbox.created_at.isoformat(),
        age=age((now - sandbox.created_at).total_seconds()),
    )


@dataclass(frozen=True, slots=True)
class Bar:
    """A phase on the timeline; `begin` and `width` in thousandths of it."""

    name: str
    meaning: str
    begin: int
    width: int
    took: str
    outcome: str


def bars(phases: Iterable[Phase], now: datetime) -> list[Bar]:
    """The phases of a start, from its request on. What comes after the start would make all of them too thin."""
    found = [phase for phase in phases if phase.name not in ("run", "end")]
    if not found:
        return []
    first = min(phase.begin for phase in found)
    last = max(phase.end or now for phase in found)
    whole = max(last - first, timedelta(milliseconds=1))
    return [_bar(phase, first, whole, now) for phase in found]


def _bar(phase: Phase, first: datetime, whole: timedelta, now: datetime) -> Bar:
    begin = round(1000 * ((phase.begin - first) / whole))
    width = max(_THINNEST, round(1000 * (((phase.end or now) - phase.begin) / whole)))
    took = "under way" if phase.seconds is None else f"{phase.seconds:.2f} s"
    return Bar(phase.name, PHASES[phase.name], min(begin, 1000 - _THINNEST), width, took, phase.outcome)
