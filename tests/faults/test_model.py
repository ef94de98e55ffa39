"""Random histories of sandboxes, callers, crashes and a cloud that misbehaves, against a small model of what must hold.

The model knows what callers asked for and were told, and nothing of how the service works. A history ends with all
faults over, the service up, and the REST callers that were cut off asking again; a shim never asks again. Then what is
there must fit what was said, and at every step nothing may be that must never be.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import HealthCheck, event, seed, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from caa.ttrpc.frames import StatusError
from tests.clouds.faultproxy import Fault, Phase
from tests.faults.cloud import CLOUDS
from tests.faults.invariants import ENDED, RUNNING, irreparable, settled
from tests.faults.world import LEDGERS, Node, World
from tests.lab.forkserver import ForkServer
from tests.lab.service import new_id

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SOAK = bool(os.environ.get("CAA_SOAK"))
PODS = ("web", "db")
DOORS = ("rest", "ttrpc")
MOST_SANDBOXES = 5
CREATED = frozenset({"created"})
# A start that waits for the service's next try after a fault; those are at most 5 s apart, and may meet more faults.
CALLER_SECONDS = 120.0
# Rounds of the service are 5 s apart, and a clean-up that met faults repeats a little later.
SETTLE_SECONDS = 60.0
# How long a start is left alone, so that some histories get beyond it.
PATIENCE_SECONDS = 2.0
STEPS = 20 if SOAK else 10
# Of each ledger in `make test`, shared by the clouds.
HISTORIES = 9
# A service whose start-up broke is started again, as an orchestrator does. Each time uses up one mishap, and a step
# brings at most one.
STARTS = STEPS + 1

# Stands for how the cloud says "too many calls".
THROTTLED = {"throttled": True}
# What may happen to a request. A call kills the service.
FAULTS: list[tuple[Fault, Phase, dict[str, Any]]] = [
    (Fault.DELAY, Phase.BEFORE, {"seconds": 0.1}),
    (Fault.CALL, Phase.BEFORE, {}),
    (Fault.CALL, Phase.AFTER, {}),
    (Fault.CALL, Phase.DONE, {}),
    (Fault.RESET, Phase.BEFORE, {}),
    (Fault.RESET, Phase.AFTER, {}),
    (Fault.TRUNCATE, Phase.AFTER, {}),
    (Fault.STATUS, Phase.BEFORE, {"status": 503}),
    (Fault.STATUS, Phase.AFTER, {"status": 500}),
    (Fault.STATUS, Phase.BEFORE, THROTTLED),
]
Mishap = tuple[str, tuple[Fault, Phase, dict[str, Any]]]
Whose = tuple[str, str]
WHOSE = st.tuples(st.sampled_from(PODS), st.sampled_from(DOORS))
# The launch most often, for most can go wrong with it.
MISHAPS = st.tuples(st.sampled_from(("launch", "launch", "terminate", "list", "look up")), st.sampled_from(FAULTS))


@dataclass
class Call:
    """A call in a thread of its own. `outcome` is "" while it is under way."""

    make: Callable[[], object]
    outcome: str = ""  # done, refused, cut off

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.make()
        except (StatusError, AssertionError):  # by either door the service itself said no
            self.outcome = "refused"
        except (httpx.HTTPError, OSError):
            self.outcome = "cut off"
        else:
            self.outcome = "done"

    def finish(self) -> str:
        self.thread.join(CALLER_SECONDS)
        assert self.outcome, f"a call is not over after {CALLER_SECONDS:g} s"
        return self.outcome


@dataclass
class Known:
    """What the outside knows of a sandbox."""

    id: str
    pod: str
    door: str
    agent_socket: str = ""
    starts: list[Call] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)  # outcomes

    def told(self, outcome: str) -> bool:
        """Whether a start ended like that."""
        return any(call.outcome == outcome for call in self.starts)


class History(RuleBasedStateMachine):
    """One node, its callers, and its cloud."""

    world: ClassVar[World]
    ledger: ClassVar[str]
    sandboxes: Bundle[Known] = Bundle("sandboxes")

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.known: list[Known] = []

    @initialize(target=sandboxes, one=WHOSE, other=WHOSE, mishap=MISHAPS, patient=st.booleans())
    def begin(self, one: Whose, other: Whose, mishap: Mishap, patient: bool) -> Any:
        """Every history has a start and a second sandbox, perhaps of the same pod."""
        self.world.cloud.set_up()
        self.node: Node = self.stack.enter_context(self.world.node(self.ledger))
        self.service = self.node.service
        first, second = self.call_create(*one), self.call_create(*other)
        self.begin_start(first, mishap, patient)
        return multiple(first, second)

    # What callers do, and what happens meanwhile.

    @precondition(lambda self: len(self.known) < MOST_SANDBOXES)
    @rule(target=sandboxes, whose=WHOSE)
    def create(self, whose: Whose) -> Known:
        return self.call_create(*whose)

    # One rule for both, since hypothesis leaves whole rules out of some histories.
    @rule(
        known=sandboxes,
        verb=st.sampled_from(("start", "start", "start", "stop")),
        mishap=MISHAPS,
        patient=st.booleans(),
    )
    def call(self, known: Known, verb: str, mishap: Mishap, patient: bool) -> None:
        if verb == "start":
            self.begin_start(known, mishap, patient)
            return
        self.bring_up()
        self.arm(mishap)
        known.stops.append(self.call_stop(known))

    @rule(mishap=MISHAPS)
    def crash_and_restart(self, mishap: Mishap) -> None:
        self.service.kill()
        self.arm(mishap)
        self.bring_up()

    # What happens to the cloud.

    @rule(zones=st.integers(0, 3))
    def capacity_runs_out(self, zones: int) -> None:
        self.world.cloud.no_capacity(zones)

    @rule(calls=st.integers(0, 3), seconds=st.sampled_from((0.0, 0.5)))
    def lists_lag_behind(self, calls: int, seconds: float) -> None:
        self.world.cloud.stale(calls=calls, seconds=seconds)

    # What must hold.

    @invariant()
    def nothing_is_that_must_never_be(self) -> None:
        harm = irreparable(self.node, self.node.instances())
        assert not harm, f"{harm}\n{self.service.log_tail()}"

    def teardown(self) -> None:
        with self.stack:
            if not self.known:
                return
            self.node.proxy.clear()
            self.world.cloud.no_capacity(zones=0)
            self.world.cloud.stale()
            self.bring_up()
            for known in self.known:
                self.come_back(known)
                event(
                    f"{known.door}: starts {sorted({c.outcome for c in known.starts})}, stops {sorted({*known.stops})}"
                )
            settled(self.node, {known.id: self.allowed(known) for known in self.known}, SETTLE_SECONDS)

    def come_back(self, known: Known) -> None:
        """All calls end; those of REST callers that were cut off are made again."""
        outcomes = [call.finish() for call in known.starts]
        if known.door == "ttrpc":
            return
        if known.stops and "done" not in known.stops:
            known.stops.append(self.call_stop(known))
        elif "cut off" in outcomes:
            known.starts.append(self.call_start(known))
            known.starts[-1].finish()

    def allowed(self, known: Known) -> frozenset[str]:
        """The states it may have in the end. That a pod has but one running sandbox is looked at apart from this."""
        if "done" in known.stops or known.told("refused"):
            return ENDED
        newer = self.known[self.known.index(known) + 1 :]
        superseded = ENDED if any(one.starts for one in newer if one.pod == known.pod) else frozenset()
        stopped = ENDED if known.stops else frozenset()
        if known.told("done"):
            return RUNNING | superseded | stopped
        if not known.starts:
            return CREATED | superseded | stopped
        # A shim that was cut off: the start may not have come through, or may have been over.
        return CREATED | RUNNING | ENDED

    # How it is done.

    def arm(self, mishap: Mishap) -> None:
        """Let it happen at the next request of its kind, whoever sends that."""
        action, (fault, phase, details) = mishap
        if fault is Fault.CALL:
            details = {"call": lambda _: self.service.kill()}
        elif details is THROTTLED:
            details = dict(self.world.cloud.throttled)
        self.node.proxy.add(fault, phase, action=self.world.cloud.kinds.of(action), **details)

    def call_create(self, pod: str, door: str) -> Known:
        """Both callers repeat this one; in time for that the service comes up."""
        known = Known(new_id(), pod, door)

        def make() -> None:
            if door == "rest":
                self.service.create(known.id, pod)
            else:
                known.agent_socket = self.service.create_vm(known.id, pod)

        for _ in range(STARTS):
            self.bring_up()
            if Call(make).finish() != "cut off":
                break
        self.known.append(known)
        return known

    def begin_start(self, known: Known, mishap: Mishap, patient: bool) -> None:
        self.bring_up()
        self.arm(mishap)
        known.starts.append(self.call_start(known))
        if patient:
            known.starts[-1].thread.join(PATIENCE_SECONDS)

    def call_start(self, known: Known) -> Call:
        if known.door == "rest":
            return Call(lambda: self.service.start_sandbox(known.id))
        return Call(lambda: self.start_for_a_shim(known))

    def start_for_a_shim(self, known: Known) -> None:
        """Which dials once it is answered, and stays; without it the service would take its pod for a dead one."""
        self.service.start_vm(known.id)
        shim = socket.socket(socket.AF_UNIX)
        self.stack.callback(shim.close)
        with contextlib.suppress(OSError):  # it ended at once
            shim.connect(known.agent_socket)

    def call_stop(self, known: Known) -> str:
        stop = self.service.stop_sandbox if known.door == "rest" else self.service.stop_vm
        return Call(lambda: stop(known.id)).finish()

    def bring_up(self) -> None:
        """Start the service if it does not run."""
        for _ in range(STARTS):
            if self.service.process is None or self.service.process.poll() is not None:
                self.service.start()
            try:
                self.service.wait_ready()
            except AssertionError:
                if self.service.process is None or self.service.process.poll() is None:
                    raise
            else:
                return
        raise AssertionError(f"the service does not start\n{self.service.log_tail()}")


@pytest.fixture(scope="module", params=CLOUDS)
def world(forks: ForkServer, request: pytest.FixtureRequest) -> Iterator[World]:
    with World(forks, request.param) as world:
        yield world


@pytest.mark.parametrize("ledger", LEDGERS)
def test_whatever_happens_in_the_end_each_sandbox_is_what_its_callers_were_told(world: World, ledger: str) -> None:
    machine = type("History", (History,), {"world": world, "ledger": ledger})
    if not SOAK:
        seed(LEDGERS.index(ledger))(machine)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200 if SOAK else HISTORIES // len(CLOUDS),
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            # Processes and threads take turns as they like, so a history that failed need not fail again when shrunk.
            phases=(HypothesisPhase.generate,),
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
