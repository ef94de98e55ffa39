"""From CAA_LEDGER_URL to a database connection with the promises the ledger makes: durable, bounded, private."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError, StatementError

from caa.ledger.errors import URL_KEY, LedgerError, first_line, ledger_error

ALLOWED = "sqlite:///<path> (four slashes for an absolute path) or postgresql://<user>:<password>@<host>/<database>"

LOCK_WAIT_S = 5
"""How long a call waits for another writer: far above any transaction of ours (about 1 ms), below a shim's patience."""

STATEMENT_LIMIT_S = 15
"""A statement of ours takes milliseconds. A server that takes this long is not answering."""

# More than the threads that use the ledger at once (asyncio's default pool has at most 32, a worker's few cores give
# fewer); beyond it a thread waits for a free connection, as long as it would wait for a lock.
POOL_SIZE = 8
POOL_OVERFLOW = 24

# libpq: give up connecting after 5 s, and notice a dead server within about 20 s instead of TCP's 2 h.
_LIBPQ_DEFAULTS = {
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "20000",
    "application_name": "caa",
}

_SHOWN_OPTIONS = ("host", "port", "sslmode")  # of a URL's options; `password` may be one of the others

# `writes`: this transaction writes, so on SQLite it takes the write lock at its beginning, not half-way.
WRITES = "caa_writes"


def parse_url(url: str) -> URL:
    """The URL, with its driver. Raises LedgerError naming the key and the value, with any password masked."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the parser's text may quote a part of the password
        raise LedgerError(f"{URL_KEY}: {masked(url)!r} is not a database URL: must be {ALLOWED}") from None
    if "@" in (parsed.host or ""):
        raise LedgerError(f"{URL_KEY}: {masked(url)!r}: write an @ in the password as %40")
    if parsed.drivername in ("postgresql", "postgresql+psycopg"):
        if not parsed.database:
            raise LedgerError(f"{URL_KEY}: {masked(url)!r} names no database: must be {ALLOWED}")
        defaults = {k: v for k, v in _LIBPQ_DEFAULTS.items() if k not in parsed.query}
        return parsed.set(drivername="postgresql+psycopg").update_query_dict(defaults)
    if parsed.drivername != "sqlite":
        raise LedgerError(f"{URL_KEY}: {masked(url)!r} is not supported: must be {ALLOWED}")
    if parsed.host or "?" in url or not parsed.database or parsed.database == ":memory:":
        raise LedgerError(f"{URL_KEY}: {masked(url)!r} names no file: must be {ALLOWED}")
    return parsed


def masked(url: str) -> str:
    """The URL without anything that may be a password, also when it cannot be parsed."""
    try:
        parsed = make_url(url)
        int(parsed.port or 0)
    except (ArgumentError, ValueError):
        parsed = None
    if parsed is not None and "@" not in (parsed.host or ""):
        query = {name: value if name in _SHOWN_OPTIONS else "***" for name, value in parsed.query.items()}
        return parsed.set(query=query).render_as_string(hide_password=True)
    scheme, colon, rest = url.partition(":")
    if "@" in rest:
        rest = "//***@" + rest.rpartition("@")[2]
    elif ":" in rest:  # `user:password` with the host forgotten
        rest = "//***"
    return re.sub(r"\?.*", "?***", scheme + colon + rest, flags=re.DOTALL)


@contextmanager
def errors_of(url: str) -> Iterator[None]:
    """Turn what SQLAlchemy raises inside into LedgerError. Nothing is chained: the original holds parameters.

    A value that no column can hold (a time without zone, data that is not JSON) stays a ValueError or TypeError.
    """
    try:
        yield
    except SQLAlchemyError as error:
        if isinstance(error, StatementError) and isinstance(error.orig, ValueError | TypeError):
            raise error.orig from None
        raise ledger_error(error, masked(url)) from None


def make_engine(url: str, *, create: bool = False) -> Engine:
    """An engine for `url`. No connection is made yet. Raises LedgerError.

    With `create`, a missing SQLite file is made, private (0600 in a directory of 0700); without, it is refused.
    """
    parsed = parse_url(url)
    common: dict[str, Any] = {
        "pool_size": POOL_SIZE,
        "max_overflow": POOL_OVERFLOW,
        "pool_timeout": LOCK_WAIT_S,
        "hide_parameters": True,  # user data and tokens never in a text
    }
    if parsed.drivername == "sqlite":
        return _sqlite_engine(url, Path(parsed.database or ""), create, common)
    try:
        # pre_ping: a server that was restarted is met by a new connection, not by an error
        engine = create_engine(parsed, pool_pre_ping=True, **common)
    except ImportError:
        raise LedgerError(
            f"{URL_KEY}: {masked(url)!r} needs the PostgreSQL driver, which is not installed:"
            " install this package with its extra [postgresql]"
        ) from None
    event.listen(engine, "connect", _prepare_postgresql)
    return engine


def _prepare_postgresql(connection: Any, _record: Any) -> None:
    # A server may be set to acknowledge commits before they are on disk; an attempt must survive a power cut.
    # Stronger settings (remote_apply) stay.
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false),"
            " CASE current_setting('synchronous_commit') WHEN 'off'"
            " THEN set_config('synchronous_commit', 'on', false) END",
            (f"{LOCK_WAIT_S}s", f"{STATEMENT_LIMIT_S}s"),
        )
    connection.commit()


def _sqlite_engine(url: str, path: Path, create: bool, common: dict[str, Any]) -> Engine:
    try:
        if create:
            _create_private(path)
        elif not path.is_file():
            raise LedgerError(f"{URL_KEY}: {masked(url)!r}: no such file; run `caa db upgrade` to make it")
        _make_private(path)
    except OSError as error:
        raise LedgerError(f"{URL_KEY}: {masked(url)!r}: {error.strerror}: {error.filename}") from None

    def connect() -> sqlite3.Connection:
        # mode=rw: a file that vanished is an error, never silently a new and empty ledger.
        return sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=rw",
            uri=True,
            timeout=LOCK_WAIT_S,
            isolation_level=None,  # BEGIN is ours to say, see _begin
            check_same_thread=False,  # the pool gives a connection to one thread at a time
        )

    # The URL names no file, so SQLAlchemy would take it for one in memory, and its pool for that.
    engine = create_engine("sqlite://", creator=connect, poolclass=QueuePool, **common)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    for pragma in (
        "synchronous = FULL",  # a commit is on disk when it returns; NORMAL may lose the last ones in a power cut
        "foreign_keys = ON",
        "secure_delete = ON",  # erased user data (the pod VM's key) is overwritten, not left in free pages
        "recursive_triggers = ON",  # else INSERT OR REPLACE would delete an event past its trigger
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later fails at once, without waiting, when another wrote between.
    writes = connection.get_execution_options().get(WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _create_private(path: Path) -> None:
    """Make the file, 0600, and every missing directory above it, 0700. SQLite gives -wal and -shm the file's mode."""
    for parent in reversed(path.absolute().parents):
        if not parent.exists():
            parent.mkdir(mode=0o700, exist_ok=True)
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)  # or the file itself may be gone after a power cut
    finally:
        os.close(directory)


def _make_private(path: Path) -> None:
    """Take group's and others' rights from the database's files. Raises OSError where they belong to another user.

    By path, never by opening: closing any descriptor of the file would drop this process's SQLite locks.
    """
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        try:
            if name.stat().st_mode & 0o077:
                name.chmod(0o600)
        except FileNotFoundError:
            continue


def reach(engine: Engine, url: str) -> None:
    """Connect once. Raises LedgerError naming key and value when the database cannot be reached."""
    try:
        with engine.connect():
            pass
    except SQLAlchemyError as error:
        found = ledger_error(error, masked(url))
        raise LedgerError(f"{found}; is the database up and the URL right?", retryable=found.retryable) from None
    except (TypeError, ValueError, UnicodeError) as error:  # libpq's own parser, on a strange option
        raise LedgerError(f"{URL_KEY}: {masked(url)!r}: {first_line(error)}") from None
