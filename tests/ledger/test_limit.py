"""How many sandboxes of a node may have an instance at once, when several want one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Barrier

import pytest

from caa.ledger import Ledger, LimitReachedError, StaleWriteError, open_ledger
from caa.sandbox import AttemptState, Sandbox, SandboxState
from tests.ledger.samples import NOW, attempt, event, in_state, sandbox, starting

THREADS = 8


def start(ledger: Ledger, row: Sandbox, limit: int) -> Sandbox:
    return ledger.start_sandbox(
        replace(row, state=SandboxState.STARTING), limit=limit, event=event(row.id, "StartRequested")
    )


def created(ledger: Ledger, sandbox_id: str, **changes: object) -> Sandbox:
    return ledger.add_sandbox(sandbox(sandbox_id, **({"pod_name": sandbox_id} | changes)))


def test_starts_up_to_the_limit_and_no_further(ledger: Ledger) -> None:
    for name in ("a", "b"):
        assert start(ledger, created(ledger, name), 2).state is SandboxState.STARTING
    third = created(ledger, "c")
    with pytest.raises(LimitReachedError) as refused:
        start(ledger, third, 2)
    assert refused.value.count == 2
    assert ledger.sandbox("c") == third
    assert ledger.events("c") == []
    assert start(ledger, third, 3).state is SandboxState.STARTING


def test_below_zero_is_no_limit_and_zero_is_none_at_all(ledger: Ledger) -> None:
    for name in "abc":
        start(ledger, created(ledger, name), -1)
    with pytest.raises(LimitReachedError):
        start(ledger, created(ledger, "d"), 0)


@pytest.mark.parametrize(
    ("state", "counts"),
    [
        (SandboxState.CREATED, False),
        (SandboxState.STARTING, True),
        (SandboxState.RUNNING, True),
        (SandboxState.STOPPING, False),  # never started: nothing was asked of the cloud
        (SandboxState.STOPPED, False),
        (SandboxState.FAILED, False),
    ],
)
def test_what_has_or_may_have_an_instance_counts(ledger: Ledger, state: SandboxState, counts: bool) -> None:
    in_state(ledger, state, "other", pod_name="other")
    new = created(ledger, "new")
    if counts:
        with pytest.raises(LimitReachedError):
            start(ledger, new, 1)
    else:
        start(ledger, new, 1)


def test_one_that_is_stopping_counts_until_its_instance_is_gone(ledger: Ledger) -> None:
    row = starting(ledger, "old", pod_name="old")
    made = ledger.add_attempt(attempt("old"), sandbox_version=row.version)
    stopping = ledger.save_sandbox(replace(row, state=SandboxState.STOPPING))
    new = created(ledger, "new")
    with pytest.raises(LimitReachedError):
        start(ledger, new, 1)
    ledger.save_attempt(replace(made, state=AttemptState.ENDED))
    assert start(ledger, new, 1).state is SandboxState.STARTING
    assert ledger.sandbox("old") == stopping


def test_what_the_same_pod_had_before_is_superseded_and_does_not_count(ledger: Ledger) -> None:
    starting(ledger, "old", pod_name="web")
    again = created(ledger, "again", pod_name="web", created_at=NOW + timedelta(seconds=1))
    assert start(ledger, again, 1).state is SandboxState.STARTING
    # The other way round it does: an older sandbox supersedes nothing.
    older = created(ledger, "older", pod_name="web", created_at=NOW - timedelta(seconds=1))
    with pytest.raises(LimitReachedError):
        start(ledger, older, 1)


def test_other_nodes_and_clusters_have_limits_of_their_own(ledger: Ledger) -> None:
    starting(ledger, "a", pod_name="a", node="n2")
    starting(ledger, "b", pod_name="b", cluster="c2")
    assert start(ledger, created(ledger, "c"), 1).state is SandboxState.STARTING


def test_a_row_that_somebody_else_wrote_first_is_still_stale(ledger: Ledger) -> None:
    row = created(ledger, "a")
    ledger.save_sandbox(replace(row, state=SandboxState.STOPPING))
    with pytest.raises(StaleWriteError):
        start(ledger, row, 5)


@pytest.mark.parametrize("limit", [1, 3])
def test_of_many_starts_at_once_no_more_than_the_limit_get_through(new_url: Callable[[], str], limit: int) -> None:
    """Each has a connection pool of its own, as processes have: nothing in memory keeps them apart."""
    url = new_url()
    ledgers = [open_ledger(url) for _ in range(THREADS)]
    try:
        for turn in range(5):
            rows = [created(ledgers[0], f"{turn}-{number}", node=f"n{turn}") for number in range(THREADS)]
            barrier = Barrier(THREADS)

            def begin(number: int, rows: list[Sandbox] = rows, barrier: Barrier = barrier) -> bool:
                barrier.wait(30)
                try:
                    start(ledgers[number], rows[number], limit)
                except LimitReachedError:
                    return False
                return True

            with ThreadPoolExecutor(THREADS) as pool:
                assert sum(pool.map(begin, range(THREADS))) == limit
            found = ledgers[0].sandboxes(node=f"n{turn}", states={SandboxState.STARTING})
            assert len(found) == limit
    finally:
        for one in ledgers:
            one.close()
