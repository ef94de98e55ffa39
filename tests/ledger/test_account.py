"""Call buckets and refused offerings, shared through the ledger."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from caa.ledger import Ledger, open_ledger
from caa.unavailable import ANY, Unavailable
from providers.base import Rate
from tests.ledger.samples import NOW

RATE = Rate(burst=5, per_second=2)
# PostgreSQL takes its own clock; a rate at which nothing comes back during the test makes the difference invisible.
SLOW = Rate(burst=5, per_second=0.001)
REFUSAL = Unavailable(
    account="aws/here",
    instance_type="m6a.large",
    zone="a",
    market="on-demand",
    since=NOW,
    until=NOW + timedelta(minutes=3),
    quota=False,
    reason="InsufficientInstanceCapacity",
    message="none left",
)


def test_all_who_open_the_ledger_take_from_one_bucket(ledger: Ledger, url: str) -> None:
    other = open_ledger(url)
    try:
        waits = [one.account.take_token("launch", SLOW, NOW) for one in (ledger, other, ledger, other, ledger)]
    finally:
        other.close()
    assert waits[:4] == [0] * 4
    assert waits[4] > 900


def test_of_many_who_ask_at_once_no_more_than_the_burst_get_a_token(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: ledger.account.take_token("launch", SLOW, NOW), range(40)))
    assert sum(wait == 0 for wait in waits) == 4


def test_a_refused_call_makes_everybody_wait(ledger: Ledger) -> None:
    now = datetime.now(UTC)
    assert ledger.account.take_token("launch", RATE, now) == 0
    ledger.account.call_refused("launch", RATE, now, retry_after=60)
    assert 55 < ledger.account.take_token("launch", RATE, now) <= 60
    assert ledger.account.take_token("list", RATE, now) == 0


def test_a_refused_offering_is_remembered_until_its_time_is_over(ledger: Ledger) -> None:
    ledger.account.mark_unavailable(REFUSAL)
    assert ledger.account.unavailable("aws/here", NOW) == [REFUSAL]
    assert ledger.account.unavailable("aws/elsewhere", NOW) == []
    assert ledger.account.unavailable("aws/here", REFUSAL.until) == []


def test_a_later_refusal_of_the_same_replaces_the_earlier_one(ledger: Ledger) -> None:
    later = replace(REFUSAL, since=NOW + timedelta(minutes=1), until=NOW + timedelta(minutes=11), quota=True)
    ledger.account.mark_unavailable(REFUSAL)
    ledger.account.mark_unavailable(later)
    assert ledger.account.unavailable("aws/here", NOW) == [later]


def test_what_has_expired_is_removed_by_the_next_refusal(ledger: Ledger) -> None:
    ledger.account.mark_unavailable(REFUSAL)
    wide = replace(REFUSAL, instance_type=ANY, zone="b", since=REFUSAL.until, until=REFUSAL.until + timedelta(hours=1))
    ledger.account.mark_unavailable(wide)
    assert ledger.account.unavailable("aws/here", NOW) == [wide]


def test_an_ended_instance_makes_room_in_quotas_and_nowhere_else(ledger: Ledger) -> None:
    quota = replace(REFUSAL, zone=ANY, quota=True)
    elsewhere = replace(quota, account="aws/elsewhere")
    for one in (REFUSAL, quota, elsewhere):
        ledger.account.mark_unavailable(one)
    assert ledger.account.forget_quota("aws/here")
    assert not ledger.account.forget_quota("aws/here")
    assert ledger.account.unavailable("aws/here", NOW) == [REFUSAL]
    assert ledger.account.unavailable("aws/elsewhere", NOW) == [elsewhere]
