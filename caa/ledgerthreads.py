"""Ledger calls from the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from caa.errors import UnavailableError
from caa.ledger import LedgerError
from caa.threads import Threads

P = ParamSpec("P")
T = TypeVar("T")

# Ledger calls are short; more threads than this would only queue inside SQLite.
WORKERS = 4


class LedgerThreads(Threads):
    """Threads for the ledger, with its errors as callers are told them."""

    def __init__(self) -> None:
        super().__init__(WORKERS, "ledger")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises caa.errors.UnavailableError when the ledger cannot be used."""
        try:
            return await super().run(call, *args, **kwargs)
        except LedgerError as error:
            raise UnavailableError(str(error), reason="LedgerUnavailable") from error
