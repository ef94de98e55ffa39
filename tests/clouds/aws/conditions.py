"""What a test can set about the emulated EC2: its clock, delays, capacity, quotas, limits and staleness.

Pure bookkeeping. Everything is asked and changed with the emulator's one lock held.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.clouds.aws.errors import Ec2Error

# Request token buckets of one account and region, (burst, refill per second), as Amazon's throttling page has them.
EC2_LIMITS: dict[str, tuple[float, float]] = {
    "RunInstances": (5, 2),
    "TerminateInstances": (100, 5),
    "Describe*": (100, 20),
}
# DescribeInstances sends at most this many instances in one page.
MAX_PAGE = 1000
ANY = "*"


class Clock:
    """Seconds since the emulator began. Runs with real time until stopped; `advance` works in both modes."""

    def __init__(self) -> None:
        self.running = True
        self._offset = -time.monotonic()
        self._stopped_at = 0.0

    def now(self) -> float:
        return time.monotonic() + self._offset if self.running else self._stopped_at

    def advance(self, seconds: float) -> None:
        self._offset += seconds
        self._stopped_at += seconds

    def run(self, running: bool) -> None:
        if running == self.running:
            return
        now = self.now()
        self.running = running
        self._stopped_at, self._offset = now, now - time.monotonic()


@dataclass
class Bucket:
    """A token bucket; one token for each request."""

    burst: float
    per_second: float
    tokens: float
    at: float

    def take(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass
class CapacityRule:
    """`remaining` more instances of this type x zone x market can be had; "*" is any."""

    instance_type: str = ANY
    zone: str = ANY
    market: str = ANY
    remaining: int = 0

    def matches(self, instance_type: str, zone: str, market: str) -> bool:
        pairs = ((self.instance_type, instance_type), (self.zone, zone), (self.market, market))
        return all(wanted in (ANY, given) for wanted, given in pairs)


@dataclass
class Staleness:
    """How long DescribeInstances does not know a new instance: that many calls, and that many seconds.

    With `terminate`, TerminateInstances does not know it either for as long.
    """

    calls: int = 0
    seconds: float = 0.0
    terminate: bool = False


@dataclass
class Delays:
    """Seconds from launch to running, from running to an answering guest, from terminate to terminated."""

    pending: float = 0.0
    boot: float = 0.0
    shutting_down: float = 0.0


@dataclass
class Conditions:
    """All of it. A fresh one is a cloud without limits or delays."""

    clock: Clock = field(default_factory=Clock)
    delays: Delays = field(default_factory=Delays)
    capacity: list[CapacityRule] = field(default_factory=list)
    vcpu_quota: dict[str, int] = field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    staleness: Staleness = field(default_factory=Staleness)
    page_size: int = MAX_PAGE
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def set_limits(self, limits: dict[str, tuple[float, float]]) -> None:
        """Replace all limits; buckets start full. "Describe*" gives each such action a bucket of its own."""
        self.limits = limits
        self._buckets = {}

    def admit(self, action: str) -> None:
        """Count a request. Raises RequestLimitExceeded."""
        self.calls[action] += 1
        limit = self.limits.get(action) or next(
            (value for key, value in self.limits.items() if key.endswith(ANY) and action.startswith(key[:-1])), None
        )
        if limit is None:
            return
        now = self.clock.now()
        bucket = self._buckets.setdefault(action, Bucket(*limit, tokens=limit[0], at=now))
        if not bucket.take(now):
            raise Ec2Error("RequestLimitExceeded", "Request limit exceeded.")

    def take_capacity(self, instance_type: str, zone: str, market: str, count: int) -> None:
        """Raises InsufficientInstanceCapacity, and then takes nothing."""
        rules = [rule for rule in self.capacity if rule.matches(instance_type, zone, market)]
        if any(rule.remaining < count for rule in rules):
            text = (
                "There is no Spot capacity available that matches your request."
                if market == "spot"
                else f"We currently do not have sufficient {instance_type} capacity in the Availability Zone you "
                f"requested ({zone}). Our system will be working on provisioning additional capacity."
            )
            raise Ec2Error("InsufficientInstanceCapacity", text)
        for rule in rules:
            rule.remaining -= count

    def check_quota(self, market: str, used_vcpus: int, wanted_vcpus: int) -> None:
        """Raises VcpuLimitExceeded (on-demand) or MaxSpotInstanceCountExceeded (spot)."""
        limit = self.vcpu_quota.get(market)
        if limit is None or used_vcpus + wanted_vcpus <= limit:
            return
        if market == "spot":
            raise Ec2Error("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        raise Ec2Error(
            "VcpuLimitExceeded",
            f"You have requested more vCPU capacity than your current vCPU limit of {limit} allows for the instance "
            "bucket that the specified instance type belongs to.",
        )

    def describe(self) -> dict[str, Any]:
        """The counters."""
        return {"calls": dict(self.calls), "errors": dict(self.errors)}
