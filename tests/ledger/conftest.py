"""Each test gets its own ledger, once on SQLite and once on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caa.ledger import Ledger, open_ledger, upgrade
from tests.ledger.postgresql import Server

BACKENDS = ["sqlite", "postgresql"]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server for the whole run."""
    server = Server()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """A PostgreSQL database with the schema in it, to copy."""
    name = server.new_database()
    upgrade(server.url(name))
    return name


@pytest.fixture(params=BACKENDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without schema (on SQLite: without file)."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/ledger.db"
    server: Server = request.getfixturevalue("server")
    return server.url(server.new_database())


@pytest.fixture(params=BACKENDS)
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Makes a database with the schema, as often as called, and gives its URL."""
    count = 0

    def make() -> str:
        nonlocal count
        count += 1
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path}/state{count}/ledger.db"
            upgrade(url)
            return url
        server: Server = request.getfixturevalue("server")
        return server.url(server.new_database(request.getfixturevalue("template")))

    return make


@pytest.fixture
def url(new_url: Callable[[], str]) -> str:
    """The URL of a database with the schema."""
    return new_url()


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """An open, empty ledger at `url`."""
    ledger = open_ledger(url)
    yield ledger
    ledger.close()
