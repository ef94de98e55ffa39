"""Alembic's entry: run the steps on the connection, and inside the transaction, that the ledger gives."""

from __future__ import annotations

from alembic import context


def run() -> None:
    """Migrate. The transaction is the caller's, so that schema and version change together or not at all."""
    context.configure(
        connection=context.config.attributes["connection"],
        transactional_ddl=True,  # true of SQLite as well, when BEGIN is said explicitly
    )
    with context.begin_transaction():
        context.run_migrations()


run()
