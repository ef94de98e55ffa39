"""SIGKILL of the real service at random moments of starts and stops, on real VMs."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections import Counter

import httpx
import pytest

from caa.ttrpc.frames import StatusError
from tests.lab.leftovers import leftovers, owners
from tests.lab.service import ServiceProcess, new_id

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
CLUSTER = "test-kill-on-libvirt"
KILLS = 200 if os.environ.get("CAA_SOAK") else 20
# Define, disk, ISO and start take about half a second; then the VM boots. Both parts are hit.
LONGEST_START = 2.5
LONGEST_STOP = 0.4
SETTLE_SECONDS = 120


def ignoring_the_kill(call: object, *arguments: object) -> threading.Thread:
    """A caller that the kill cuts off."""

    def run() -> None:
        # httpx, too, leaks the socket of a connection that fails: a kill may come before the call.
        with contextlib.suppress(httpx.HTTPError, StatusError, OSError, AssertionError, TimeoutError):
            call(*arguments)  # type: ignore[operator]

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("seed", range(KILLS))
def test_after_a_kill_no_sandbox_has_two_vms_and_nothing_is_left(service: ServiceProcess, seed: int) -> None:
    dice = random.Random(seed)
    over_rest, over_ttrpc = new_id(), new_id()
    service.create(over_rest, f"test-rest-{seed}")
    service.create_vm(over_ttrpc, f"test-shim-{seed}")
    callers = [
        ignoring_the_kill(service.begin_start, over_rest),
        ignoring_the_kill(service.start_vm, over_ttrpc),
    ]
    time.sleep(dice.uniform(0, LONGEST_START))
    if dice.random() < 0.5:
        callers.append(ignoring_the_kill(service.stop_vm, dice.choice((over_rest, over_ttrpc))))
        time.sleep(dice.uniform(0, LONGEST_STOP))
    service.kill()
    for caller in callers:
        caller.join(60)
    service.start()
    service.wait_ready()
    # The shim's call ended with its connection; the REST caller comes back with the same id.
    again = ignoring_the_kill(service.begin_start, over_rest)
    time.sleep(dice.uniform(0, 0.5))
    assert all(count == 1 for count in Counter(owners(CLUSTER)).values()), "a sandbox has two VMs"
    service.stop_sandbox(over_rest)
    if service.sandbox(over_ttrpc)["state"] == "created":  # the kill came before its StartVM did
        service.stop_vm(over_ttrpc)
    for sandbox_id in (over_rest, over_ttrpc):
        service.wait_for_state(sandbox_id, {"stopped", "failed"}, SETTLE_SECONDS)
    again.join(60)
    assert leftovers(service) == []
