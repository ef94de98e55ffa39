"""Repeating calls that a cloud did not answer, or put off. Only for calls that may be repeated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential, wait_random

from providers.base import ThrottledError, UnavailableError, UnknownOutcomeError

T = TypeVar("T")

# With the waits below some two minutes: a cloud that is out for longer is met by the build's own retries.
_TRIES = 8
REPEATABLE = (ThrottledError, UnavailableError, UnknownOutcomeError)


class Sleeper(Protocol):
    """The part of `Work` that is needed here."""

    def sleep(self, seconds: float) -> None: ...


def patiently(work: Sleeper, call: Callable[[], T]) -> T:
    """What the call returns or raises at last. Between two tries `work` may end the build."""
    retrying = Retrying(
        retry=retry_if_exception_type(REPEATABLE),
        stop=stop_after_attempt(_TRIES),
        wait=wait_exponential(multiplier=0.5, max=60) + wait_random(0, 0.5),
        sleep=work.sleep,
        reraise=True,
    )
    return retrying(call)
