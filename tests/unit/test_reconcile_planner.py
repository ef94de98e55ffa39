"""The planner decides alone what happens to a sandbox after a restart, a lost VM or a dead shim."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from caa.reconcile import (
    CleanUp,
    End,
    Graces,
    Link,
    MarkSeen,
    Memory,
    MendTunnel,
    Reopen,
    SayStuck,
    TerminateOrphan,
    World,
    observe,
    plan,
    said,
)
from caa.sandbox import Attempt, AttemptState, Door, Sandbox, SandboxState
from providers.base import Instance, InstanceState, Offering, Owner

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GRACES = Graces()
OFFERING = Offering("m6a.large", "zone-1", 2, 8192)


def sandbox(
    identity: str = "a",
    state: SandboxState = SandboxState.RUNNING,
    *,
    age: float = 3600,
    pod: str | None = None,
    door: Door = Door.TTRPC,
    agent_seen: bool = True,
) -> Sandbox:
    born = NOW - timedelta(seconds=age)
    return Sandbox(
        id=identity,
        cluster="c",
        node="n",
        pod_namespace="default",
        pod_name=pod or f"pod-{identity}",
        door=door,
        annotations={},
        netns_path="",
        socket_path=f"/run/{identity}",
        state=state,
        created_at=born,
        changed_at=born,
        agent_seen=agent_seen,
    )


def attempt(identity: str = "a", state: AttemptState = AttemptState.ACCEPTED, instance: str | None = None) -> Attempt:
    return Attempt(
        sandbox_id=identity,
        number=1,
        name=f"podvm-{identity}",
        token="t" + identity,
        offering=OFFERING,
        image="",
        user_data=b"",
        state=state,
        created_at=NOW,
        instance_id=(instance or f"i-{identity}") if state is AttemptState.ACCEPTED else "",
    )


def instance(
    identity: str = "a", state: InstanceState = InstanceState.RUNNING, *, age: float | None = 3600
) -> Instance:
    created = None if age is None else NOW - timedelta(seconds=age)
    owner = Owner("c", "n", identity, "default", f"pod-{identity}", 1)
    return Instance(f"i-{identity}", f"podvm-{identity}", state, owner, created_at=created)


EARLIER = NOW - timedelta(seconds=5)
SEEN = Memory(unowned={f"i-{identity}": EARLIER for identity in "abc"})
CONNECTED = Link(shim_connections=1, agent_seen=True, idle_seconds=0)


def world(
    sandboxes: list[Sandbox],
    attempts: list[Attempt],
    instances: list[Instance] | None,
    links: dict[str, Link] | None = None,
    *,
    started: float = 3600,
    starting_here: frozenset[str] = frozenset(),
    now: datetime = NOW,
) -> World:
    return World(
        now=now,
        service_started=NOW - timedelta(seconds=started),
        sandboxes=tuple(sandboxes),
        attempts=tuple(attempts),
        instances=None if instances is None else tuple(instances),
        links=links,
        starting_here=starting_here,
    )


def planned(w: World, memory: Memory | None = None) -> list[object]:
    return list(plan(w, observe(w, memory or Memory()), GRACES))


def test_a_running_sandbox_whose_shim_is_connected_is_left_alone() -> None:
    assert planned(world([sandbox()], [attempt()], [instance()], {"a": CONNECTED})) == []


def test_a_sandbox_whose_shim_has_been_gone_for_a_minute_is_ended() -> None:
    link = Link(shim_connections=0, agent_seen=True, idle_seconds=60)
    [action] = planned(world([sandbox()], [attempt()], [instance()], {"a": link}))
    assert isinstance(action, End)
    assert action.reason == "ShimGone"


def test_a_shim_gone_for_a_moment_only_is_waited_for() -> None:
    link = Link(shim_connections=0, agent_seen=True, idle_seconds=59)
    assert planned(world([sandbox()], [attempt()], [instance()], {"a": link})) == []


def test_a_shim_has_time_to_dial_after_a_boot_that_took_longer_than_the_grace() -> None:
    """The agent socket was opened before the launch."""
    link = Link(shim_connections=0, agent_seen=False, idle_seconds=90)
    for running_for, ended in ((0, False), (59, False), (60, True)):
        booted = dataclasses.replace(sandbox(agent_seen=False), changed_at=NOW - timedelta(seconds=running_for))
        actions = planned(world([booted], [attempt()], [instance()], {"a": link}))
        assert [isinstance(action, End) for action in actions] == [True] * ended


def test_a_sandbox_of_a_rest_caller_who_never_connected_is_kept() -> None:
    link = Link(shim_connections=0, agent_seen=False, idle_seconds=9999)
    rest = sandbox(door=Door.REST, agent_seen=False)
    assert planned(world([rest], [attempt()], [instance()], {"a": link})) == []


def test_the_first_shim_connection_is_recorded() -> None:
    assert planned(world([sandbox(agent_seen=False)], [attempt()], [instance()], {"a": CONNECTED})) == [MarkSeen("a")]


def test_a_running_sandbox_that_the_proxy_does_not_know_is_opened_again() -> None:
    assert planned(world([sandbox()], [attempt()], [instance()], {})) == [Reopen("a")]


def test_a_tunnel_that_this_process_has_not_looked_at_is_looked_at() -> None:
    carried = dataclasses.replace(sandbox(), pod_network={}, tunnel_id=555000)
    w = world([carried], [attempt()], [instance()], {"a": CONNECTED})
    assert planned(w) == [MendTunnel("a")]
    assert planned(dataclasses.replace(w, tunnels_here=frozenset({"a"}))) == []


def test_a_tunnel_that_cannot_be_mended_does_not_keep_a_sandbox_without_shim_alive() -> None:
    carried = dataclasses.replace(sandbox(), pod_network={}, tunnel_id=555000)
    gone = Link(shim_connections=0, agent_seen=True, idle_seconds=60)
    [action] = planned(world([carried], [attempt()], [instance()], {"a": gone}))
    assert isinstance(action, End)
    assert action.reason == "ShimGone"
    assert planned(world([carried], [attempt()], [instance()], None)) == [MendTunnel("a")]


def test_without_an_answer_of_the_proxy_no_shim_is_judged() -> None:
    assert planned(world([sandbox()], [attempt()], [instance()], None)) == []


def test_a_start_cut_off_by_a_restart_ends_at_once_when_a_shim_asked_for_it() -> None:
    [action] = planned(world([sandbox(state=SandboxState.STARTING)], [attempt()], [instance()], {}, started=0))
    assert isinstance(action, End)
    assert action.reason == "CallerGone"


def test_a_start_cut_off_by_a_restart_waits_for_its_rest_caller() -> None:
    starting = sandbox(state=SandboxState.STARTING, door=Door.REST)
    assert planned(world([starting], [attempt()], [instance()], {}, started=59)) == []
    [action] = planned(world([starting], [attempt()], [instance()], {}, started=60))
    assert isinstance(action, End)


def test_a_start_that_this_process_works_on_is_left_alone() -> None:
    starting = sandbox(state=SandboxState.STARTING)
    assert planned(world([starting], [attempt()], [], {}, starting_here=frozenset({"a"}))) == []


def test_a_start_that_gets_no_instance_is_given_up_after_ten_minutes() -> None:
    waiting = [attempt(state=AttemptState.INTENDED)]
    for age, reasons in ((599, []), (600, ["LaunchTimeout"])):
        w = world([sandbox(state=SandboxState.STARTING, age=age)], waiting, [], {}, starting_here=frozenset({"a"}))
        assert [a.reason for a in planned(w) if isinstance(a, End)] == reasons


def test_a_start_whose_agent_never_answers_is_given_up() -> None:
    limit = (GRACES.launching + GRACES.reaching).total_seconds()
    for age, reasons in ((limit - 1, []), (limit, ["AgentTimeout"])):
        launched = dataclasses.replace(attempt(), created_at=NOW - timedelta(seconds=age))
        starting = sandbox(state=SandboxState.STARTING, age=age)
        w = world([starting], [launched], [instance()], {}, starting_here=frozenset({"a"}))
        assert [a.reason for a in planned(w) if isinstance(a, End)] == reasons


def test_an_end_that_does_not_come_is_said_once() -> None:
    stopping = sandbox(state=SandboxState.STOPPING, age=GRACES.stopping.total_seconds())
    w = dataclasses.replace(world([stopping], [attempt()], [instance()], {}), cleaning_here=frozenset({"a"}))
    first = plan(w, Memory(), GRACES)
    assert first == [SayStuck("a", "what the sandbox brought is not gone yet: podvm-a (i-a)")]
    after = said(first, w, observe(w, Memory()))
    assert plan(w, after, GRACES) == []
    assert said([], world([], [], []), after).said_stuck == frozenset()


def test_a_stopping_sandbox_is_cleaned_up() -> None:
    assert planned(world([sandbox(state=SandboxState.STOPPING)], [attempt()], [], {})) == [CleanUp("a")]


def test_a_sandbox_that_was_never_started_ends_after_ten_minutes() -> None:
    young = sandbox(state=SandboxState.CREATED, age=599)
    old = sandbox(state=SandboxState.CREATED, age=600)
    assert planned(world([young], [], [], {})) == []
    [action] = planned(world([old], [], [], {}))
    assert isinstance(action, End)
    assert action.reason == "NeverStarted"


def test_one_stale_list_does_not_end_a_running_sandbox_but_a_lasting_absence_does() -> None:
    w = world([sandbox()], [attempt()], [], {"a": CONNECTED})
    memory = observe(w, Memory())
    assert plan(w, memory, GRACES) == []
    later = dataclasses.replace(w, now=NOW + GRACES.vanished)
    [action] = plan(later, observe(later, memory), GRACES)
    assert isinstance(action, End)
    assert action.reason == "InstanceLost"


def test_an_instance_that_reappears_in_the_list_is_forgiven() -> None:
    gone = world([sandbox()], [attempt()], [], {"a": CONNECTED})
    memory = observe(gone, Memory())
    back = world([sandbox()], [attempt()], [instance()], {"a": CONNECTED}, now=NOW + timedelta(seconds=5))
    assert observe(back, memory).missing == {}


def test_an_instance_that_stopped_by_itself_ends_its_sandbox() -> None:
    [action] = planned(world([sandbox()], [attempt()], [instance(state=InstanceState.STOPPED)], {"a": CONNECTED}))
    assert isinstance(action, End)
    assert "stopped" in action.message


def test_an_instance_without_a_row_is_terminated_after_the_grace_only() -> None:
    assert planned(world([], [], [instance(age=29)], {}), SEEN) == []
    assert planned(world([], [], [instance(age=30)], {}), SEEN) == [TerminateOrphan("i-a", "podvm-a", "a")]


def test_an_instance_whose_sandbox_ended_while_it_was_listed_is_no_orphan_yet() -> None:
    assert planned(world([], [], [instance(age=3600)], {})) == []


def test_an_instance_of_unknown_age_is_given_the_grace_from_when_it_was_first_seen() -> None:
    w = world([], [], [instance(age=None)], {})
    memory = observe(w, Memory())
    assert plan(w, memory, GRACES) == []
    later = dataclasses.replace(w, now=NOW + GRACES.orphan)
    assert plan(later, observe(later, memory), GRACES) == [TerminateOrphan("i-a", "podvm-a", "a")]


def test_an_instance_of_an_attempt_that_is_only_intended_is_nobodys_orphan() -> None:
    starting = sandbox(state=SandboxState.STARTING, age=60)
    w = world([starting], [attempt(state=AttemptState.INTENDED)], [instance()], {}, starting_here=frozenset({"a"}))
    assert planned(w) == []


def test_a_second_instance_of_the_same_sandbox_is_an_orphan() -> None:
    double = dataclasses.replace(instance(), id="i-double")
    w = world([sandbox()], [attempt()], [instance(), double], {"a": CONNECTED})
    assert planned(w, Memory(unowned={"i-double": EARLIER})) == [TerminateOrphan("i-double", "podvm-a", "a")]


def test_a_newer_sandbox_of_the_same_pod_ends_the_older_one() -> None:
    old, new = sandbox("old", pod="web"), sandbox("new", pod="web", age=1, state=SandboxState.STARTING)
    w = world(
        [old, new],
        [attempt("old")],
        [instance("old")],
        {"old": CONNECTED},
        starting_here=frozenset({"new"}),
    )
    [action] = planned(w)
    assert isinstance(action, End)
    assert (action.sandbox_id, action.reason) == ("old", "Superseded")


def test_a_failed_list_call_condemns_nobody() -> None:
    assert planned(world([sandbox()], [attempt()], None, {"a": CONNECTED})) == []


ids = st.sampled_from(["a", "b", "c"])


@given(
    states=st.dictionaries(ids, st.sampled_from(list(SandboxState)), max_size=3),
    attempt_states=st.dictionaries(ids, st.sampled_from(list(AttemptState)), max_size=3),
    listed=st.sets(ids),
    connected=st.sets(ids),
    here=st.sets(ids),
)
def test_no_instance_of_a_live_attempt_is_ever_called_an_orphan_and_no_sandbox_gets_two_actions(
    states: dict[str, SandboxState],
    attempt_states: dict[str, AttemptState],
    listed: set[str],
    connected: set[str],
    here: set[str],
) -> None:
    rows = [
        sandbox(i, state) for i, state in states.items() if state not in (SandboxState.STOPPED, SandboxState.FAILED)
    ]
    attempts = [attempt(i, state) for i, state in attempt_states.items() if i in {row.id for row in rows}]
    w = world(
        rows,
        attempts,
        [instance(i) for i in listed],
        {row.id: CONNECTED for row in rows if row.id in connected},
        starting_here=frozenset(here),
    )
    actions = planned(w, SEEN)
    unsettled = {a.sandbox_id for a in attempts if a.unsettled}
    orphans = {a.sandbox_id for a in actions if isinstance(a, TerminateOrphan)}
    assert not orphans & unsettled
    assert {i for i in listed if i not in unsettled} == orphans
    touched = [a.sandbox_id for a in actions if isinstance(a, End | CleanUp | Reopen | MarkSeen)]
    assert len(touched) == len(set(touched))
