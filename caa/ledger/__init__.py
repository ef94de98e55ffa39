"""The ledger: the only truth about what this service asked the cloud for.

`upgrade` brings a database to this code's schema, `open_ledger` opens it, `Ledger` reads and writes it. Nothing
outside this package speaks SQL, and nothing of SQLAlchemy leaves it.
"""

from caa.ledger.errors import (
    AlreadyExists,
    AttemptExists,
    LeaseLostError,
    LedgerError,
    LimitReachedError,
    SandboxExists,
    StaleWriteError,
    TunnelTaken,
)
from caa.ledger.schema import revision, upgrade
from caa.ledger.store import Cursor, Ledger, open_ledger

__all__ = [
    "AlreadyExists",
    "AttemptExists",
    "Cursor",
    "LeaseLostError",
    "Ledger",
    "LedgerError",
    "LimitReachedError",
    "SandboxExists",
    "StaleWriteError",
    "TunnelTaken",
    "open_ledger",
    "revision",
    "upgrade",
]
