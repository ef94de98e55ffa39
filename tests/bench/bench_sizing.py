"""How long the choice among 2,000 offerings takes: `python -m tests.bench.bench_sizing`."""

from __future__ import annotations

import random
import sys
import time

from caa.explain import explain
from caa.sizing import Policy, Requirements, rank
from providers.base import Market, Offering
from tests.bench.report import Report

RUNS = 100
# A start takes this once, beside some 30 ms for its other steps in this process.
BOUND_MS = 2.0


def offerings() -> list[Offering]:
    """200 types in 5 zones and 2 markets, in no order."""
    found = [
        Offering(f"f{family}.{size}xlarge", zone, size * 4, size * 4 * ratio * 1024, market)
        for family in range(25)
        for size in (1, 2, 3, 4, 6, 8, 12, 16)
        for ratio in [(2, 4, 8)[family % 3]]
        for zone in "abcde"
        for market in Market
    ]
    random.Random(1).shuffle(found)  # no secret
    return found


def main() -> int:
    """Print the fastest run of each case; the machine may be busy."""
    report = Report()
    offered = offerings()
    prices = {(one.instance_type, ""): one.vcpus * 0.05 for one in offered}
    cases = {
        "smallest": (Requirements(vcpus=1, memory_mib=256), Policy()),
        "default": (Requirements(), Policy("f0.1xlarge")),
        "machine type": (Requirements(machine_type="f7.4xlarge"), Policy()),
        "cheapest": (Requirements(vcpus=1, memory_mib=256), Policy(prices=prices)),
    }
    for name, (wanted, policy) in cases.items():
        report.line(
            f"choice among {len(offered)} offerings, {name}",
            min(_milliseconds(wanted, offered, policy) for _ in range(RUNS)),
            "ms",
            at_most=BOUND_MS,
        )
    begun = time.perf_counter()
    explain(Requirements(vcpus=8), offered)
    report.line(f"explanation of {len(offered)} offerings", (time.perf_counter() - begun) * 1000, "ms")
    return report.exit_code


def _milliseconds(wanted: Requirements, offered: list[Offering], policy: Policy) -> float:
    begun = time.perf_counter()
    rank(wanted, offered, policy, "x86_64")
    return (time.perf_counter() - begun) * 1000


if __name__ == "__main__":
    sys.exit(main())
