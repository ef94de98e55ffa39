"""What a test can set about the emulated IBM Cloud. Asked and changed with the emulator's one lock held."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tests.clouds.aws.conditions import Bucket, CapacityRule, Clock, Delays, Staleness
from tests.clouds.ibm.errors import ApiError

# The most that one page may have, and what it has unless asked.
MAX_PAGE, PAGE = 100, 50


@dataclass
class Conditions:
    """All of it. A fresh one is a cloud without limits or delays."""

    clock: Clock = field(default_factory=Clock)
    delays: Delays = field(default_factory=Delays)
    capacity: list[CapacityRule] = field(default_factory=list)  # refused in the create call
    failing: list[CapacityRule] = field(default_factory=list)  # accepted, and failed for want of capacity afterwards
    vcpu_quota: int | None = None
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    staleness: Staleness = field(default_factory=Staleness)
    page_size: int = MAX_PAGE
    keeping: list[str] = field(default_factory=list)  # kinds that stay when their instance goes, whatever was asked
    late_addresses: bool = False  # 0.0.0.0 is told until an instance runs
    image_seconds: float = 0.0  # from the import of an image until it is available
    retry_after: int = 1  # seconds that a refused call is told to wait
    calls: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    _buckets: dict[str, Bucket] = field(default_factory=dict)

    def set_limits(self, limits: dict[str, tuple[float, float]]) -> None:
        """Request name -> (burst, requests a second); replaces all."""
        self.limits, self._buckets = limits, {}

    def admit(self, name: str) -> None:
        """Count a request. Raises the API's 429."""
        self.calls[name] += 1
        limit = self.limits.get(name)
        if limit is None:
            return
        now = self.clock.now()
        if not self._buckets.setdefault(name, Bucket(*limit, tokens=limit[0], at=now)).take(now):
            error = ApiError(429, "too_many_requests", "Too many requests, try again later")
            error.headers["Retry-After"] = str(self.retry_after)
            raise error

    def take_capacity(self, profile: str, zone: str) -> None:
        """Raises the API's refusal, and then takes nothing."""
        rules = [rule for rule in self.capacity if rule.matches(profile, zone, "")]
        if any(rule.remaining < 1 for rule in rules):
            raise ApiError(409, "insufficient_capacity", f"There is no capacity for {profile} in {zone} now")
        for rule in rules:
            rule.remaining -= 1

    def fails(self, profile: str, zone: str) -> bool:
        """Whether an instance that was accepted gets no host; counts the ones that do."""
        rules = [rule for rule in self.failing if rule.matches(profile, zone, "")]
        if any(rule.remaining < 1 for rule in rules):
            return True
        for rule in rules:
            rule.remaining -= 1
        return False

    def describe(self) -> dict[str, Any]:
        """The counters."""
        return {"calls": dict(self.calls), "errors": dict(self.errors)}
