"""A real PostgreSQL server of our own: Debian's binaries, a new data directory, a unix socket, no TCP."""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

PASSWORD = "pw-%-of/the:tests"  # has what a URL must encode
_SYSTEM_USER = "postgres"  # the server refuses to run as root


class Server:
    """A running server. `url(name)` is the URL of one of its databases."""

    def __init__(self) -> None:
        binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))
        if not binaries:
            pytest.fail("no PostgreSQL server under /usr/lib/postgresql: install the Debian package postgresql-15")
        self._bin = Path(binaries[-1]).parent
        # Not pytest's tmp_path: that is root's alone, and longer than a socket path may be.
        self._home = Path(tempfile.mkdtemp(prefix="caa-pg-", dir="/tmp"))
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            user = pwd.getpwnam(_SYSTEM_USER)
            os.chown(self._home, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
            self._as_user = ["setpriv", *ids]
        self._made = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._initialise()
        self.start()

    def _initialise(self) -> None:
        password = self._home / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        command = [f"{self._bin}/initdb", "-D", f"{self._home}/data", "-U", "caa", "--auth=scram-sha-256"]
        command += [f"--pwfile={password}", "--no-sync", "-E", "UTF8", "--locale=C"]
        subprocess.run([*self._as_user, *command], check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        settings = ["listen_addresses=", f"unix_socket_directories={self._home}", "max_connections=60"]
        command = [*self._as_user, f"{self._bin}/postgres", "-D", f"{self._home}/data"]
        command += [part for setting in settings for part in ("-c", setting)]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + 30
        while True:
            try:
                self._admin("SELECT 1")
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail("PostgreSQL does not start:\n" + (self._home / "log").read_text())
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Stop at once, cutting every connection (SIGQUIT: no shutdown checkpoint, as after a crash)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        """Stop, and delete the data."""
        self.stop()
        shutil.rmtree(self._home)

    def url(self, database: str, password: str = PASSWORD) -> str:
        """The URL of a database, with or without the right password."""
        return f"postgresql://caa:{quote(password, safe='')}@/{database}?host={self._home}"

    def new_database(self, template: str = "template0") -> str:
        """Make an empty database, or a copy of one, and return its name."""
        self._made += 1
        name = f"ledger{self._made}"
        self._admin(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
        return name

    def _admin(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement.encode())
