"""SIGKILL of the real service at every request it sends to its cloud, and what is left soon after the restart.

A case is one request of one operation on one cloud, one moment of that request, one front door and one ledger. The
services of all cases of a cloud share one emulator; each is a node of its own, so a few cases run at once. `make test`
runs a fixed sample, CAA_SOAK=1 all.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import httpx
import pytest

from caa.ttrpc.frames import StatusError
from tests.clouds.faultproxy import Exchange, Fault, Phase
from tests.faults.cloud import CLOUDS, emulated
from tests.faults.invariants import ENDED, FINAL, RUNNING, settled, tally
from tests.faults.world import LEDGERS, Node, World
from tests.lab.forkserver import ForkServer
from tests.lab.service import new_id

# httpx leaks the socket of a connection that fails, which a kill makes it do.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
DOORS = ("ttrpc", "rest")
OPERATIONS = ("start", "stop", "supersede", "fallback", "round")
CREATED = frozenset({"created"})
# A case computes as long as it waits.
LANES = min(4, os.cpu_count() or 1)
# A caller that was cut off returns at once; one whose service was not killed, when its start is over.
CALLER_SECONDS = 60.0
# A cloud has no instance of a launch when lists were without it for its `lag`, at most 30 s; the service asks ever more
# seldom.
GIVEN_UP_SECONDS = 150.0
# The promise, of nine cases in ten: one that shares two cores with other tests may take longer, to a minute at most.
PROMISED_SECONDS = 10.0


@dataclass(frozen=True)
class Case:
    """Where and when the kill comes."""

    cloud: str
    operation: str
    action: str
    number: int  # of the action's requests in the operation, from 1
    phase: Phase
    door: str
    ledger: str

    def __str__(self) -> str:
        action = self.action.replace(" ", "-")
        return f"{self.cloud}-{self.operation}-{action}{self.number}-{self.phase}-{self.door}-{self.ledger}"


# What a round asks for last may come after all that is to be seen of it.
REQUESTS_SECONDS = 60.0

ALL = [
    Case(cloud, operation, action, number, phase, door, ledger)
    for cloud in CLOUDS
    for operation, requests in emulated(cloud).operations.items()
    for action, count in requests.items()
    for number in range(1, count + 1)
    for phase in Phase
    for door, ledger in itertools.product(DOORS, LEDGERS)
]


def sample() -> Iterator[Case]:
    """Every request that changes something at every moment, and every other one once, in whichever operation.

    Operations, doors and ledgers take turns.
    """
    turn = itertools.count()
    of_request: dict[tuple[str, str, str, int], list[Case]] = {}
    for case in ALL:
        operation = case.operation if emulated(case.cloud).changes(case.action) else ""
        of_request.setdefault((case.cloud, operation, case.action, case.number), []).append(case)
    for cases in of_request.values():
        per_moment = [cases[start : start + 4] for start in range(0, len(cases), 4)]
        if not emulated(cases[0].cloud).changes(cases[0].action):
            per_moment = [per_moment[next(turn) % len(per_moment)]]
        for moment in per_moment:
            yield moment[next(turn) % len(moment)]
    # And what only time can end.
    yield from (case for case in ALL if stays_stopping(case))


def stays_stopping(case: Case) -> bool:
    """Whether it is also waited until the cloud is believed that there is no instance, and the sandbox is final."""
    launches = re.search(emulated(case.cloud).kinds.launch, case.action)
    return bool(launches) and (case.operation, case.phase, case.door) == ("start", Phase.BEFORE, "ttrpc")


CASES = ALL if os.environ.get("CAA_SOAK") else list(dict.fromkeys(sample()))


@dataclass
class Operation:
    """One operation over one door, ready to be called. `expected` is what must come of all sandboxes after a kill."""

    call: Callable[[], object]
    again: Callable[[], object] | None  # what a REST caller does after the restart; a shim never comes back
    expected: dict[str, frozenset[str]] = field(default_factory=dict)


def prepare(node: Node, operation: str, door: str) -> Operation:
    """Bring a node that runs to where the operation begins."""
    service = node.service
    create, start, stop = (
        (service.create, service.start_sandbox, service.stop_sandbox)
        if door == "rest"
        else (service.create_vm, service.start_vm, service.stop_vm)
    )
    expected: dict[str, frozenset[str]] = {}
    if operation in ("stop", "supersede", "round"):
        older = new_id()
        create(older, "web")
        start(older)
        expected[older] = FINAL
        # So that the operation is the first thing a process does, as it is for the others, and all lists have ended.
        service.kill()
        service.start()
        service.wait_ready()
        if operation == "stop":
            return Operation(lambda: stop(older), (lambda: stop(older)) if door == "rest" else None, expected)
        if operation == "round":
            node.proxy.clear()
            return Operation(lambda: until_listed(node), None, {older: RUNNING})
    newer = new_id()
    create(newer, "web")
    expected[newer] = RUNNING if door == "rest" else ENDED
    return Operation(lambda: start(newer), (lambda: start(newer)) if door == "rest" else None, expected)


class Worlds:
    """An emulator for each cloud that is asked for, until the end."""

    def __init__(self, forks: ForkServer) -> None:
        self._forks = forks
        self._stack = contextlib.ExitStack()
        self._made: dict[str, World] = {}
        # Of each case that came to its end: what was found then, and what the cloud had made by then for all cases.
        self.tallies: dict[Case, tuple[dict[str, int], dict[str, int]]] = {}
        self.seconds: dict[Case, float] = {}  # from the restart until all held
        self._lock = threading.Lock()

    def of(self, cloud: str) -> World:
        with self._lock:
            if cloud not in self._made:
                self._made[cloud] = self._stack.enter_context(World(self._forks, cloud))
            return self._made[cloud]

    def close(self) -> None:
        self._stack.close()


@pytest.fixture(scope="module")
def worlds(forks: ForkServer) -> Iterator[Worlds]:
    worlds = Worlds(forks)
    yield worlds
    worlds.close()


@contextlib.contextmanager
def running_node(world: World, operation: str, ledger: str) -> Iterator[Node]:
    with world.node(ledger, scarce=operation == "fallback") as node:
        node.service.start()
        node.service.wait_ready()
        yield node


def run(worlds: Worlds, case: Case) -> None:
    with running_node(worlds.of(case.cloud), case.operation, case.ledger) as node:
        operation = prepare(node, case.operation, case.door)
        rounds = node.world.cloud.operations["round"]
        if case.operation != "round" and case.action in rounds and operation.again is None:
            # A round of the service may ask for it just before the call comes.
            operation.expected = {one: states | CREATED for one, states in operation.expected.items()}
        killed = threading.Event()

        def kill(_: Exchange) -> None:
            node.service.kill()
            killed.set()

        rule = node.proxy.add(Fault.CALL, case.phase, action=f"^{re.escape(case.action)}$", at=case.number, call=kill)
        caller = threading.Thread(target=cut_off, args=[operation.call], daemon=True)
        caller.start()
        assert killed.wait(CALLER_SECONDS), f"there was no {case.action} {case.number}\n{node.service.log_tail()}"
        caller.join(CALLER_SECONDS)
        try:
            node.service.start()
            node.service.wait_ready()
            if operation.again is not None:
                operation.again()
            worlds.seconds[case] = settled(node, operation.expected)
            assert rule.fired == 1
            if stays_stopping(case):
                settled(node, dict.fromkeys(operation.expected, FINAL), GIVEN_UP_SECONDS)
        finally:
            worlds.tallies[case] = tally(node, operation.expected), dict(node.world.cloud.made())


def until_listed(node: Node) -> None:
    deadline = time.monotonic() + CALLER_SECONDS
    listing = node.world.cloud.kinds.list
    while not any(re.search(listing, name) for name in node.proxy.count()):
        assert time.monotonic() < deadline, node.service.log_tail()
        time.sleep(0.05)


def cut_off(call: Callable[[], object]) -> None:
    with contextlib.suppress(httpx.HTTPError, StatusError, OSError, TimeoutError):
        call()


@pytest.fixture(scope="module")
def outcomes(worlds: Worlds, request: pytest.FixtureRequest) -> Iterator[dict[Case, Future[None]]]:
    """Runs the cases that were selected, those that wait long beside the others."""
    chosen = [
        cast(Case, item.callspec.params["case"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and {"outcomes", "case"} <= set(item.fixturenames)
    ]
    waiting = list(filter(stays_stopping, chosen))
    with ThreadPoolExecutor(LANES) as lanes, ThreadPoolExecutor(max(1, len(waiting))) as beside:
        yield {case: (beside if case in waiting else lanes).submit(run, worlds, case) for case in chosen}
        for pool in (lanes, beside):
            pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize(("operation", "door"), list(zip(OPERATIONS, itertools.cycle(DOORS))))
@pytest.mark.parametrize("cloud", CLOUDS)
def test_the_table_has_every_request_of_the_operation(worlds: Worlds, cloud: str, operation: str, door: str) -> None:
    with running_node(worlds.of(cloud), operation, "sqlite") as node:
        prepared = prepare(node, operation, door)
        node.proxy.clear()
        prepared.call()
        # Without waiting for what takes as long as another round.
        settled(node, dict.fromkeys(prepared.expected, FINAL | RUNNING), gone=False)
        wanted = node.world.cloud.operations[operation]
        deadline = time.monotonic() + REQUESTS_SECONDS
        while wanted - node.proxy.count() and time.monotonic() < deadline:
            time.sleep(0.01)
        counted = node.proxy.count()
        assert not wanted - counted
        # Every few seconds comes another round.
        assert (counted - wanted).keys() <= node.world.cloud.operations["round"].keys()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_kill_at_any_request_leaves_one_instance_or_none(
    worlds: Worlds, outcomes: dict[Case, Future[None]], case: Case, record_property: Callable[[str, object], None]
) -> None:
    try:
        outcomes[case].result()
    finally:
        found, made = worlds.tallies.get(case, ({}, {}))
        record_property("found", found)
        record_property("made", made)


@pytest.mark.parametrize("cloud", CLOUDS)
def test_soon_after_a_restart_all_is_as_it_must_be(
    worlds: Worlds, outcomes: dict[Case, Future[None]], cloud: str, record_property: Callable[[str, object], None]
) -> None:
    ended = [case for case, outcome in outcomes.items() if case.cloud == cloud and outcome.exception() is None]
    if not ended:
        pytest.skip("no case was asked for")
    seconds = sorted(worlds.seconds[case] for case in ended)
    most, longest = seconds[len(seconds) * 9 // 10], seconds[-1]
    text = f"{cloud}: all held {most:.1f} s after the restart in nine cases of ten, at the latest {longest:.1f} s"
    record_property("measured", text)
    assert most <= PROMISED_SECONDS
