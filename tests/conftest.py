"""What tests on real VMs share."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

from tests.lab.service import ServiceProcess

HOST = Path(__file__).parent / "lab" / "host.sh"

# How long an example takes says how busy the machine is. The same examples each time, so that a change is judged by
# what it changes; CAA_SOAK=1 tries others.
settings.register_profile(
    "caa",
    deadline=None,
    derandomize=not os.environ.get("CAA_SOAK"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("caa")


# What shares something there is one of: this machine's libvirt and network, or the guests' addresses on loopback. The
# tests of each go one after the other, both beside each other, and all else wherever there is room.
LANES = {
    "machine": (
        *("vm/", "network/", "faults/test_kill_on_libvirt.py", "wire/test_agentproxy_silence.py"),
        "deploy/test_capabilities.py",
    ),
    "images": ("clouds/test_image_",),  # without guests
    "cloud": ("clouds/", "lab/"),
    # The guests of each have a port of their own.
    "faults": ("faults/",),
    "kube": ("kube/",),
}


class Lanes(LoadScopeScheduling):  # type: ignore[misc]
    """Of one lane, or else one file, all tests go to one worker."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        inside = path.removeprefix(f"{Path(__file__).parent.name}/")
        return next((lane for lane, places in LANES.items() if inside.startswith(places)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """How `pytest -n` hands out tests."""
    return Lanes(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was counted: how many kills there were and what was found after them, and what tests call "measured"."""
    outcomes: dict[str, Counter[str]] = {}
    found: dict[str, Counter[str]] = {}
    made: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            told = dict(report.user_properties)
            if "measured" in told:
                terminalreporter.write_line(str(told["measured"]))
            case = re.search(r"::test_a_kill_at_[^[]*\[([a-z]+)-", report.nodeid)
            if case:
                outcomes.setdefault(case[1], Counter())[outcome] += 1
                found.setdefault(case[1], Counter()).update(told.get("found", {}))
                # Of all cases together, and more with each.
                made[case[1]] = Counter(made.get(case[1], Counter()) | Counter(told.get("made", {})))
    for cloud, counts in sorted(outcomes.items()):
        listed = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
        duplicates, lost = found[cloud].pop("duplicates", 0), found[cloud].pop("lost", 0)
        left = ", ".join(f"{count} of {made[cloud][kind]} {kind}" for kind, count in found[cloud].items())
        terminalreporter.write_line(f"kill matrix on {cloud}: {counts.total()} cases, {listed}")
        terminalreporter.write_line(f"  {duplicates} duplicates, {lost} sandboxes lost; left behind: {left}")


@pytest.fixture(scope="session")
def lab() -> dict[str, str]:
    """This machine's libvirt with the image of this checkout; returns what a service on it is configured by."""
    # Imported here: tests without VMs run without libvirt's binding.
    from tests.lab.image import ensure_lab_image, lab_environ

    subprocess.run([str(HOST), "up"], check=True)
    ensure_lab_image()
    return lab_environ()


@pytest.fixture(scope="module")
def service(lab: dict[str, str], request: pytest.FixtureRequest) -> Iterator[ServiceProcess]:
    """A service that is ready, in directories of its own; short ones, for sockets are in them."""
    directory = Path(tempfile.mkdtemp(prefix="caa-", dir="/run"))
    cluster = request.module.__name__.rsplit(".", 1)[-1].replace("_", "-")
    environ = lab | {"CAA_CLUSTER_ID": cluster, "NODE_NAME": "worker"}
    running = ServiceProcess(directory, environ)
    running.start()
    try:
        running.wait_ready()
        yield running
        end_all(running)
    finally:
        running.shut_down()
        shutil.rmtree(directory, ignore_errors=True)


def end_all(service: ServiceProcess) -> None:
    """Stop whatever a test left, so that no VM outlives it."""
    for row in service.sandboxes():
        if row["state"] not in ("stopped", "failed"):
            service.stop_sandbox(row["id"])
            service.wait_for_state(row["id"], {"stopped", "failed"}, 60)
