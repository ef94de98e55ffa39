"""The token bucket of a class of calls, as arithmetic."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from caa.limits import FIRST_PAUSE, FORGIVEN_AFTER, LONGEST_PAUSE, LONGEST_RETRY_AFTER, Bucket, full, refused, take
from providers.base import Rate

RATE = Rate(burst=5, per_second=2)
NOW = 1_000_000.0


def test_the_burst_but_one_is_free_and_then_each_call_waits_for_its_token() -> None:
    bucket = full(RATE, NOW)
    for _ in range(4):
        bucket, wait = take(bucket, RATE, NOW)
        assert wait == 0
    bucket, wait = take(bucket, RATE, NOW)
    assert wait == 0.5
    bucket, wait = take(bucket, RATE, NOW + wait)
    assert wait == 0


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.floats(1, 100), st.floats(0.1, 50))
def test_in_no_stretch_of_time_more_calls_go_than_the_cloud_takes(
    gaps: list[float], burst: float, per_second: float
) -> None:
    rate = Rate(burst, per_second)
    now, bucket, gone = NOW, full(rate, NOW), []
    for gap in gaps:
        now += gap
        bucket, wait = take(bucket, rate, now)
        if wait == 0:
            gone.append(now)
        else:
            _, again = take(bucket, rate, now + wait + 1e-6)
            assert again == 0, "who waits as long as told gets a token"
    for first in range(len(gone)):
        for last in range(first, len(gone)):
            assert last - first + 1 <= burst + (gone[last] - gone[first]) * per_second + 1e-6


def test_too_many_calls_pause_the_bucket_and_ever_longer_while_it_does_not_help() -> None:
    bucket, now, pauses = full(RATE, NOW), NOW, []
    for _ in range(8):
        bucket = refused(bucket, RATE, now, None)
        _, wait = take(bucket, RATE, now)
        pauses.append(wait)
        now += wait
    assert pauses == [FIRST_PAUSE, 2, 4, 8, 16, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    bucket = refused(bucket, RATE, now + FORGIVEN_AFTER, None)
    assert take(bucket, RATE, now + FORGIVEN_AFTER)[1] == FIRST_PAUSE


def test_calls_that_were_under_way_together_make_one_pause() -> None:
    bucket = full(RATE, NOW)
    for _ in range(16):
        bucket = refused(bucket, RATE, NOW, None)
    assert take(bucket, RATE, NOW)[1] == FIRST_PAUSE


def test_the_clouds_own_word_is_kept_within_reason() -> None:
    assert take(refused(full(RATE, NOW), RATE, NOW, 17), RATE, NOW)[1] == 17
    paused = refused(full(RATE, NOW), RATE, NOW, None)
    assert take(refused(paused, RATE, NOW, 20), RATE, NOW)[1] == 20
    assert take(refused(full(RATE, NOW), RATE, NOW, 1e9), RATE, NOW)[1] == LONGEST_RETRY_AFTER


def test_after_a_pause_calls_come_one_by_one_and_not_in_a_burst() -> None:
    bucket = refused(full(RATE, NOW), RATE, NOW, None)
    bucket, first = take(bucket, RATE, NOW + FIRST_PAUSE)
    bucket, second = take(bucket, RATE, NOW + FIRST_PAUSE)
    bucket, third = take(bucket, RATE, NOW + FIRST_PAUSE)
    assert (first, second, third) == (0, 0, 0.5)


def test_a_clock_that_was_set_back_stops_nobody_for_long() -> None:
    ahead = Bucket(tokens=5, filled_at=NOW + 1e6)
    assert take(ahead, RATE, NOW)[1] == 0
    empty, wait = take(Bucket(tokens=0, filled_at=NOW + 1e6), RATE, NOW)
    assert wait == 0.5
    assert take(empty, RATE, NOW + wait)[1] == 0
    assert take(Bucket(5, NOW, paused_until=NOW + 1e6), RATE, NOW)[1] == LONGEST_RETRY_AFTER
