"""What the fault tests on the emulated AWS share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.forkserver import ForkServer


@pytest.fixture(scope="session")
def forks() -> Iterator[ForkServer]:
    """Starts services quickly."""
    with ForkServer() as forks:
        yield forks


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many kills there were: that number is the claim."""
    counts = {
        outcome: sum("::test_a_kill_at_" in report.nodeid for report in terminalreporter.stats.get(outcome, []))
        for outcome in ("passed", "failed", "error")
    }
    if any(counts.values()):
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        terminalreporter.write_line(f"kill matrix on AWS: {sum(counts.values())} cases, {listed}")
