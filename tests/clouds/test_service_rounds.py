"""Reconcile rounds of the real service that come at the worst moment of a start or a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.clouds.aws.account import Account
from tests.clouds.fakeguest import FakeGuests
from tests.clouds.podworld import alive, pod_service
from tests.lab.service import ServiceProcess, new_id

# A round follows another after 5 s; only a failing test waits this long.
PATIENCE = 60.0
WAITING_FOR_ATTEMPTS = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'attempts'::regclass"


@pytest.fixture
def service(account: Account, postgresql_ledger: str) -> Iterator[ServiceProcess]:
    with (
        FakeGuests(account.emulator.url),
        pod_service(account, account.emulator.url, CAA_LEDGER_URL=postgresql_ledger) as service,
    ):
        yield service


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        time.sleep(0.05)


def count(database: psycopg.Connection, query: str, *values: str) -> int:
    row = database.execute(query.encode(), values).fetchone()
    assert row is not None
    return int(row[0])


def test_a_round_that_read_the_ledger_just_before_a_start_was_done_leaves_the_sandbox_alone(
    account: Account, service: ServiceProcess, postgresql_ledger: str
) -> None:
    # The clock stands still: the guest answers when the test lets it.
    account.emulator.delays(boot=1)
    sandbox_id = new_id()
    service.create_vm(sandbox_id, "web")
    with (
        psycopg.connect(postgresql_ledger, autocommit=True) as database,
        psycopg.connect(postgresql_ledger) as holder,
        ThreadPoolExecutor(1) as pool,
    ):
        start = pool.submit(service.start_vm, sandbox_id)
        known = "SELECT count(*) FROM events WHERE sandbox_id = %s AND kind = 'AddressKnown'"
        eventually(lambda: count(database, known, sandbox_id) == 1, "the address is recorded")
        # A round reads sandboxes first. The one it now finds is starting; there it must wait.
        holder.execute("LOCK TABLE attempts IN ACCESS EXCLUSIVE MODE")
        eventually(lambda: count(database, WAITING_FOR_ATTEMPTS) == 1, "a round waits for the table")
        account.emulator.advance(1)
        start.result(PATIENCE)
        holder.rollback()
    rounds = account.emulator.counters()["calls"]["DescribeInstances"] + 3
    eventually(lambda: account.emulator.counters()["calls"]["DescribeInstances"] >= rounds, "three rounds more")
    row = service.sandbox(sandbox_id)
    assert row["state"] == "running", row["failure"]
    assert list(alive(account).values()) == [sandbox_id]
