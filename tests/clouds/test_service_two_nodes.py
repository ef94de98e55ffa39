"""Two worker nodes, one PostgreSQL ledger, one AWS account: each keeps to its own, and they share EC2's limits."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.clouds.aws.account import Account
from tests.clouds.aws.conditions import EC2_LIMITS
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import (
    CLUSTER,
    Launch,
    alive,
    duplicates,
    launches,
    owner_tags,
    pod_service,
    start_at_once,
    throttled,
)
from tests.lab.service import ServiceProcess, new_id

NODES = ("worker-1", "worker-2")
# An instance of its own that no row accounts for is left alone for 30 s; a round follows within 5 s.
ORPHAN_SECONDS = 75.0
ENDED_SECONDS = 60.0
# The service's bucket and EC2's run by different clocks, and a call is on its way for a moment: so many launches for a
# second that the first of them took longer than the later ones. With a bucket for each node 9 were refused.
A_FEW = 5


@pytest.fixture
def nodes(account: Account, proxy: FaultProxy, postgresql_ledger: str) -> Iterator[list[ServiceProcess]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(pod_service(account, proxy.url, NODE_NAME=name, CAA_LEDGER_URL=postgresql_ledger))
            for name in NODES
        ]


def started(service: ServiceProcess, count: int) -> set[str]:
    """So many running sandboxes more; their ids."""
    burst = start_at_once([service], count)
    assert burst.statuses == {200: count}, burst.refusal
    return set(burst.ids)


def test_nodes_that_share_ledger_and_account_never_touch_each_others_instances(
    account: Account, nodes: list[ServiceProcess]
) -> None:
    one, two = nodes
    # Of nobody here: another node of this cluster, and a node of this name in another cluster.
    foreign = {
        account.launch(TagSpecifications=owner_tags(CLUSTER, "worker-3", new_id())),
        account.launch(TagSpecifications=owner_tags("other", NODES[0], new_id())),
    }
    # Of the first node, and of no sandbox: that this one goes shows that the others were left alone, not just late.
    orphan = account.launch(TagSpecifications=owner_tags(CLUSTER, NODES[0], new_id()))

    ids_one, ids_two = started(one, 2), started(two, 2)
    of_one = {id_: sandbox for id_, sandbox in alive(account, NODES[0]).items() if sandbox in ids_one}
    of_two = alive(account, NODES[1])
    assert (set(of_one.values()), set(of_two.values())) == (ids_one, ids_two)

    # Neither door of a node knows the other's sandboxes.
    other = next(iter(ids_two))
    one.stop_vm(other)  # of an unknown sandbox: success, and nothing is done
    with one.rest() as client:
        assert client.post(f"/v1/sandboxes/{other}/start").status_code == 404
    assert two.sandbox(other)["state"] == "running"

    two.kill()
    two.start()
    two.wait_ready()
    assert {two.sandbox(id_)["state"] for id_ in ids_two} == {"running"}
    assert alive(account, NODES[1]) == of_two

    for sandbox_id in ids_two:
        two.stop_sandbox(sandbox_id)
    for sandbox_id in ids_two:
        two.wait_for_state(sandbox_id, {"stopped"}, ENDED_SECONDS)
    assert alive(account, NODES[1]) == {}

    deadline = time.monotonic() + ORPHAN_SECONDS
    while orphan in alive(account):
        assert time.monotonic() < deadline, f"the orphan {orphan} is still there"
        time.sleep(0.5)
    assert set(alive(account)) == set(of_one) | foreign
    assert {one.sandbox(id_)["state"] for id_ in ids_one} == {"running"}


def test_nodes_that_start_many_at_once_keep_to_the_limits_of_the_account_together(
    account: Account, proxy: FaultProxy, nodes: list[ServiceProcess]
) -> None:
    # The first call of each is slower than others.
    for node in nodes:
        started(node, 1)
    proxy.clear()
    account.emulator.limits()
    burst = start_at_once(nodes, 12)
    assert burst.statuses == {200: 24}, burst.refusal
    assert len(alive(account)) == 26
    counters = account.emulator.counters()
    assert duplicates(counters) == 0
    assert throttled(counters).total() <= A_FEW
    assert _beyond_limit(launches(account, proxy)) <= A_FEW


def _beyond_limit(made: list[Launch]) -> float:
    """By how many launches any stretch of time had more than the limit allows for it."""
    burst, rate = EC2_LIMITS["RunInstances"]
    times = sorted(launch.at for launch in made)
    return max(
        (end - begin + 1) - (burst + rate * (times[end] - times[begin]))
        for begin in range(len(times))
        for end in range(begin, len(times))
    )
