"""Which schema a database has, and bringing it to this code's. Alembic is loaded only to upgrade."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import DBAPIError

from caa.ledger.engine import WRITES, errors_of, make_engine, masked, reach
from caa.ledger.errors import URL_KEY, LedgerError
from caa.ledger.tables import SCHEMA_REVISION

UPGRADE_WAIT_S = 60
"""How long an upgrade waits for another one. Steps on these small tables take well under a second."""

# Advisory locks are one namespace per PostgreSQL database: "caa" in ASCII and a number of our own.
_UPGRADE_LOCK = 0x636161_01


def upgrade(url: str) -> str:
    """Bring the database to this code's schema, making a missing SQLite file, and return the revision.

    Safe to run twice at once and again: the second waits (up to 60 s), then finds nothing to do. All steps
    commit together or not at all. Raises LedgerError, also when the schema is newer than this code.
    """
    engine = make_engine(url, create=True)
    try:
        reach(engine, url)
        with errors_of(url):
            if engine.dialect.name == "sqlite":
                _enter_wal(engine, url)
            with engine.execution_options(**{WRITES: True}).connect() as connection:
                _wait_longer(connection)
                with connection.begin():
                    _upgrade(connection, url)
    finally:
        engine.dispose()
    return SCHEMA_REVISION


def revision(url: str) -> str | None:
    """The revision of the database's schema, or None when it has none yet. Raises LedgerError."""
    engine = make_engine(url)
    try:
        reach(engine, url)
        with errors_of(url), engine.connect() as connection:
            return read_revision(connection)
    finally:
        engine.dispose()


def check_revision(engine: Engine, url: str) -> None:
    """Raise LedgerError unless the database has exactly this code's schema."""
    with errors_of(url), engine.connect() as connection:
        found = read_revision(connection)
    if found == SCHEMA_REVISION:
        return
    if found is not None and found > SCHEMA_REVISION:
        raise _too_new(url, found)
    has = f"is at schema {found}" if found else "has no schema yet"
    raise LedgerError(f"{URL_KEY}: {masked(url)!r} {has}, this release needs {SCHEMA_REVISION}: run `caa db upgrade`")


def read_revision(connection: Connection) -> str | None:
    """The revision of the schema, or None."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if found is None else str(found)


def _too_new(url: str, found: str) -> LedgerError:
    return LedgerError(
        f"{URL_KEY}: {masked(url)!r} is at schema {found}, newer than this release ({SCHEMA_REVISION}):"
        " install the newer release (and run its `caa db upgrade`)"
    )


def _upgrade(connection: Connection, url: str) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
    found = read_revision(connection)
    if found == SCHEMA_REVISION:
        return
    if found is not None and found > SCHEMA_REVISION:
        raise _too_new(url, found)

    from alembic import command
    from alembic.config import Config

    import migrations

    config = Config()
    # From the package, so that an installed wheel finds it; configparser takes a % for its own.
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, SCHEMA_REVISION)


def _wait_longer(connection: Connection) -> None:
    """For this one connection (the engine is thrown away after): wait for another upgrade, and take one's time."""
    if connection.dialect.name == "sqlite":
        raw = connection.connection.driver_connection
        assert isinstance(raw, sqlite3.Connection)
        raw.execute(f"PRAGMA busy_timeout = {UPGRADE_WAIT_S * 1000}")
        return
    connection.execute(text("SET lock_timeout = 60000"))
    connection.execute(text("SET statement_timeout = 0"))
    connection.commit()


def _enter_wal(engine: Engine, url: str) -> None:
    """Turn on the write-ahead log, which stays on. SQLite does not wait for others here, so we do."""
    deadline = time.monotonic() + UPGRADE_WAIT_S
    while True:
        try:
            raw = engine.raw_connection()
            try:
                found = raw.cursor().execute("PRAGMA journal_mode = WAL").fetchone()[0]
            finally:
                raw.close()
        except (sqlite3.OperationalError, DBAPIError):
            if time.monotonic() > deadline:
                raise
        else:
            if found == "wal":
                return
            raise LedgerError(f"{URL_KEY}: {masked(url)!r}: this file system cannot hold a write-ahead log")
        time.sleep(0.01)
