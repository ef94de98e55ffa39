"""How many calls a cloud takes: a token bucket for each class of calls. Pure; the ledger keeps the buckets.

A cloud counts the calls of an account, whichever node sends them. With a bucket in a ledger that nodes share they
stay below the limit together, and one node's "too many" makes all of them wait.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from providers.base import Rate

# One token of the burst stays in reserve: calls arrive closer together, or farther apart, than they were sent.
RESERVE = 1.0
# After a "too many" the bucket rests, for the account may be used by others of whom it knows nothing. A second is what
# EC2's slowest bucket needs for two calls.
FIRST_PAUSE = 1.0
# Doubled while it does not help, up to half a minute: a pod's start is given up after a few minutes.
LONGEST_PAUSE = 30.0
# A cloud may name a time of its own. More than this is taken for a mistake, of its clock or of ours.
LONGEST_RETRY_AFTER = 900.0
# So long without a "too many", and the next one counts as the first.
FORGIVEN_AFTER = 60.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """Moments are seconds since the epoch, of the clock that all who share the bucket use."""

    tokens: float
    filled_at: float
    paused_until: float = 0.0
    pause: float = 0.0  # how long the last pause was
    refused_at: float = 0.0  # when the cloud last said "too many"


def full(rate: Rate, now: float) -> Bucket:
    """A bucket that nobody has used."""
    return Bucket(_most(rate), now)


def take(bucket: Bucket, rate: Rate, now: float) -> tuple[Bucket, float]:
    """Take a token: the bucket after it, and 0; or the bucket as it is and the seconds after which to try again."""
    bucket = _refilled(bucket, rate, now)
    if bucket.paused_until > now:
        return bucket, bucket.paused_until - now
    if bucket.tokens < 1:
        return bucket, (1 - bucket.tokens) / rate.per_second
    return replace(bucket, tokens=bucket.tokens - 1), 0.0


def refused(bucket: Bucket, rate: Rate, now: float, retry_after: float | None) -> Bucket:
    """The bucket after the cloud said "too many", naming a time in seconds or not.

    Calls that were under way at the same time are refused, too; they make the pause no longer, unless they name a time.
    """
    bucket = _refilled(bucket, rate, now)
    told = min(retry_after or 0.0, LONGEST_RETRY_AFTER)
    if bucket.paused_until > now:
        return replace(bucket, tokens=0.0, refused_at=now, paused_until=max(bucket.paused_until, now + told))
    again = bucket.pause > 0 and now - bucket.refused_at < FORGIVEN_AFTER
    pause = min(bucket.pause * 2, LONGEST_PAUSE) if again else FIRST_PAUSE
    return replace(bucket, tokens=0.0, refused_at=now, pause=pause, paused_until=now + max(pause, told))


def _most(rate: Rate) -> float:
    return max(1.0, rate.burst - RESERVE)


def _refilled(bucket: Bucket, rate: Rate, now: float) -> Bucket:
    # A clock that was set back must not stop everybody until it has caught up.
    elapsed = max(0.0, now - bucket.filled_at)
    paused_until = min(bucket.paused_until, now + LONGEST_RETRY_AFTER)
    tokens = min(_most(rate), bucket.tokens + elapsed * rate.per_second)
    return replace(bucket, tokens=tokens, filled_at=now, paused_until=paused_until)
