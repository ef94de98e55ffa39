"""What is written comes back, and what must be refused is refused with nothing written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from caa.ledger import AlreadyExists, AttemptExists, Ledger, SandboxExists, StaleWriteError, TunnelTaken
from caa.ledger.engine import WRITES, make_engine
from caa.sandbox import (
    ATTEMPT_TRANSITIONS,
    LIVE_STATES,
    TRANSITIONS,
    AttemptState,
    Door,
    IllegalTransitionError,
    Sandbox,
    SandboxState,
    attempt_token,
)
from tests.ledger.samples import NOW, USER_DATA, attempt, event, in_state, sandbox, starting


def raw(url: str, statement: str) -> Any:
    """Run one statement past the ledger; returns all rows of a query."""
    engine = make_engine(url)
    try:
        with engine.execution_options(**{WRITES: True}).begin() as connection:
            result = connection.execute(text(statement))
            return result.all() if result.returns_rows else None
    finally:
        engine.dispose()


def test_a_sandbox_comes_back_as_it_was_written(ledger: Ledger) -> None:
    written = sandbox(door=Door.REST, failure_reason="Odd", failure="why", agent_seen=True)
    assert ledger.add_sandbox(written) == written
    assert ledger.sandbox("sb-1") == written
    assert ledger.sandbox("sb-2") is None


def test_an_attempt_comes_back_byte_for_byte(ledger: Ledger) -> None:
    row = starting(ledger)
    written = attempt(addresses=("10.0.0.1", "fd00::1"), instance_id="i-1", error="e", error_reason="R")
    assert ledger.add_attempt(written, sandbox_version=row.version) == written
    assert ledger.attempts("sb-1") == [written]
    assert ledger.attempts("sb-1")[0].user_data == USER_DATA


def test_times_come_back_as_utc_whatever_zone_they_were_given_in(ledger: Ledger) -> None:
    tokyo = NOW.astimezone(timezone(timedelta(hours=9)))
    ledger.add_sandbox(sandbox(created_at=tokyo))
    found = ledger.sandbox("sb-1")
    assert found is not None
    assert found.created_at == NOW
    assert found.created_at.tzinfo is UTC


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="timezone-aware"):
        ledger.add_sandbox(sandbox(created_at=datetime(2026, 1, 1)))  # noqa: DTZ001
    assert ledger.sandbox("sb-1") is None


def test_a_new_row_is_at_version_one_whatever_was_given(ledger: Ledger) -> None:
    assert ledger.add_sandbox(sandbox(version=7)).version == 1


def test_a_second_sandbox_with_the_same_id_gets_the_first_one_back(ledger: Ledger) -> None:
    first = ledger.add_sandbox(sandbox())
    with pytest.raises(SandboxExists) as refusal:
        ledger.add_sandbox(sandbox(pod_name="other"), event=event())
    assert refusal.value.existing == first
    assert isinstance(refusal.value, AlreadyExists)
    assert ledger.sandbox("sb-1") == first
    assert ledger.events("sb-1") == []


def test_a_write_gives_the_next_version_and_is_seen_by_all(ledger: Ledger) -> None:
    row = ledger.add_sandbox(sandbox())
    saved = ledger.save_sandbox(replace(row, agent_seen=True))
    assert saved == replace(row, agent_seen=True, version=2)
    assert ledger.sandbox("sb-1") == saved


def test_a_stale_write_is_refused_with_its_event(ledger: Ledger) -> None:
    row = ledger.add_sandbox(sandbox())
    newer = ledger.save_sandbox(replace(row, state=SandboxState.STARTING))
    with pytest.raises(StaleWriteError, match="version 1, but it is at version 2 in state starting"):
        ledger.save_sandbox(replace(row, state=SandboxState.STOPPING), event=event())
    assert ledger.sandbox("sb-1") == newer
    assert ledger.events("sb-1") == []


def test_a_write_to_a_row_that_is_gone_is_stale(ledger: Ledger) -> None:
    with pytest.raises(StaleWriteError):
        ledger.save_sandbox(sandbox())
    with pytest.raises(StaleWriteError):
        ledger.save_attempt(attempt())


def test_every_pair_of_sandbox_states_is_judged_by_the_declared_table(ledger: Ledger) -> None:
    for old in SandboxState:
        for new in SandboxState:
            row = in_state(ledger, old, f"{old}-{new}")
            if new == old or new in TRANSITIONS[old]:
                assert ledger.save_sandbox(replace(row, state=new)).state == new
                continue
            with pytest.raises(IllegalTransitionError):
                ledger.save_sandbox(replace(row, state=new, failure="not written"), event=event(row.id))
            assert ledger.sandbox(row.id) == row
            assert ledger.events(row.id) == []


def test_every_pair_of_attempt_states_is_judged_by_the_declared_table(ledger: Ledger) -> None:
    for old in AttemptState:
        for new in AttemptState:
            sandbox_id = f"{old}-{new}"
            row = starting(ledger, sandbox_id)
            added = ledger.add_attempt(attempt(sandbox_id, state=old), sandbox_version=row.version)
            if new == old or new in ATTEMPT_TRANSITIONS[old]:
                assert ledger.save_attempt(replace(added, state=new)).state == new
                continue
            with pytest.raises(IllegalTransitionError):
                ledger.save_attempt(replace(added, state=new, error="not written"), event=event(sandbox_id))
            assert ledger.attempts(sandbox_id) == [added]
            assert ledger.events(sandbox_id) == []


@pytest.mark.parametrize(
    "change",
    [{"cluster": "c2"}, {"node": "n2"}, {"pod_name": "x"}, {"created_at": NOW + timedelta(1)}, {"door": Door.REST}],
)
def test_a_write_cannot_change_who_a_sandbox_is(ledger: Ledger, change: dict[str, Any]) -> None:
    row = ledger.add_sandbox(sandbox())
    with pytest.raises(ValueError, match=next(iter(change))):
        ledger.save_sandbox(replace(row, **change))
    assert ledger.sandbox("sb-1") == row


@pytest.mark.parametrize("change", [{"token": "t"}, {"user_data": b"x"}, {"image": "i"}, {"name": "n"}])
def test_a_write_cannot_change_what_the_cloud_was_asked_for(ledger: Ledger, change: dict[str, Any]) -> None:
    added = ledger.add_attempt(attempt(), sandbox_version=starting(ledger).version)
    with pytest.raises(ValueError, match=next(iter(change))) as refusal:
        ledger.save_attempt(replace(added, **change))
    assert "PRIVATE-KEY" not in str(refusal.value)
    assert ledger.attempts("sb-1") == [added]


@pytest.mark.parametrize("state", [state for state in SandboxState if state != SandboxState.STARTING])
def test_only_a_starting_sandbox_gets_an_attempt(ledger: Ledger, state: SandboxState) -> None:
    row = in_state(ledger, state)
    with pytest.raises(StaleWriteError):
        ledger.add_attempt(attempt(), sandbox_version=row.version)
    assert ledger.attempts("sb-1") == []


def test_a_stop_that_came_first_wins_over_an_attempt(ledger: Ledger) -> None:
    row = starting(ledger)
    ledger.save_sandbox(replace(row, state=SandboxState.STOPPING))
    with pytest.raises(StaleWriteError):
        ledger.add_attempt(attempt(), sandbox_version=row.version, event=event())
    assert ledger.attempts("sb-1") == []
    assert ledger.events("sb-1") == []


def test_an_attempt_of_an_older_version_of_a_still_starting_sandbox_is_refused(ledger: Ledger) -> None:
    row = starting(ledger)
    ledger.save_sandbox(replace(row, agent_seen=True))
    with pytest.raises(StaleWriteError):
        ledger.add_attempt(attempt(), sandbox_version=row.version)


def test_an_attempt_of_an_unknown_sandbox_is_refused(ledger: Ledger) -> None:
    with pytest.raises(StaleWriteError):
        ledger.add_attempt(attempt("nobody"), sandbox_version=1)


def test_the_same_attempt_twice_gets_the_first_one_back(ledger: Ledger) -> None:
    row = starting(ledger)
    first = ledger.add_attempt(attempt(), sandbox_version=row.version)
    with pytest.raises(AttemptExists) as refusal:
        ledger.add_attempt(attempt(image="other"), sandbox_version=row.version)
    assert refusal.value.existing == first
    assert ledger.attempts("sb-1") == [first]


def test_a_token_is_used_once_in_the_whole_ledger(ledger: Ledger) -> None:
    first = ledger.add_attempt(attempt(), sandbox_version=starting(ledger).version)
    other = starting(ledger, "sb-2")
    with pytest.raises(AttemptExists) as refusal:
        ledger.add_attempt(attempt("sb-2", token=first.token), sandbox_version=other.version)
    assert refusal.value.existing == first


def test_a_sandbox_never_has_two_unsettled_attempts(ledger: Ledger) -> None:
    row = starting(ledger)
    first = ledger.add_attempt(attempt(), sandbox_version=row.version)
    with pytest.raises(AttemptExists) as refusal:
        ledger.add_attempt(attempt(number=2), sandbox_version=row.version)
    assert refusal.value.existing == first
    ledger.save_attempt(replace(first, state=AttemptState.REFUSED))
    second = ledger.add_attempt(attempt(number=2), sandbox_version=row.version)
    assert [a.number for a in ledger.attempts("sb-1")] == [1, 2]
    assert [a for a in ledger.attempts("sb-1") if a.unsettled] == [second]


@pytest.mark.parametrize("end", [AttemptState.REFUSED, AttemptState.ENDED])
def test_user_data_is_erased_when_an_attempt_is_final(ledger: Ledger, url: str, end: AttemptState) -> None:
    added = ledger.add_attempt(attempt(), sandbox_version=starting(ledger).version)
    ended = ledger.save_attempt(replace(added, state=end, error="no"))
    assert ended == replace(added, state=end, error="no", user_data=b"", version=2)
    assert bytes(raw(url, "SELECT user_data FROM attempts")[0][0]) == b""
    assert ledger.save_attempt(replace(ended, error="still no")).version == 3


def test_user_data_stays_while_the_attempt_may_be_repeated(ledger: Ledger) -> None:
    added = ledger.add_attempt(attempt(), sandbox_version=starting(ledger).version)
    accepted = ledger.save_attempt(replace(added, state=AttemptState.ACCEPTED, instance_id="i-1", addresses=("::1",)))
    assert accepted.user_data == USER_DATA
    assert ledger.attempts("sb-1") == [accepted]


def test_erased_user_data_is_not_left_in_the_files(tmp_path: Any) -> None:
    from caa.ledger import open_ledger, upgrade

    url = f"sqlite:///{tmp_path}/s/ledger.db"
    upgrade(url)
    ledger = open_ledger(url)
    large = USER_DATA * 500  # fills pages of its own, as real user data does
    added = ledger.add_attempt(attempt(user_data=large), sandbox_version=starting(ledger).version)
    ledger.close()  # the last connection moves the log into the file
    assert b"PRIVATE-KEY" in (tmp_path / "s" / "ledger.db").read_bytes()
    ledger = open_ledger(url)
    ledger.save_attempt(replace(added, state=AttemptState.REFUSED))
    ledger.close()
    assert b"PRIVATE-KEY" not in (tmp_path / "s" / "ledger.db").read_bytes()


def test_lists_are_oldest_first_and_filtered(ledger: Ledger) -> None:
    def add(sandbox_id: str, minutes: int, **changes: Any) -> Sandbox:
        return ledger.add_sandbox(sandbox(sandbox_id, created_at=NOW + timedelta(minutes=minutes), **changes))

    b, a = add("b", 1), add("a", 1, pod_name="db-0")
    z, n = add("z", 0, cluster="c2"), add("n", 2, node="n2", pod_namespace="bank")
    running = in_state(ledger, SandboxState.RUNNING, "r", created_at=NOW + timedelta(minutes=9))
    assert ledger.sandboxes() == [z, a, b, n, running]
    assert ledger.sandboxes(cluster="c1", node="n1") == [a, b, running]
    assert ledger.sandboxes(namespace="bank") == [n]
    assert ledger.sandboxes(namespace="shop", pod="db-0") == [a]
    assert ledger.sandboxes(states=[SandboxState.RUNNING]) == [running]
    assert ledger.sandboxes(states=LIVE_STATES, limit=2) == [z, a]
    assert ledger.sandboxes(states=()) == []


def test_pages_joined_are_the_whole_list_even_when_rows_go_between_them(ledger: Ledger) -> None:
    ids = [f"{n:02}" for n in range(11)]
    for sandbox_id in reversed(ids):  # the same time for threes, so that the id decides
        ledger.add_sandbox(sandbox(sandbox_id, created_at=NOW + timedelta(microseconds=int(sandbox_id) // 3)))
    seen: list[str] = []
    after = None
    while page := ledger.sandboxes(limit=4, after=after):
        seen += [row.id for row in page]
        last = page[-1]
        after = (last.created_at, last.id)
        stopping = ledger.save_sandbox(replace(last, state=SandboxState.STOPPING))
        ledger.save_sandbox(replace(stopping, state=SandboxState.STOPPED))
        assert ledger.prune(NOW + timedelta(days=1)) == 1
    assert seen == ids


def test_no_two_sandboxes_of_a_node_that_are_not_over_have_one_tunnel(ledger: Ledger) -> None:
    network = {"podip": "10.0.0.2/24", "routes": None}
    first = ledger.add_sandbox(sandbox("first", tunnel_id=555000, pod_network=network))
    assert ledger.sandbox("first") == first
    assert first.pod_network == network
    with pytest.raises(TunnelTaken, match="555000"):
        ledger.add_sandbox(sandbox("second", tunnel_id=555000))
    with pytest.raises(SandboxExists):
        ledger.add_sandbox(sandbox("first", tunnel_id=555000))
    ledger.add_sandbox(sandbox("elsewhere", node="n2", tunnel_id=555000))
    ledger.add_sandbox(sandbox("without"))
    ledger.add_sandbox(sandbox("without-too"))
    stopping = ledger.save_sandbox(replace(first, state=SandboxState.STOPPING, changed_at=NOW))
    assert ledger.tunnel_ids("c1", "n1", since=NOW) == {555000}
    ledger.save_sandbox(replace(stopping, state=SandboxState.STOPPED, changed_at=NOW + timedelta(seconds=1)))
    assert ledger.tunnel_ids("c1", "n1", since=NOW) == {555000}
    assert ledger.tunnel_ids("c1", "n1", since=NOW + timedelta(seconds=1)) == set()
    assert ledger.add_sandbox(sandbox("third", tunnel_id=555000)).tunnel_id == 555000


def test_a_snapshot_has_the_live_sandboxes_of_the_node_and_all_their_attempts(ledger: Ledger) -> None:
    live = starting(ledger, "live")
    first = ledger.add_attempt(attempt("live", state=AttemptState.REFUSED), sandbox_version=live.version)
    second = ledger.add_attempt(attempt("live", 2), sandbox_version=live.version)
    done = starting(ledger, "done")
    ledger.add_attempt(attempt("done", state=AttemptState.ENDED), sandbox_version=done.version)
    done = ledger.save_sandbox(replace(done, state=SandboxState.STOPPING))
    ledger.save_sandbox(replace(done, state=SandboxState.FAILED))
    starting(ledger, "elsewhere", node="n2")
    assert ledger.snapshot("c1", "n1") == ([live], [first, second])


def test_events_are_written_with_the_change_they_tell_of_in_order(ledger: Ledger) -> None:
    row = ledger.add_sandbox(sandbox(), event=event(kind="Created"))
    row = ledger.save_sandbox(replace(row, state=SandboxState.STARTING), event=event(kind="Starting"))
    added = ledger.add_attempt(attempt(), sandbox_version=row.version, event=event(kind="Intended", attempt=1))
    ledger.save_attempt(replace(added, state=AttemptState.ACCEPTED), event=event(kind="Accepted", attempt=1))
    ledger.add_event(event("sb-other"))
    last = ledger.add_event(event(kind="Seen"))
    trail = ledger.events("sb-1")
    assert [e.kind for e in trail] == ["Created", "Starting", "Intended", "Accepted", "Seen"]
    assert trail[2] == replace(event(kind="Intended", attempt=1), id=trail[2].id)
    assert trail[-1] == last
    ids = [e.id or 0 for e in trail]
    assert ids == sorted(set(ids))
    assert ledger.events("sb-1", after_id=ids[1], limit=2) == trail[2:4]


def test_an_event_of_another_sandbox_cannot_ride_along(ledger: Ledger) -> None:
    row = ledger.add_sandbox(sandbox())
    with pytest.raises(ValueError, match="sb-2"):
        ledger.save_sandbox(replace(row, agent_seen=True), event=event("sb-2"))
    assert ledger.sandbox("sb-1") == row


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET message = 'nothing happened'",
        "DELETE FROM events",
        "INSERT {} INTO events (id, sandbox_id, at, kind, message, data) "
        "VALUES (1, 'sb-1', '2026-01-01 00:00:00', 'K', 'forged', '{{}}') {}",
    ],
)
def test_the_database_itself_refuses_to_change_or_delete_events(ledger: Ledger, url: str, statement: str) -> None:
    written = ledger.add_event(event())
    sqlite = url.startswith("sqlite")
    upsert = "ON CONFLICT (id) DO UPDATE SET message = 'forged'"
    statement = statement.format("OR REPLACE" if sqlite else "", "" if sqlite else upsert)
    with pytest.raises(DBAPIError, match="events are append-only"):
        raw(url, statement)
    if not sqlite:
        with pytest.raises(DBAPIError, match="events are append-only"):
            raw(url, "TRUNCATE events")
    assert ledger.events("sb-1") == [written]


def test_events_cannot_be_replaced_past_the_delete_trigger_by_a_plain_client(tmp_path: Any) -> None:
    from caa.ledger import open_ledger, upgrade

    url = f"sqlite:///{tmp_path}/s/ledger.db"
    upgrade(url)
    ledger = open_ledger(url)
    written = ledger.add_event(event())
    plain = create_engine(url)  # without the pragmas the ledger sets
    with pytest.raises(DBAPIError, match="events are append-only"), plain.begin() as connection:
        connection.execute(
            text(
                "REPLACE INTO events SELECT id, sandbox_id, at, kind, 'forged', attempt, data, "
                "cluster, node FROM events"
            )
        )
    plain.dispose()
    assert ledger.events("sb-1") == [written]
    ledger.close()


def test_pruning_removes_old_ended_sandboxes_and_keeps_their_trail(ledger: Ledger) -> None:
    old, day = NOW - timedelta(days=30), timedelta(days=1)
    ended = starting(ledger, "old", changed_at=old)
    ledger.add_attempt(attempt("old", state=AttemptState.ENDED), sandbox_version=ended.version, event=event("old"))
    ended = ledger.save_sandbox(replace(ended, state=SandboxState.STOPPING))
    ledger.save_sandbox(replace(ended, state=SandboxState.STOPPED))
    in_state(ledger, SandboxState.FAILED, "recent")
    in_state(ledger, SandboxState.STOPPING, "live", changed_at=old)
    assert ledger.prune(NOW - day) == 1
    assert [row.id for row in ledger.sandboxes()] == ["live", "recent"]
    assert ledger.attempts("old") == []
    assert len(ledger.events("old")) == 1
    assert ledger.prune(NOW - day) == 0


def test_pruning_keeps_a_sandbox_of_which_a_vm_may_be_left(ledger: Ledger) -> None:
    row = starting(ledger)
    ledger.add_attempt(attempt(), sandbox_version=row.version)
    row = ledger.save_sandbox(replace(row, state=SandboxState.STOPPING))
    ledger.save_sandbox(replace(row, state=SandboxState.STOPPED))
    assert ledger.prune(NOW + timedelta(days=1)) == 0
    assert len(ledger.attempts("sb-1")) == 1


def test_an_odd_error_text_does_not_keep_the_state_from_being_written(ledger: Ledger) -> None:
    row = ledger.add_sandbox(sandbox())
    odd = "cloud said \0 and \ud800"
    saved = ledger.save_sandbox(
        replace(row, state=SandboxState.STOPPING, failure=odd), event=event(message=odd, data={"said": odd})
    )
    assert saved.failure == "cloud said \N{REPLACEMENT CHARACTER} and ?"
    assert ledger.events("sb-1")[0].message == saved.failure


def test_a_token_of_the_domain_fits(ledger: Ledger) -> None:
    row = starting(ledger, "a" * 64)
    added = ledger.add_attempt(attempt("a" * 64), sandbox_version=row.version)
    assert added.token == attempt_token("c1", "a" * 64, 1)
