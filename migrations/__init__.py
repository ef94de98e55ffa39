"""The ledger's schema, step by step (Alembic). `caa db upgrade` runs it; it needs no alembic.ini.

Revisions are numbers of four digits in one line, written by hand in migrations/versions/v<number>.py; the newest
must equal SCHEMA_REVISION in caa/ledger/tables.py, and the tables it makes must equal the ones there (a test
compares both, on SQLite and PostgreSQL). A released revision is never changed.
"""
