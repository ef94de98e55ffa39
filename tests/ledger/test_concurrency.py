"""Several writers at once, and writers that die."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest

from caa.ledger import (
    AttemptExists,
    Ledger,
    LedgerError,
    SandboxExists,
    StaleWriteError,
    open_ledger,
    revision,
    schema,
    statements,
)
from caa.ledger import engine as ledger_engine
from caa.ledger import store as ledger_store
from caa.ledger.tables import SCHEMA_REVISION
from caa.sandbox import AttemptState, Sandbox, SandboxState
from tests.ledger.postgresql import Server
from tests.ledger.samples import USER_DATA, attempt, event, sandbox, starting

THREADS = 8


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow disk the last of many writers waits longer than a service would: these tests are about who wins."""
    monkeypatch.setattr(ledger_engine, "LOCK_WAIT_S", 60)
    monkeypatch.setattr(ledger_store, "LOCK_WAIT_S", 60)


def child(verb: str, url: str) -> subprocess.Popen[str]:
    """Start a second process of the service's code. The URL goes by standard input, for it holds a password."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.ledger.child", verb], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    process.stdin.write(url + "\n")
    process.stdin.flush()
    return process


def at_once(what: Callable[[int], object]) -> list[object]:
    """Call `what(0..7)` from as many threads at the same moment; returns results and errors."""
    barrier = Barrier(THREADS)

    def call(number: int) -> object:
        barrier.wait(30)
        try:
            return what(number)
        except (StaleWriteError, SandboxExists, AttemptExists) as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(call, range(THREADS)))


def test_of_many_threads_that_write_one_version_one_wins(ledger: Ledger) -> None:
    row = ledger.add_sandbox(sandbox())
    for _ in range(10):
        now = row
        results = at_once(lambda n, now=now: ledger.save_sandbox(replace(now, failure=str(n)), event=event()))  # type: ignore[misc]
        winners = [result for result in results if not isinstance(result, Exception)]
        assert len(winners) == 1
        assert all(isinstance(result, StaleWriteError) for result in results if isinstance(result, Exception))
        row = ledger.sandbox("sb-1") or row
        assert row == winners[0]
    assert row.version == 11
    assert len(ledger.events("sb-1")) == 10


def test_of_many_threads_that_add_one_sandbox_one_wins_and_all_see_its_row(ledger: Ledger) -> None:
    results = at_once(lambda n: ledger.add_sandbox(sandbox(pod_name=f"pod-{n}")))
    stored = ledger.sandbox("sb-1")
    assert sum(result == stored for result in results) == 1
    losers = [result for result in results if isinstance(result, SandboxExists)]
    assert [loser.existing for loser in losers] == [stored] * (THREADS - 1)


def test_of_many_threads_that_add_an_attempt_one_wins(ledger: Ledger) -> None:
    row = starting(ledger)
    results = at_once(lambda n: ledger.add_attempt(attempt(number=n + 1), sandbox_version=row.version))
    assert sum(not isinstance(result, Exception) for result in results) == 1
    assert len(ledger.attempts("sb-1")) == 1


def test_of_an_attempt_and_a_stop_at_once_either_the_stop_sees_it_or_it_is_refused(ledger: Ledger) -> None:
    for number in range(15):
        row = starting(ledger, f"sb-{number}")

        def race(n: int, row: Sandbox = row, sandbox_id: str = f"sb-{number}") -> object:
            if n % 2:
                return ledger.add_attempt(attempt(sandbox_id), sandbox_version=row.version)
            stopping = ledger.save_sandbox(replace(row, state=SandboxState.STOPPING))
            return stopping, ledger.attempts(sandbox_id)

        results = at_once(race)
        stops = [result for result in results if isinstance(result, tuple)]
        assert len(stops) == 1
        # What the stop saw is all there will ever be: no attempt comes after it.
        assert stops[0][1] == ledger.attempts(f"sb-{number}")


def test_events_never_turn_up_behind_an_id_already_seen(ledger: Ledger) -> None:
    seen: list[int] = []

    def work(number: int) -> None:
        if number:
            for _ in range(8):
                ledger.add_event(event())
            return
        deadline = time.monotonic() + 60  # a writer that failed is told, not waited for
        while len(seen) < 8 * (THREADS - 1) and time.monotonic() < deadline:
            seen.extend(e.id or 0 for e in ledger.events("sb-1", after_id=seen[-1] if seen else 0))

    at_once(work)
    assert seen == [e.id for e in ledger.events("sb-1")]


def wait_for_a_lock_waiter(url: str) -> None:
    """Return once a connection waits for an advisory lock of this PostgreSQL database."""
    engine = ledger_engine.make_engine(url)
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    deadline = time.monotonic() + 20
    found = 0
    while not found and time.monotonic() < deadline:
        with engine.connect() as connection:
            found = connection.exec_driver_sql(waiting).scalar_one()
    engine.dispose()
    assert found, "nobody waits for the lock"


def test_an_event_waits_for_an_earlier_one_of_its_sandbox_that_is_not_committed(server: Server, template: str) -> None:
    url = server.url(server.new_database(template))
    ledger = open_ledger(url)
    engine = ledger_engine.make_engine(url)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as earlier:
            first = statements.add_event(earlier, event(), "sb-1")
            ledger.add_event(event("sb-2"))  # another sandbox does not wait
            later = pool.submit(ledger.add_event, event())
            wait_for_a_lock_waiter(url)
            assert ledger.events("sb-1") == []
        last = later.result(20).id
    assert [e.id for e in ledger.events("sb-1")] == [first, last]
    engine.dispose()
    ledger.close()


def test_an_upgrade_waits_for_the_one_under_way(server: Server) -> None:
    url = server.url(server.new_database())
    engine = ledger_engine.make_engine(url)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as under_way:
            under_way.exec_driver_sql(f"SELECT pg_advisory_xact_lock({schema._UPGRADE_LOCK})")
            second = pool.submit(schema.upgrade, url)
            wait_for_a_lock_waiter(url)
            assert revision(url) is None
        assert second.result(30) == SCHEMA_REVISION
    engine.dispose()


def test_two_processes_lose_no_write(ledger: Ledger, url: str) -> None:
    ledger.add_sandbox(sandbox("shared"))
    children = [child("count", url) for _ in range(2)]
    won = [int(process.communicate(timeout=60)[0].split()[0]) for process in children]
    assert won == [60, 60]
    row = ledger.sandbox("shared")
    assert row is not None
    assert row.version == 121
    assert len(ledger.events("shared")) == 120


def test_every_acknowledged_write_is_there_after_the_writer_was_killed(url: str) -> None:
    ledger = open_ledger(url)
    process = child("write", url)
    assert process.stdout is not None
    acknowledged = [process.stdout.readline().strip() for _ in range(40)]
    process.send_signal(signal.SIGKILL)
    acknowledged += process.communicate(timeout=30)[0].split()
    assert process.returncode == -signal.SIGKILL
    assert all(acknowledged)
    ledger.close()

    ledger = open_ledger(url)
    for sandbox_id in acknowledged:
        (found,) = ledger.attempts(sandbox_id)
        assert found == attempt(sandbox_id)
        assert found.user_data == USER_DATA
        assert len(ledger.events(sandbox_id)) == 1
    # No half write either: an attempt and its event are there together or not at all.
    for row in ledger.sandboxes():
        assert len(ledger.attempts(row.id)) == len(ledger.events(row.id))
    ledger.close()


def test_two_upgrades_at_once_both_succeed(empty_url: str) -> None:
    children = [child("upgrade", empty_url) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in children] == [SCHEMA_REVISION] * 3
    assert revision(empty_url) == SCHEMA_REVISION
    open_ledger(empty_url).close()


def test_readers_go_on_while_a_writer_is_stuck_and_writers_get_a_retryable_error(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_engine, "LOCK_WAIT_S", 0.2)
    ledger = open_ledger(url)
    row = ledger.add_sandbox(sandbox())
    other = ledger_engine.make_engine(url)
    with other.execution_options(**{ledger_engine.WRITES: True}).begin() as stuck:
        stuck.exec_driver_sql("UPDATE sandboxes SET node = node")
        assert ledger.sandbox("sb-1") == row
        with pytest.raises(LedgerError, match="lock") as refusal:
            ledger.save_sandbox(replace(row, agent_seen=True))
        assert refusal.value.retryable
    assert ledger.save_sandbox(replace(row, agent_seen=True)).version == 2
    other.dispose()
    ledger.close()


def test_a_ledger_outlives_a_crash_of_the_database_server() -> None:
    from caa.ledger import upgrade

    server = Server()
    try:
        url = server.url(server.new_database())
        upgrade(url)
        ledger = open_ledger(url)
        row = starting(ledger)
        added = ledger.add_attempt(attempt(), sandbox_version=row.version)
        server.stop()
        with pytest.raises(LedgerError) as refusal:
            ledger.save_attempt(replace(added, state=AttemptState.ACCEPTED))
        assert refusal.value.retryable
        assert "PRIVATE-KEY" not in str(refusal.value)
        server.start()
        assert ledger.attempts("sb-1") == [added]
        assert ledger.save_attempt(replace(added, state=AttemptState.ACCEPTED)).version == 2
        ledger.close()
    finally:
        server.remove()
