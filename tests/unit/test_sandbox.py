"""Names, tokens and states."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caa.sandbox import (
    FINAL_STATES,
    TRANSITIONS,
    IllegalTransitionError,
    SandboxState,
    attempt_token,
    check_transition,
    instance_name,
)

HEX = "7d4c7ad7b2cc342cc498eebec589d68b3a60ea9c09e0534fc162dc5cbfc5d2ef"


def test_an_instance_is_named_after_its_pod_and_the_beginning_of_the_sandbox_id() -> None:
    assert instance_name("web", HEX, 1) == "podvm-web-7d4c7ad7"
    assert instance_name("web", HEX, 2) == "podvm-web-7d4c7ad7-2"


def test_ids_that_people_make_up_and_begin_alike_get_different_names() -> None:
    assert instance_name("web", "sandbox-one", 1) != instance_name("web", "sandbox-two", 1)


@given(st.text(max_size=100), st.text(min_size=1, max_size=100), st.integers(1, 99))
def test_a_name_is_always_a_host_name(pod: str, sandbox_id: str, number: int) -> None:
    name = instance_name(pod, sandbox_id, number)
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name)


@given(st.text(max_size=20), st.text(max_size=20), st.integers(1, 99), st.integers(1, 99))
def test_a_token_is_the_same_after_a_restart_and_another_for_another_attempt(
    cluster: str, sandbox_id: str, one: int, other: int
) -> None:
    token = attempt_token(cluster, sandbox_id, one)
    assert token == attempt_token(cluster, sandbox_id, one)
    assert len(token) == 64
    assert (token == attempt_token(cluster, sandbox_id, other)) == (one == other)


@given(st.sampled_from(SandboxState), st.sampled_from(SandboxState))
def test_only_declared_transitions_are_allowed(old: SandboxState, new: SandboxState) -> None:
    if new in TRANSITIONS[old]:
        check_transition(old, new)
    else:
        with pytest.raises(IllegalTransitionError):
            check_transition(old, new)


def test_final_states_lead_nowhere_and_every_other_state_leads_to_one() -> None:
    assert all(not TRANSITIONS[state] for state in FINAL_STATES)
    for state in set(SandboxState) - FINAL_STATES:
        reached = {state}
        while not reached & FINAL_STATES:
            reached |= {new for old in reached for new in TRANSITIONS[old]}
