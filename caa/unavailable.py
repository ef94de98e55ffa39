"""Offerings that a cloud refused a moment ago, and is not asked for again for a while. Pure; the ledger keeps them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from providers.base import Offering, OfferingRefusedError, QuotaError, Scope

ANY = "*"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """One refusal, as wide as it reaches: a type, zone or market of ANY means every one."""

    account: str  # whose capacity and quota it is: the provider's `account`
    instance_type: str
    zone: str
    market: str
    since: datetime
    until: datetime
    quota: bool  # the account may have no more, rather than the cloud having none
    reason: str
    message: str

    def covers(self, offering: Offering) -> bool:
        """Whether the offering would be refused as well."""
        pairs = (
            (self.instance_type, offering.instance_type),
            (self.zone, offering.zone),
            (self.market, offering.market.value),
        )
        return all(mine in (ANY, theirs) for mine, theirs in pairs)


def refusal(account: str, offering: Offering, error: OfferingRefusedError, now: datetime) -> Unavailable | None:
    """What to remember of a refusal; None when it says nothing of the next moment."""
    if error.seconds <= 0:
        return None
    wide = error.scope
    return Unavailable(
        account=account,
        instance_type=offering.instance_type if wide in (Scope.OFFERING, Scope.TYPE) else ANY,
        zone=offering.zone if wide in (Scope.OFFERING, Scope.ZONE) else ANY,
        market=offering.market.value if wide in (Scope.OFFERING, Scope.TYPE, Scope.MARKET) else ANY,
        since=now,
        until=now + timedelta(seconds=error.seconds),
        quota=isinstance(error, QuotaError),
        reason=error.reason,
        message=str(error),
    )


def first_covering(known: Iterable[Unavailable], offering: Offering, now: datetime) -> Unavailable | None:
    """The refusal that keeps an offering from being asked for now: of several the one that lasts longest."""
    covering = [one for one in known if one.until > now and one.covers(offering)]
    return max(covering, key=lambda one: one.until, default=None)


def passed_over(against: Unavailable, offering: Offering, now: datetime) -> str:
    """Why an offering is not asked for now, in a sentence for people."""
    return (
        f"{shown(offering)} was not asked for, because of {against.reason} "
        f"{(now - against.since).total_seconds():.0f} s ago, and will be again in "
        f"{(against.until - now).total_seconds():.0f} s ({against.message})"
    )


def shown(offering: Offering) -> str:
    """An offering in a sentence for people."""
    return " ".join(part for part in (offering.instance_type, offering.zone, offering.market.value) if part)
