"""The proof that the fault tests would see what is left behind: what they say of a cloud that keeps something."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping

import pytest

from tests.faults.cloud import VMS
from tests.faults.invariants import FINAL, RUNNING, orphans, settled, tally
from tests.faults.world import Node, World
from tests.lab.forkserver import ForkServer
from tests.lab.service import new_id

# httpx leaks the socket of a connection that fails, which a kill makes it do.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ENDED_SECONDS = 60.0
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
def test_a_vm_and_what_outlives_it_are_told_and_counted_by_their_kinds(forks: ForkServer, cloud: str) -> None:
    with World(forks, cloud) as world, world.node("sqlite") as node:
        node.service.start()
        node.service.wait_ready()
        one = started(node)
        settled(node, {one: RUNNING})
        assert len(orphans(node, {}, node.instances())[VMS]) == 1  # as if nobody spoke for it
        # There is one of each that can be left, but for what the provider never asks for.
        assert {kind for kind, count in world.cloud.made().items() if count == 0} <= {"floating IPs"}
        ended, left = {one: FINAL}, Counter[str]()
        for kept, told in KEPT[cloud].items():
            world.cloud.keeping(*kept)
            stop(node, one)
            left.update(told)
            until_counted(node, ended, left)
            with pytest.raises(AssertionError) as failure:
                settled(node, ended, SEEN_SECONDS)
            for kind, count in left.items():
                assert f"left behind: {count} {kind}: " in str(failure.value)
            one = started(node)
            ended[one] = FINAL
        node.service.kill()
        assert tally(node, ended)["lost"] == len(ended)


def until_counted(node: Node, ended: Collection[str], left: Mapping[str, int]) -> None:
    """What is not kept goes a moment after its VM."""
    deadline = time.monotonic() + ENDED_SECONDS
    while +Counter(tally(node, ended)) != left:
        assert time.monotonic() < deadline, tally(node, ended)
        time.sleep(0.05)


def started(node: Node) -> str:
    sandbox_id = new_id()
    node.service.create(sandbox_id, "web")
    node.service.start_sandbox(sandbox_id)
    return sandbox_id


def stop(node: Node, sandbox_id: str) -> None:
    """Until its VM is gone."""
    node.service.stop_sandbox(sandbox_id)
    node.service.wait_for_state(sandbox_id, set(FINAL), ENDED_SECONDS)
    deadline = time.monotonic() + ENDED_SECONDS
    while node.instances():
        assert time.monotonic() < deadline, node.instances()
        time.sleep(0.05)
