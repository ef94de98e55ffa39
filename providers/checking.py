"""Looking at a configuration in the live cloud: each look by itself, so that one refusal does not hide the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from providers.base import Problem, ProviderError

T = TypeVar("T")


def looked(found: list[Problem], key: str, look: Callable[[], T]) -> T | None:
    """What `look` sees; None when the cloud refuses, and then `found` has a problem of `key` more."""
    try:
        return look()
    except ProviderError as error:
        found.append(Problem(key, str(error)))
        return None
