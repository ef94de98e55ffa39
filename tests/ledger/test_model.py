"""Random histories: the ledger agrees with the declared tables and a model in memory, whatever is tried on it."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import caa.sandbox
from caa.ledger import AttemptExists, Ledger, StaleWriteError, open_ledger
from caa.sandbox import (
    ATTEMPT_TRANSITIONS,
    LIVE_STATES,
    TRANSITIONS,
    Attempt,
    AttemptState,
    IllegalTransitionError,
    Sandbox,
    SandboxState,
)
from tests.ledger.samples import attempt, event, sandbox

IDS = ("a", "b")


class History(RuleBasedStateMachine):
    """Writers that hold rows of any age and want any state, against a model."""

    ledger: Ledger
    run = 0

    def __init__(self) -> None:
        super().__init__()
        History.run += 1
        self.prefix = f"{History.run}-"  # one database serves every history: each has its own sandboxes
        self.sandboxes: dict[str, Sandbox] = {}
        self.attempts: dict[str, list[Attempt]] = {}
        self.kept_events: dict[str, int] = {}
        for name in IDS:
            sandbox_id = self.prefix + name
            self.sandboxes[sandbox_id] = self.ledger.add_sandbox(sandbox(sandbox_id, node=self.prefix))
            self.attempts[sandbox_id] = []
            self.kept_events[sandbox_id] = 0

    @rule(name=st.sampled_from(IDS), state=st.sampled_from(SandboxState), stale=st.integers(0, 4))
    def write_a_sandbox(self, name: str, state: SandboxState, stale: int) -> None:
        now = self.sandboxes[self.prefix + name]
        given = replace(now, state=state, version=now.version - (stale == 0))
        expected: type[Exception] | None = None
        if given.version != now.version:
            expected = StaleWriteError
        elif state != now.state and state not in TRANSITIONS[now.state]:
            expected = IllegalTransitionError
        if self._tried(expected, lambda: self.ledger.save_sandbox(given, event=event(now.id)), now.id):
            self.sandboxes[now.id] = replace(given, version=now.version + 1)

    @rule(name=st.sampled_from(IDS), number=st.integers(1, 3), stale=st.integers(0, 4))
    def intend_a_launch(self, name: str, number: int, stale: int) -> None:
        now = self.sandboxes[self.prefix + name]
        there = self.attempts[now.id]
        new = attempt(now.id, number)
        expected: type[Exception] | None = None
        if stale == 0 or now.state != SandboxState.STARTING:
            expected = StaleWriteError
        elif any(a.number == number or a.unsettled for a in there):
            expected = AttemptExists
        version = now.version - (stale == 0)
        if self._tried(
            expected, lambda: self.ledger.add_attempt(new, sandbox_version=version, event=event(now.id)), now.id
        ):
            self.attempts[now.id] = sorted([*there, new], key=lambda a: a.number)

    @rule(
        name=st.sampled_from(IDS), state=st.sampled_from(AttemptState), pick=st.integers(0, 2), stale=st.integers(0, 4)
    )
    def write_an_attempt(self, name: str, state: AttemptState, pick: int, stale: int) -> None:
        there = self.attempts[self.prefix + name]
        if pick >= len(there):
            return
        now = there[pick]
        given = replace(now, state=state, version=now.version - (stale == 0))
        expected: type[Exception] | None = None
        if given.version != now.version:
            expected = StaleWriteError
        elif state != now.state and state not in ATTEMPT_TRANSITIONS[now.state]:
            expected = IllegalTransitionError
        if self._tried(expected, lambda: self.ledger.save_attempt(given, event=event(now.sandbox_id)), now.sandbox_id):
            data = given.user_data if given.unsettled else b""
            there[pick] = replace(given, version=now.version + 1, user_data=data)

    @invariant()
    def the_ledger_holds_what_the_model_holds(self) -> None:
        for sandbox_id, row in self.sandboxes.items():
            assert self.ledger.sandbox(sandbox_id) == row
            assert self.ledger.attempts(sandbox_id) == self.attempts[sandbox_id]
            assert len(self.ledger.events(sandbox_id)) == self.kept_events[sandbox_id]
        live = [row for row in self.sandboxes.values() if row.state in LIVE_STATES]
        theirs = [a for row in live for a in self.attempts[row.id]]
        assert self.ledger.snapshot("c1", self.prefix) == (live, theirs)

    def _tried(self, expected: type[Exception] | None, write: Callable[[], object], sandbox_id: str) -> bool:
        if expected is not None:
            with pytest.raises(expected):
                write()
            return False
        write()
        self.kept_events[sandbox_id] += 1
        return True


def test_any_history_of_writes_matches_the_declared_tables(url: str) -> None:
    ledger = open_ledger(url)
    machine = type("BoundHistory", (History,), {"ledger": ledger})
    slow_disk = [HealthCheck.too_slow, HealthCheck.data_too_large]
    run_state_machine_as_test(
        machine,
        settings=settings(max_examples=25, stateful_step_count=30, database=None, suppress_health_check=slow_disk),
    )
    ledger.close()


@pytest.mark.parametrize("name", ["SandboxState", "AttemptState"])
def test_every_state_says_what_it_means(name: str) -> None:
    tree = ast.parse(inspect.getsource(caa.sandbox))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    members = 0
    for at, node in enumerate(found.body):
        if not isinstance(node, ast.Assign):
            continue
        members += 1
        after = found.body[at + 1] if at + 1 < len(found.body) else None
        told = (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
        assert told, f"{name}.{ast.unparse(node)} has no docstring"
    assert members == len(getattr(caa.sandbox, name))
