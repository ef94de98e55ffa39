"""What all nodes know together of a cloud account: its call buckets and what it refused a moment ago."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, delete, extract, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from caa.ledger.tables import buckets, unavailable_offerings
from caa.limits import Bucket, full, refused, take
from caa.unavailable import Unavailable
from providers.base import Rate

Transaction = Callable[[], AbstractContextManager[Connection]]


class AccountStore:
    """Part of the ledger; get it as `Ledger.account`. Each method is one transaction."""

    def __init__(self, read: Transaction, write: Transaction) -> None:
        self._read = read
        self._write = write

    def take_token(self, name: str, rate: Rate, now: datetime) -> float:
        """Take a token from the bucket of that name; 0, or the seconds after which to try again.

        On PostgreSQL the database's clock counts instead of `now`, for nodes that share a bucket need one clock.
        """
        with self._write() as connection:
            bucket, moment = _bucket(connection, name, rate, now)
            after, wait = take(bucket, rate, moment)
            _save(connection, name, after)
        return wait

    def paused_until(self, names: Collection[str]) -> dict[str, datetime]:
        """Until when each of these buckets rests after a "too many"; one that nobody used is not among the keys."""
        query = select(buckets.c.name, buckets.c.paused_until).where(buckets.c.name.in_(names))
        with self._read() as connection:
            return {name: datetime.fromtimestamp(moment, UTC) for name, moment in connection.execute(query)}

    def call_refused(self, name: str, rate: Rate, now: datetime, retry_after: float | None) -> None:
        """The cloud said "too many": everybody pauses."""
        with self._write() as connection:
            bucket, moment = _bucket(connection, name, rate, now)
            _save(connection, name, refused(bucket, rate, moment, retry_after))

    def unavailable(self, account: str, now: datetime) -> list[Unavailable]:
        """What the account need not be asked for at `now`, the longest lasting first."""
        table = unavailable_offerings
        query = (
            select(table)
            .where(table.c.account == account, table.c.until > now)
            .order_by(table.c.until.desc(), table.c.instance_type, table.c.zone, table.c.market)
        )
        with self._read() as connection:
            return [Unavailable(**row._mapping) for row in connection.execute(query)]

    def mark_unavailable(self, refusal: Unavailable) -> None:
        """Remember a refusal, in place of an earlier one of the same; forget what has expired."""
        table = unavailable_offerings
        values = asdict(refusal)
        keys = [column.name for column in table.primary_key]
        with self._write() as connection:
            connection.execute(delete(table).where(table.c.until <= refusal.since))
            changes = {name: value for name, value in values.items() if name not in keys}
            connection.execute(
                _insert(connection, table).values(values).on_conflict_do_update(index_elements=keys, set_=changes)
            )

    def forget_quota(self, account: str) -> bool:
        """An instance of the account ended, so there is room in its quotas again. Whether any had been used up."""
        table = unavailable_offerings
        full_quotas = (table.c.account == account) & table.c.quota
        with self._read() as connection:
            if connection.execute(select(func.count()).select_from(table).where(full_quotas)).scalar_one() == 0:
                return False
        with self._write() as connection:
            return connection.execute(delete(table).where(full_quotas)).rowcount > 0


def _bucket(connection: Connection, name: str, rate: Rate, now: datetime) -> tuple[Bucket, float]:
    """The bucket, locked until the transaction ends, and what time it is."""
    query = select(buckets).where(buckets.c.name == name).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None:
        first = asdict(full(rate, _moment(connection, now)))
        connection.execute(_insert(connection, buckets).values(name=name, **first).on_conflict_do_nothing())
        row = connection.execute(query).one()
    values = dict(row._mapping)
    del values["name"]
    return Bucket(**values), _moment(connection, now)


def _moment(connection: Connection, now: datetime) -> float:
    if connection.dialect.name == "postgresql":
        return float(connection.execute(select(extract("epoch", func.clock_timestamp()))).scalar_one())
    return now.timestamp()


def _save(connection: Connection, name: str, bucket: Bucket) -> None:
    connection.execute(update(buckets).where(buckets.c.name == name).values(**asdict(bucket)))


def _insert(connection: Connection, table: Table) -> Any:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    return dialect.insert(table)
