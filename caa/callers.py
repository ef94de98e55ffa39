"""Who asked for what is being done now, as events tell it.

It travels in a context variable, as the sandbox of a log line does: a task that a call starts works in its caller's
name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

SERVICE = "service"
"""Nobody outside: the service itself, by its own rules."""

_caller: ContextVar[str] = ContextVar("caller", default=SERVICE)


@contextlib.contextmanager
def called_by(who: str) -> Iterator[None]:
    """What is done inside was asked for by `who`, such as "ttrpc (pid 812)" or "REST 10.0.0.7"."""
    token = _caller.set(who)
    try:
        yield
    finally:
        _caller.reset(token)


def caller() -> str:
    """Who asked."""
    return _caller.get()
