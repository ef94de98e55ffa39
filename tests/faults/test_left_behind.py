"""The proof that the fault tests would see what is left behind: what they say of a cloud that keeps something."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from tests.faults.cloud import VMS
from tests.faults.invariants import FINAL, RUNNING, orphans, settled, tally
from tests.faults.world import Node, World
from tests.lab.forkserver import ForkServer
from tests.lab.service import new_id

# httpx leaks the socket of a connection that fails, which a kill makes it do.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ENDED_SECONDS = 20.0
# What is left once the VM is gone stays.
SEEN_SECONDS = 0.5
# Cloud -> what is kept, one time after the other -> kinds that must be told of then. What hangs on an interface stays
# with it.
KEPT: dict[str, dict[tuple[str, ...], tuple[str, ...]]] = {
    "azure": {
        ("disks", "public addresses"): ("disks", "public addresses"),
        ("interfaces",): ("interfaces", "public addresses"),
    },
    "ibmcloud": {("volumes",): ("volumes",), ("interfaces",): ("interfaces",)},
}


@pytest.mark.parametrize("cloud", KEPT)
def test_what_outlives_its_vm_is_told_and_counted_by_its_kind(forks: ForkServer, cloud: str) -> None:
    with World(forks, cloud) as world, world.node("sqlite") as node:
        node.service.start()
        node.service.wait_ready()
        ended = {started_and_stopped(node): FINAL}
        settled(node, ended)
        kinds = tally(node, ended)
        assert set(kinds.values()) == {0}, kinds
        # There was one of each that could have been left, but for what the provider never asks for.
        assert {kind for kind, count in world.cloud.made().items() if count == 0} <= {"floating IPs"}
        left: Counter[str] = Counter()
        for kept, told in KEPT[cloud].items():
            world.cloud.keeping(*kept)
            ended[started_and_stopped(node)] = FINAL
            left.update(told)
            with pytest.raises(AssertionError) as failure:
                settled(node, ended, SEEN_SECONDS)
            for kind, count in left.items():
                assert f"left behind: {count} {kind}: " in str(failure.value)
            assert tally(node, ended) == {**dict.fromkeys(kinds, 0), **left}


@pytest.mark.parametrize("cloud", KEPT)
def test_a_vm_whose_sandbox_is_not_there_is_counted_as_one(forks: ForkServer, cloud: str) -> None:
    with World(forks, cloud) as world, world.node("sqlite") as node:
        node.service.start()
        node.service.wait_ready()
        sandbox_id = new_id()
        node.service.create(sandbox_id, "web")
        node.service.start_sandbox(sandbox_id)
        settled(node, {sandbox_id: RUNNING})
        instances = node.instances()
        assert [len(names) for kind, names in orphans(node, {}, instances).items() if kind == VMS] == [1]
        node.service.kill()
        assert tally(node, [sandbox_id])[VMS] == 1  # as long as nobody speaks for it
        assert tally(node, [sandbox_id])["lost"] == 1


def started_and_stopped(node: Node) -> str:
    """A sandbox that is over, with its VM gone."""
    sandbox_id = new_id()
    node.service.create(sandbox_id, "web")
    node.service.start_sandbox(sandbox_id)
    node.service.stop_sandbox(sandbox_id)
    node.service.wait_for_state(sandbox_id, set(FINAL), ENDED_SECONDS)
    deadline = time.monotonic() + ENDED_SECONDS
    while node.instances():
        assert time.monotonic() < deadline, node.instances()
        time.sleep(0.05)
    return sandbox_id
