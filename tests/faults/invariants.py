"""What must hold of a node whatever has happened to it, and by when.

Looked at from outside: the service's REST door for what it says, the cloud itself for what there is, and the agent
sockets for what a pod would notice.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from caa.ttrpc.frames import StatusError
from tests.faults.cloud import VMS, SeenInstance
from tests.faults.world import Node
from tests.lab.agent import AgentCaller

# On a machine that is busy with other tests; how long it takes is told.
SETTLE_SECONDS = 60.0
_POLL_SECONDS = 0.05
_CHECK_SECONDS = 5.0
_SERVING = 1

RUNNING = frozenset({"running"})
FINAL = frozenset({"stopped", "failed"})
# Of a launch that never showed, a cloud says so only after some seconds of empty lists; until then the sandbox is
# stopping.
ENDED = FINAL | {"stopping"}
_WITH_INSTANCE = frozenset({"starting", "running"})


def settled(
    node: Node, expected: Mapping[str, frozenset[str]], seconds: float = SETTLE_SECONDS, *, gone: bool = True
) -> float:
    """Wait until all holds; `expected` is the states each sandbox may have, and names every sandbox there is.

    `gone`: also until no instance is on its way out. Before that nobody can say what it leaves behind.
    Returns the seconds that took. Raises AssertionError as soon as something is wrong that time cannot mend, or when
    the time is up.
    """
    begun = time.monotonic()
    while True:
        # The ledger first: an instance is recorded before it is made, so all that is listed after has its row.
        rows = {row["id"]: row for row in node.service.sandboxes()}
        instances = node.instances()
        harm = irreparable(node, instances)
        assert not harm, f"{harm}\n{node.service.log_tail()}"
        left = unsettled(rows, instances, expected) + told(orphans(node, rows, instances))
        left += [f"instance {one.id} is on its way out" for one in instances if gone and one.ending]
        left = left or unreachable(rows)
        took = time.monotonic() - begun
        if not left:
            return took
        assert took < seconds, f"after {seconds:g} s: {left}\n{node.service.log_tail()}"
        time.sleep(_POLL_SECONDS)


def irreparable(node: Node, instances: list[SeenInstance]) -> list[str]:
    """Everything that must never be, not even for a moment."""
    per_attempt = Counter((one.sandbox_id, one.attempt) for one in instances)
    per_sandbox = Counter(one.sandbox_id for one in instances if one.alive)
    return [
        *(f"attempt {attempt} made {count} instances" for attempt, count in per_attempt.items() if count > 1),
        *(f"sandbox {owner} has {count} instances" for owner, count in per_sandbox.items() if count > 1),
        *(f"instance {one.id} has no owner" for one in instances if not one.sandbox_id),
        *node.world.cloud.duplicates(),
    ]


def unsettled(
    rows: Mapping[str, dict[str, Any]], instances: list[SeenInstance], expected: Mapping[str, frozenset[str]]
) -> list[str]:
    """Everything that must not stay as it is."""
    problems = [f"sandbox {one} is lost" for one in expected.keys() - rows.keys()]
    problems += [f"sandbox {one} was never asked for" for one in rows.keys() - expected.keys()]
    alive = Counter(one.sandbox_id for one in instances if one.alive)
    running = Counter(one.sandbox_id for one in instances if one.running)
    for sandbox_id in expected.keys() & rows.keys():
        state = rows[sandbox_id]["state"]
        if state not in expected[sandbox_id]:
            problems.append(f"sandbox {sandbox_id} is {state}, not {sorted(expected[sandbox_id])}")
        if state == "running" and running[sandbox_id] != 1:
            problems.append(f"sandbox {sandbox_id} is running, with {running[sandbox_id]} running instances")
        if state != "running" and alive[sandbox_id]:
            problems.append(f"sandbox {sandbox_id} is {state}, and its instance lives")
    pods = Counter((row["pod"]["namespace"], row["pod"]["name"]) for row in rows.values() if row["state"] == "running")
    problems += [f"pod {pod} has {count} running sandboxes" for pod, count in pods.items() if count > 1]
    problems += [f"instance of {owner} is unowned" for owner in alive.keys() - rows.keys()]
    return problems


def orphans(node: Node, rows: Mapping[str, dict[str, Any]], instances: list[SeenInstance]) -> dict[str, list[str]]:
    """What costs money and belongs to no sandbox that runs or starts: names by kind, of every kind of the cloud."""
    used = {one for one, row in rows.items() if row["state"] in _WITH_INSTANCE}
    unused = [one.id for one in instances if one.alive and one.sandbox_id not in used]
    return {VMS: unused, **node.left_behind()}


def told(orphaned: Mapping[str, list[str]]) -> list[str]:
    """A sentence for each kind of which something is left."""
    return [f"left behind: {len(names)} {kind}: {', '.join(names)}" for kind, names in orphaned.items() if names]


def tally(node: Node, expected: Iterable[str]) -> dict[str, int]:
    """What the claim is made of, counted now: duplicates, lost sandboxes, and what is left behind of each kind.

    Of a service that does not answer all is lost.
    """
    instances = node.instances()
    try:
        rows = {row["id"]: row for row in node.service.sandboxes()}
    except (OSError, httpx.HTTPError):
        rows = {}
    left = {kind: len(names) for kind, names in orphans(node, rows, instances).items()}
    lost = len(set(expected) - rows.keys())
    return {"duplicates": len(irreparable(node, instances)), "lost": lost, **left}


def unreachable(rows: Mapping[str, dict[str, Any]]) -> list[str]:
    """Running sandboxes whose agent does not answer at their socket."""
    return [
        f"the agent of {row['id']} does not answer"
        for row in rows.values()
        if row["state"] == "running" and not asyncio.run(_answers(row["agent_socket_path"]))
    ]


async def _answers(path: str) -> bool:
    try:
        caller = await AgentCaller.connect(path)
    except OSError:
        return False
    try:
        return await asyncio.wait_for(caller.check(), _CHECK_SECONDS) == _SERVING
    except (OSError, TimeoutError, StatusError):
        return False
    finally:
        await caller.close()
