"""What a test can set about the emulated Azure. Asked and changed with the emulator's one lock held."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.clouds.aws.conditions import Bucket, CapacityRule, Clock, Delays, Staleness
from tests.clouds.azure.errors import ArmError


@dataclass
class Conditions:
    """All of it. A fresh one is a cloud without limits or delays."""

    clock: Clock = field(default_factory=Clock)
    delays: Delays = field(default_factory=Delays)
    capacity: list[CapacityRule] = field(default_factory=list)  # refused by the PUT: SkuNotAvailable
    failing: list[CapacityRule] = field(default_factory=list)  # accepted, and the operation fails: AllocationFailed
    quota: dict[str, int] = field(default_factory=dict)  # family, cores or lowPriorityCores -> vCPUs
    barred: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    staleness: Staleness = field(default_factory=Staleness)
    keeping: list[str] = field(default_factory=list)  # kinds that stay when their VM goes, whatever was asked
    guest_ready: float = 0.0  # seconds from the answering guest until ARM's operation ends
    retry_after: int = 1
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def set_limits(self, limits: dict[str, tuple[float, float]]) -> None:
        """Request name -> (burst, requests a second); replaces all."""
        self.limits, self._buckets = limits, {}

    def admit(self, name: str) -> None:
        """Count a request. Raises ARM's 429."""
        self.calls[name] += 1
        limit = self.limits.get(name)
        if limit is None:
            return
        now = self.clock.now()
        if not self._buckets.setdefault(name, Bucket(*limit, tokens=limit[0], at=now)).take(now):
            error = ArmError(429, "TooManyRequests", "The server rejected the request because of too many requests.")
            error.headers["Retry-After"] = str(self.retry_after)
            raise error

    def take(self, rules: list[CapacityRule], size: str, zone: str, market: str) -> bool:
        """Whether one more of this can be had by these rules; takes it if so."""
        matching = [rule for rule in rules if rule.matches(size, zone, market)]
        if any(rule.remaining < 1 for rule in matching):
            return False
        for rule in matching:
            rule.remaining -= 1
        return True

    def describe(self) -> dict[str, Any]:
        """The counters."""
        return {"calls": dict(self.calls), "errors": dict(self.errors)}
