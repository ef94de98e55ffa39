"""A sandbox's events -> the phases of its life, with their beginnings and ends. Pure.

Metrics, traces and the page's timeline all come from here, so they cannot tell different stories.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from caa.sandbox import Event

# In the order in which they come.
PHASES = {
    "choose": "the offering is chosen, and its turn at the cloud's API waited for",
    "launch": "the cloud is asked for the instance",
    "address": "the instance gets its address",
    "boot": "the instance starts, until its port is open",
    "agent": "TLS is set up and the agent answers",
    "tunnel": "the pod's network is built, beside boot and agent",
    "run": "the pod runs",
    "end": "everything the sandbox brought is removed",
}
START_PHASES = ("choose", "launch", "address", "boot", "agent", "tunnel")


@dataclass(frozen=True, slots=True)
class Phase:
    """One stretch of a sandbox's life. `end` is None while it lasts."""

    name: str  # a key of PHASES
    begin: datetime
    end: datetime | None
    attempt: int | None = None
    outcome: str = ""  # of a launch: "accepted" or a reason word; of what the cloud gave up on later: that word

    @property
    def seconds(self) -> float | None:
        """How long it took; None while it lasts."""
        return None if self.end is None else max(0.0, (self.end - self.begin).total_seconds())


def phases_of(events: Iterable[Event]) -> list[Phase]:
    """The phases that these events, in order, tell of; those of a start that was cut off end with it."""
    found: list[Phase] = []
    going: Phase | None = None
    for event in events:
        step = _STEPS.get(event.kind) or _step_of(event)
        if step is None:
            continue
        if going is not None:
            ended = Phase(going.name, going.begin, event.at, going.attempt, _outcome(going, event))
            found += _reached(ended, event) if event.kind == "Running" else [ended]
        going = Phase(step, event.at, None, event.attempt) if step else None
    return [*found, going] if going else found


# What begins with an event of this kind; "" ends the last phase and begins none.
_STEPS = {
    "StartRequested": "choose",
    "LaunchIntended": "launch",
    "LaunchAccepted": "address",
    "AddressKnown": "boot",
    "Running": "run",
}


def _step_of(event: Event) -> str | None:
    if event.data.get("state") == "stopping":
        return "end"
    if event.kind == "Ended":
        return ""
    # A launch that was refused, or that the cloud gave up on later: another offering is chosen.
    return "choose" if event.data.get("outcome") in ("refused", "given-up") else None


def _outcome(phase: Phase, event: Event) -> str:
    if event.data.get("outcome") == "given-up":
        return event.kind
    if phase.name != "launch":
        return ""
    return "accepted" if event.kind == "LaunchAccepted" else event.kind


def _reached(boot: Phase, event: Event) -> Iterator[Phase]:
    """What went on between the address and the agent's answer, by the seconds that the event has of it."""
    end = boot.end or event.at
    opened = min(end, boot.begin + _seconds(event, "port_open_seconds"))
    answered = max(opened, min(end, boot.begin + _seconds(event, "agent_seconds")))
    yield Phase("boot", boot.begin, opened, boot.attempt)
    yield Phase("agent", opened, answered, boot.attempt)
    if "tunnel_seconds" in event.data:
        yield Phase("tunnel", boot.begin, boot.begin + _seconds(event, "tunnel_seconds"), boot.attempt)


def _seconds(event: Event, name: str) -> timedelta:
    value = event.data.get(name, 0.0)
    return timedelta(seconds=float(value) if isinstance(value, int | float) else 0.0)


@dataclass(frozen=True, slots=True)
class Start:
    """One start from its request to its end, by its events in order; the last one is why it ended."""

    events: Sequence[Event]

    @property
    def ran(self) -> bool:
        """Whether the agent answered."""
        return self.events[-1].kind == "Running"

    @property
    def phases(self) -> list[Phase]:
        """The start's own."""
        return [phase for phase in phases_of(self.events) if phase.name in START_PHASES]

    @property
    def seconds(self) -> float:
        """From the request to the end."""
        return max(0.0, (self.events[-1].at - self.events[0].at).total_seconds())


class Starts:
    """Gathers the events of starts under way. One that began before this process did is not told of."""

    def __init__(self) -> None:
        self._events: dict[str, list[Event]] = {}

    def add(self, event: Event) -> Start | None:
        """The start that this event ends, if it does."""
        if event.kind == "StartRequested":
            self._events[event.sandbox_id] = [event]
        elif event.sandbox_id in self._events:
            self._events[event.sandbox_id].append(event)
            if event.data.get("state") in ("running", "stopping"):
                return Start(self._events.pop(event.sandbox_id))
        return None
