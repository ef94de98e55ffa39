"""Opening, upgrading, and what is said when that cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

import migrations
from caa.ledger import Ledger, LedgerError, open_ledger, revision, upgrade
from caa.ledger.engine import WRITES, make_engine, masked
from caa.ledger.tables import SCHEMA_REVISION, metadata
from tests.ledger.postgresql import Server
from tests.ledger.samples import attempt, sandbox, starting


def execute(url: str, statement: str) -> None:
    """Run one statement past the ledger."""
    engine = make_engine(url)
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_an_upgrade_makes_the_schema_and_the_next_one_changes_nothing(empty_url: str) -> None:
    assert upgrade(empty_url) == SCHEMA_REVISION
    ledger = open_ledger(empty_url)
    row = ledger.add_sandbox(sandbox())
    assert upgrade(empty_url) == SCHEMA_REVISION
    assert revision(empty_url) == SCHEMA_REVISION
    assert ledger.sandbox("sb-1") == row
    ledger.close()


def test_the_migrations_make_exactly_the_tables_the_code_expects(url: str) -> None:
    engine = make_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_code_expects_the_newest_migration_and_revisions_are_numbers_in_a_line() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_current_head() == SCHEMA_REVISION
    line = [script.revision for script in reversed(list(scripts.walk_revisions()))]
    assert line == [f"{number:04}" for number in range(1, len(line) + 1)]


def test_a_failed_upgrade_leaves_nothing_behind(empty_url: str) -> None:
    engine = make_engine(empty_url, create=True)
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        connection.execute(text("CREATE TABLE events (in_the_way INTEGER)"))
    with pytest.raises(LedgerError, match="already exists"):
        upgrade(empty_url)
    with engine.begin() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() is None
        assert not engine.dialect.has_table(connection, "sandboxes")
    engine.dispose()


def test_a_database_without_schema_is_refused_with_the_command_to_run(empty_url: str) -> None:
    make_engine(empty_url, create=True).dispose()
    assert revision(empty_url) is None
    with pytest.raises(LedgerError, match=r"CAA_LEDGER_URL.* has no schema yet.*run `caa db upgrade`"):
        open_ledger(empty_url)


def test_an_older_schema_is_refused_with_the_command_to_run(url: str) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(LedgerError, match=r"is at schema 0000, this release needs .*run `caa db upgrade`"):
        open_ledger(url)


def test_a_newer_schema_is_refused_and_left_alone(url: str) -> None:
    execute(url, "UPDATE alembic_version SET version_num = '9999'")
    for use in (open_ledger, upgrade):
        with pytest.raises(LedgerError, match=r"schema 9999, newer than this release.*`caa db upgrade`"):
            use(url)
    assert revision(url) == "9999"


def test_a_missing_file_is_refused_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none" / "ledger.db"
    for use in (open_ledger, revision):
        with pytest.raises(LedgerError, match=r"CAA_LEDGER_URL.*no such file; run `caa db upgrade`"):
            use(f"sqlite:///{path}")
    assert not path.parent.exists()


def test_a_ledger_that_vanished_is_not_silently_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    upgrade(f"sqlite:///{path}")
    ledger = Ledger(f"sqlite:///{path}")
    path.unlink()
    with pytest.raises(LedgerError, match="unable to open"):
        ledger.sandboxes()
    assert not path.exists()
    ledger.close()


def test_the_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "100% ?odd#.db"
    before = os.umask(0)
    try:
        with pytest.raises(LedgerError, match="names no file"):
            upgrade(f"sqlite:///{path}")  # a ? in a URL begins its options
        path = path.with_name("100% odd#.db")
        upgrade(f"sqlite:///{path}")
        ledger = open_ledger(f"sqlite:///{path}")
        ledger.add_attempt(attempt(), sandbox_version=starting(ledger).version)
    finally:
        os.umask(before)
    files = {file.name: mode(file) for file in path.parent.iterdir()}
    assert files == {path.name: 0o600, f"{path.name}-wal": 0o600, f"{path.name}-shm": 0o600}
    assert mode(tmp_path / "a") == mode(tmp_path / "a" / "b") == 0o700
    ledger.close()


def test_a_file_others_could_read_is_made_private(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    upgrade(f"sqlite:///{path}")
    path.chmod(0o644)
    open_ledger(f"sqlite:///{path}").close()
    assert mode(path) == 0o600


def test_sqlite_commits_are_on_disk_and_locks_are_waited_for(tmp_path: Path) -> None:
    upgrade(f"sqlite:///{tmp_path}/ledger.db")
    engine = make_engine(f"sqlite:///{tmp_path}/ledger.db")
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys", "secure_delete")
        }
    engine.dispose()
    full = 2
    assert pragmas == {
        "journal_mode": "wal",
        "synchronous": full,
        "busy_timeout": 5000,
        "foreign_keys": 1,
        "secure_delete": 1,
    }


def test_postgresql_commits_are_on_disk_even_when_the_database_says_otherwise(server: Server) -> None:
    name = server.new_database()
    url = server.url(name)
    execute(url, f"ALTER DATABASE {name} SET synchronous_commit = off")
    engine = make_engine(url)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "'' is not a database URL: must be sqlite:///"),
        ("/var/lib/ledger.db", "'/var/lib/ledger.db' is not a database URL"),
        ("mysql://root@db/ledger", "'mysql://root@db/ledger' is not supported: must be sqlite"),
        ("postgresql+asyncpg://db/ledger", "is not supported"),
        ("nonsense://x/y", "is not supported"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://var/lib/ledger.db", "names no file: must be sqlite:///<path> (four slashes"),
        ("sqlite:///x.db?mode=ro", "names no file"),
        ("postgresql://db", "names no database"),
        ("postgresql://db:port/ledger", "is not a database URL"),
        ("postgresql:///ledger?host=/nonexistent&sslmode=perhaps", "sslmode"),
        ("postgresql:///ledger?host=/nonexistent", "/nonexistent"),
        ("postgresql:///ledger?no_such_option=1", "no_such_option"),
    ],
)
def test_a_url_that_cannot_work_is_named_with_what_is_allowed(url: str, says: str) -> None:
    for use in (open_ledger, upgrade, revision):
        with pytest.raises(LedgerError) as refusal:
            use(url)
        assert "CAA_LEDGER_URL" in str(refusal.value)
        assert says in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://caa:{}@127.0.0.1:1/ledger",
        "postgresql://caa:{}@127.0.0.1:x/ledger",
        "postgresql://caa:{}@",
        "postgresql://caa:{}",
        "postgresql:/caa:{}@db/ledger",
        "postgresql:caa:{}@db/ledger",
        "postgresql://caa:a@{}@127.0.0.1:1/ledger",
        "postgresql://caa:{}@x@127.0.0.1:1/ledger",
        "postgresql://caa:{}/x@127.0.0.1:1/ledger",
        "postgresql://127.0.0.1:1/ledger?password={}",
        "postgresql://127.0.0.1:1/ledger?user=u&sslpassword={}&password={}",
        "mysql://caa:{}@db/ledger",
        "sqlite://caa:{}@/ledger",
        "sqlite:///x.db?key={}",
    ],
)
def test_a_password_is_never_shown(url: str) -> None:
    url = url.format("hunter2", "hunter2")
    assert "hunter2" not in masked(url)
    with pytest.raises(LedgerError) as refusal:
        open_ledger(url)
    error: BaseException | None = refusal.value
    while error is not None:  # nor in what a traceback would print
        assert "hunter2" not in str(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def test_a_wrong_password_is_told_without_showing_it(server: Server) -> None:
    with pytest.raises(LedgerError, match="password authentication failed") as refusal:
        open_ledger(server.url("postgres", password="hunter2"))
    assert "hunter2" not in str(refusal.value)
    assert "caa:***@" in str(refusal.value)


def test_a_ledger_does_not_print_its_password(server: Server) -> None:
    ledger = Ledger(server.url("postgres", password="hunter2"))
    assert "hunter2" not in repr(ledger)
    ledger.close()


def test_a_missing_driver_is_named_with_the_extra_to_install() -> None:
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from caa.ledger import LedgerError, open_ledger\n"
        "try: open_ledger('postgresql://u:hunter2@db/ledger')\n"
        "except LedgerError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "CAA_LEDGER_URL" in said
    assert "extra [postgresql]" in said
    assert "hunter2" not in said


def test_opening_loads_no_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    upgrade(url)
    program = f"import sys, caa.ledger; caa.ledger.open_ledger({url!r}); print('alembic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


def test_upgrading_works_from_any_directory_without_an_ini_file(tmp_path: Path) -> None:
    program = f"import caa.ledger; print(caa.ledger.upgrade('sqlite:///{tmp_path}/x.db'))"
    environment = {"PYTHONPATH": str(Path(migrations.__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{SCHEMA_REVISION}\n"
    assert done.stderr == ""
