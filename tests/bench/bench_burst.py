"""A node is asked for many pods at once, by EC2's own request limits: time, API calls, memory, event loop.

`python -m tests.bench.bench_burst [--count N] [--small M]` prints one JSON object a line and ends with 1 when a bound
is broken. It runs M sandboxes (30) and then N (300), each with a new account, to show what does not grow with the
number. EC2 lets an account launch 5 instances at once and then 2 a second, so 300 take about 150 s.

The service runs in asyncio's debug mode, which tells of each callback that holds the event loop for 100 ms. That mode
costs memory and time of its own, so the figures are upper bounds.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bench.account import allow_files, emulated_account
from tests.bench.report import Report, peak_rss, percentile, slow_callbacks, waited_seconds
from tests.clouds.aws.account import Account
from tests.clouds.aws.conditions import EC2_LIMITS
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.podworld import Burst, alive, duplicates, pod_service, start_at_once, stop_at_once, throttled
from tests.lab.service import ServiceProcess

# What is promised.
RSS_BYTES = 250_000_000
LOOP_BLOCK_SECONDS = 0.1
LIST_SECONDS = 2.0  # at most one list of instances in this time, however many sandboxes
# The bucket of the service and EC2's run by different clocks; this share of launches may be refused all the same.
THROTTLED_SHARE = 0.02
# Beyond what EC2's limits alone make of it: processes that share two processors, boots, the last one's agent.
LATE_SHARE, LATE_SECONDS = 0.2, 20.0

# Of an emulated instance; a real one takes longer, which here would only add to every figure alike.
PENDING_SECONDS, BOOT_SECONDS = 0.5, 1.0
PROBE_SECONDS = 0.02
ENDED_SECONDS = 300.0


class Probe:
    """Asks /livez every 20 ms on one connection, as an orchestrator does more seldom. Context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="probe", daemon=True)
        self.seconds: list[float] = []
        self.failures: Counter[str] = Counter()

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.settimeout(10)
                    sock.connect(str(self._path))
                    connection = http.client.HTTPConnection("caa")
                    connection.sock = sock
                    while not self._stop.wait(PROBE_SECONDS):
                        self._ask(connection)
            except (OSError, http.client.HTTPException) as error:
                self.failures[type(error).__name__] += 1
                self._stop.wait(PROBE_SECONDS)

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        begun = time.monotonic()
        connection.request("GET", "/livez")
        with connection.getresponse() as answer:
            answer.read()
        self.seconds.append(time.monotonic() - begun)
        if answer.status != 200:
            self.failures[str(answer.status)] += 1


def run(count: int, report: Report) -> None:
    """One burst on a node of its own, and its end."""
    allow_files(count)
    with emulated_account() as account, FakeGuests(account.emulator.url):
        account.emulator.delays(pending=PENDING_SECONDS, boot=BOOT_SECONDS)
        with pod_service(account, account.emulator.url, PYTHONASYNCIODEBUG="1") as service:
            account.emulator.limits()
            before = account.emulator.counters()
            log_start = service.log_file.stat().st_size  # what came up to now was the start of the service
            with Probe(service.api_socket) as probe:
                burst = start_at_once([service], count)
                after = account.emulator.counters()
                _say_starts(report, burst, before, after)
                stopping = time.monotonic()
                stop_at_once(service, burst.ids)
                _wait_until_none(account)
                _say_stops(report, count, time.monotonic() - stopping, after, account.emulator.counters())
            _say_process(report, count, service, log_start, probe)


def _say_starts(report: Report, burst: Burst, before: dict[str, Any], after: dict[str, Any]) -> None:
    count, seconds = len(burst.ids), burst.start_seconds
    burst_size, rate = EC2_LIMITS["RunInstances"]
    least = max(0.0, (count - burst_size) / rate)
    calls = Counter(after["calls"]) - Counter(before["calls"])
    refused = throttled(after) - throttled(before)
    instances = sum(number for state, number in after["states"].items() if state in ("pending", "running"))
    about: dict[str, Any] = {"sandboxes": count}
    report.line("creates", burst.create_seconds, "s", **about)
    report.line(
        "all run", seconds, "s", at_most=least * (1 + LATE_SHARE) + LATE_SECONDS, by_limits=round(least, 1), **about
    )
    statuses = {str(status): number for status, number in burst.statuses.items()}
    report.line("starts that failed", count - burst.statuses[200], at_most=0, statuses=statuses, **about)
    report.line("instances more or less than sandboxes", abs(instances - count), at_most=0, **about)
    report.line("instances beyond one of a token", duplicates(after), at_most=0, **about)
    report.line("RunInstances calls", calls["RunInstances"], **about)
    most = max(2.0, THROTTLED_SHARE * count)
    report.line("RunInstances throttled", refused["RunInstances"], at_most=most, **about)
    report.line("calls of any kind throttled", refused.total(), at_most=most, **about)
    lists = calls["DescribeInstances"]
    # The first list of the time may come at its beginning.
    report.line("lists a second", lists / seconds, "1/s", at_most=1 / LIST_SECONDS + 1 / seconds, lists=lists, **about)
    for name, number, bound in (
        ("launch", calls["RunInstances"], 1 + THROTTLED_SHARE + 2 / count),
        ("tag", calls["CreateTags"], 0.0),
        ("list", lists, None),
        ("all", calls.total(), None),
    ):
        report.line(f"API calls for each sandbox: {name}", number / count, at_most=bound, **about)


def _say_stops(report: Report, count: int, seconds: float, before: dict[str, Any], after: dict[str, Any]) -> None:
    calls = Counter(after["calls"]) - Counter(before["calls"])
    refused = throttled(after) - throttled(before)
    report.line("all gone", seconds, "s", sandboxes=count)
    report.line("TerminateInstances calls", calls["TerminateInstances"], sandboxes=count)
    report.line("TerminateInstances throttled", refused["TerminateInstances"], at_most=2, sandboxes=count)
    report.line("interfaces left", after["interfaces"], at_most=0, sandboxes=count)


def _say_process(report: Report, count: int, service: ServiceProcess, log_start: int, probe: Probe) -> None:
    assert service.process is not None
    rss = peak_rss(service.process.pid)
    report.line("peak RSS of caa serve", rss / 1e6, "MB", at_most=RSS_BYTES / 1e6, sandboxes=count)
    slow = slow_callbacks(service.log_file, log_start)
    longest = slow[0][0] if slow else 0.0
    report.line("callbacks over 100 ms", len(slow), sandboxes=count, worst=[name for _, name in slow[:3]])
    report.line(
        "longest callback over 100 ms",
        longest,
        "s",
        at_most=LOOP_BLOCK_SECONDS,
        sandboxes=count,
        waited_for_a_processor=round(waited_seconds(service.process.pid), 3),  # in all; it is part of what is measured
    )
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        value = percentile(probe.seconds, share) if probe.seconds else 0.0
        report.line(f"/livez {name}", value * 1e3, "ms", sandboxes=count, asked=len(probe.seconds))
    report.line("/livez failures", probe.failures.total(), at_most=0, sandboxes=count, kinds=dict(probe.failures))


def _wait_until_none(account: Account) -> None:
    deadline = time.monotonic() + ENDED_SECONDS
    gone = ("shutting-down", "terminated")
    while any(number for state, number in account.emulator.counters()["states"].items() if state not in gone):
        assert time.monotonic() < deadline, f"instances are left after {ENDED_SECONDS:g} s: {alive(account)}"
        time.sleep(0.2)


def main() -> int:
    """Measure and print; returns 1 when a promise is not kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--small", type=int, default=30, help="0 leaves the smaller run out")
    arguments = parser.parse_args()
    report = Report()
    for count in (arguments.small, arguments.count):
        if count > 0:
            run(count, report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
