"""Which offerings a refusal rules out, and for how long."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from caa.unavailable import first_covering, refusal, shown
from providers.base import CapacityError, Market, Offering, QuotaError, Scope

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
ASKED = Offering("m6a.large", "a", 2, 8192)
OTHERS = {
    "type": replace(ASKED, instance_type="m6a.xlarge"),
    "zone": replace(ASKED, zone="b"),
    "market": replace(ASKED, market=Market.SPOT),
}


@pytest.mark.parametrize(
    ("scope", "also"),
    [
        (Scope.OFFERING, set()),
        (Scope.TYPE, {"zone"}),
        (Scope.ZONE, {"type", "market"}),
        (Scope.MARKET, {"type", "zone"}),
    ],
)
def test_a_refusal_rules_out_what_it_reaches_and_nothing_else(scope: Scope, also: set[str]) -> None:
    known = refusal("aws/here", ASKED, CapacityError("None", "none left", scope, 180), NOW)
    assert known is not None
    assert known.covers(ASKED)
    assert {name for name, offering in OTHERS.items() if known.covers(offering)} == also


def test_a_refusal_that_says_nothing_of_the_next_moment_is_not_remembered() -> None:
    assert refusal("libvirt/here", ASKED, CapacityError("PoolFull", "no room"), NOW) is None


def test_of_several_refusals_the_longest_counts_until_it_expires() -> None:
    short = refusal("aws/here", ASKED, CapacityError("None", "none left", seconds=180), NOW)
    long = refusal("aws/here", ASKED, QuotaError("Quota", "no more", Scope.TYPE, 600), NOW)
    assert short
    assert long
    assert first_covering([short, long], ASKED, NOW) == long
    assert first_covering([short], ASKED, NOW + timedelta(seconds=179)) == short
    assert first_covering([short], ASKED, NOW + timedelta(seconds=180)) is None
    assert long.quota
    assert not short.quota


def test_an_offering_without_zone_is_shown_without_a_gap() -> None:
    assert shown(ASKED) == "m6a.large a on-demand"
    assert shown(replace(ASKED, zone="")) == "m6a.large on-demand"
