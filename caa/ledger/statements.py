"""What the store does inside a transaction: each takes its connection."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, Table, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from caa.ledger.errors import StaleWriteError
from caa.ledger.rows import SANDBOX_MUTABLE, changed, event_values, sandbox_values, to_attempt, to_sandbox
from caa.ledger.tables import attempts, events, sandboxes
from caa.sandbox import Attempt, AttemptState, Event, Sandbox, SandboxState, check_transition

_UP = sandboxes.c.state.in_([SandboxState.STARTING.value, SandboxState.RUNNING.value])
UNSETTLED = (AttemptState.INTENDED.value, AttemptState.ACCEPTED.value)

# PostgreSQL's advisory locks for "a sandbox of this node is being started": "cas".
_START_LOCK = 0x636173
# PostgreSQL's advisory locks for "an event of this sandbox is being added": "cae", apart from the upgrade's.
_EVENT_LOCK = 0x636165


def save(connection: Connection, sandbox: Sandbox, event: Event | None) -> Sandbox:
    """Write a sandbox of the version it was read at, and `event` with it; as `Ledger.save_sandbox` describes it."""
    query = select(sandboxes).where(sandboxes.c.id == sandbox.id).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or row.version != sandbox.version:
        raise stale(f"sandbox {sandbox.id}", sandbox.version, row)
    stored = to_sandbox(row)
    check_fixed(stored, sandbox, SANDBOX_MUTABLE)
    if sandbox.state != stored.state:
        check_transition(stored.state, sandbox.state)
    values = {k: v for k, v in sandbox_values(sandbox).items() if k in SANDBOX_MUTABLE}
    written = connection.execute(
        update(sandboxes)
        .where(sandboxes.c.id == sandbox.id, sandboxes.c.version == sandbox.version)
        .values(**values, version=sandbox.version + 1)
    )
    if written.rowcount != 1:
        raise stale(f"sandbox {sandbox.id}", sandbox.version, None)
    add_event(connection, event, sandbox.id)
    return read_sandbox(connection, sandbox.id)


def with_instance(connection: Connection, sandbox: Sandbox) -> int:
    """How many other sandboxes of the node have an instance, or may have one. Holds up other starts until the end."""
    if connection.dialect.name == "postgresql":
        # Two transactions that count at once would not see each other's writes. SQLite has one writer at a time.
        node = f"{sandbox.cluster}/{sandbox.node}"
        connection.execute(select(func.pg_advisory_xact_lock(_START_LOCK, func.hashtext(node))))
    same_pod = (
        (sandboxes.c.pod_namespace == sandbox.pod_namespace)
        & (sandboxes.c.pod_name == sandbox.pod_name)
        & (sandboxes.c.created_at < sandbox.created_at)
    )
    others = occupying(sandbox.cluster, sandbox.node).where(sandboxes.c.id != sandbox.id, ~(_UP & same_pod))
    return connection.execute(others).scalar_one()


def occupying(cluster: str, node: str) -> Select[int]:
    """Counts the node's sandboxes that have an instance, or may have one."""
    unsettled = exists().where(attempts.c.sandbox_id == sandboxes.c.id, attempts.c.state.in_(UNSETTLED))
    going = (sandboxes.c.state == SandboxState.STOPPING.value) & unsettled
    return select(func.count()).where(sandboxes.c.cluster == cluster, sandboxes.c.node == node, or_(_UP, going))


def oldest_first(query: Select[Any]) -> Select[Any]:
    """In the order that pages and callers see sandboxes in."""
    return query.order_by(sandboxes.c.created_at, sandboxes.c.id)


def read_sandbox(connection: Connection, sandbox_id: str) -> Sandbox:
    """One that is there."""
    return to_sandbox(connection.execute(select(sandboxes).where(sandboxes.c.id == sandbox_id)).one())


def read_attempt(connection: Connection, sandbox_id: str, number: int) -> Attempt:
    """One that is there."""
    query = select(attempts).where(attempts.c.sandbox_id == sandbox_id, attempts.c.number == number)
    return to_attempt(connection.execute(query).one())


def insert_new(connection: Connection, table: Table, values: dict[str, Any]) -> bool:
    """Insert, or tell that a unique key is taken."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(values).on_conflict_do_nothing().returning(table.c.version)
    return connection.execute(statement).one_or_none() is not None


def add_event(connection: Connection, event: Event | None, sandbox_id: str) -> int | None:
    """Append an event, if there is one, to the trail of the sandbox that is written; returns its id."""
    if event is None:
        return None
    if event.sandbox_id != sandbox_id:
        raise ValueError(f"an event of sandbox {event.sandbox_id} cannot go with a write to sandbox {sandbox_id}")
    if connection.dialect.name == "postgresql":
        # Ids are drawn before the commit. Without this a reader could see id 8, go on from there, and never
        # see 7, committed later. SQLite has one writer at a time.
        connection.execute(select(func.pg_advisory_xact_lock(_EVENT_LOCK, func.hashtext(sandbox_id))))
    return int(connection.execute(insert(events).values(event_values(event)).returning(events.c.id)).scalar_one())


def check_fixed(stored: Sandbox | Attempt, given: Sandbox | Attempt, mutable: tuple[str, ...]) -> None:
    """Raise ValueError when a field that is not among `mutable` differs."""
    wrong = changed(stored, given, mutable)
    if wrong:
        raise ValueError(f"these fields of a recorded {type(stored).__name__} cannot change: {', '.join(wrong)}")


def stale(what: str, version: int, row: Any) -> StaleWriteError:
    """The error of a write whose row, which may be None, is not what it was read as."""
    now = f"is at version {row.version} in state {row.state}" if row is not None else "is gone or changed"
    return StaleWriteError(f"{what} was to be written as of version {version}, but it {now}")
