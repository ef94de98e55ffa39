"""What the ledger may say instead of yes, and how a driver's error becomes one that is safe to show."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from caa.sandbox import Attempt, Sandbox

URL_KEY = "CAA_LEDGER_URL"


class LedgerError(Exception):
    """The database could not be used. str() never holds a password, user data or a token.

    With `retryable` the same call may work later. The write may have happened all the same (the connection
    broke during COMMIT): a repeated versioned write then raises StaleWriteError, so read the row again.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class StaleWriteError(Exception):
    """Somebody else wrote the row first (or it is gone). Nothing was written: read it again and decide anew."""


class LimitReachedError(Exception):
    """The node has as many sandboxes as it may. Nothing was written; `count` is how many."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the node has {count} sandboxes that have an instance, or may have one")
        self.count = count


class LeaseLostError(Exception):
    """Somebody else has the lease by now. Nothing was written, and nothing of the kind may be done any more."""


class TunnelTaken(Exception):
    """Another sandbox of the node, not over yet, has this tunnel id. Nothing was written."""


class AlreadyExists(Exception):
    """The row to add is there already. Nothing was written; `existing` is the row as stored."""

    existing: Sandbox | Attempt


class SandboxExists(AlreadyExists):
    """A sandbox with this id is recorded, in whatever state."""

    existing: Sandbox

    def __init__(self, existing: Sandbox) -> None:
        super().__init__(f"sandbox {existing.id} is already recorded, in state {existing.state}")
        self.existing = existing


class AttemptExists(AlreadyExists):
    """An attempt has this number or this token, or the sandbox has an attempt that is not settled yet."""

    existing: Attempt

    def __init__(self, existing: Attempt) -> None:
        super().__init__(
            f"attempt {existing.number} of sandbox {existing.sandbox_id} is already recorded, in state {existing.state}"
        )
        self.existing = existing


# SQLSTATEs after which the same call may work: serialization failure, deadlock, lock timeout, statement timeout,
# too many connections, and a server that is shutting down, crashed or starting (class 57P).
_RETRYABLE_STATES = ("40001", "40P01", "55P03", "57014", "53300", "57P")


def ledger_error(error: SQLAlchemyError, shown_url: str) -> LedgerError:
    """The LedgerError that stands for `error`.

    Only the driver's first line is used: SQLAlchemy's text holds the statement, and PostgreSQL's DETAIL holds
    whole rows, thus user data.
    """
    if isinstance(error, PoolTimeoutError):
        return LedgerError(f"{URL_KEY}: no free connection to {shown_url}", retryable=True)
    if not isinstance(error, DBAPIError) or error.orig is None:
        return LedgerError(f"{URL_KEY}: {shown_url} refused a call: {type(error).__name__}")
    origin = error.orig
    name = getattr(origin, "sqlite_errorname", None)
    if name is not None:  # SQLite
        return LedgerError(
            f"{URL_KEY}: {shown_url}: {origin} ({name})", retryable=name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))
        )
    state = getattr(origin, "sqlstate", None)
    if state is None:  # no answer from a server: not reached, or the connection broke
        return LedgerError(
            f"{URL_KEY}: {shown_url}: {first_line(origin)}",
            retryable=error.connection_invalidated or type(origin).__name__ == "OperationalError",
        )
    diag = getattr(origin, "diag", None)
    text = getattr(diag, "message_primary", None) or type(origin).__name__
    retryable = error.connection_invalidated or state.startswith(_RETRYABLE_STATES)
    return LedgerError(f"{URL_KEY}: {shown_url}: {text} ({state})", retryable=retryable)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
