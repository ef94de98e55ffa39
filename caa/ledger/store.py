"""Reading and writing the ledger.

Synchronous, for calls from a thread pool; safe from any number of threads and processes. Each method is one
transaction, committed to disk when it returns. Writes are versioned: of two writers with the same row in hand one
wins, and the other gets StaleWriteError and decides anew.

Every method raises LedgerError when the database cannot be used.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Connection, delete, exists, func, or_, select, tuple_, update

from caa.ledger.account import AccountStore
from caa.ledger.engine import LOCK_WAIT_S, WRITES, errors_of, make_engine, masked, reach
from caa.ledger.errors import (
    URL_KEY,
    AttemptExists,
    LedgerError,
    LimitReachedError,
    SandboxExists,
    TunnelTaken,
)
from caa.ledger.images import ImageStore
from caa.ledger.rows import (
    ATTEMPT_MUTABLE,
    attempt_values,
    sandbox_values,
    to_attempt,
    to_event,
    to_sandbox,
)
from caa.ledger.schema import check_revision
from caa.ledger.statements import (
    UNSETTLED,
    add_event,
    check_fixed,
    insert_new,
    occupying,
    oldest_first,
    read_attempt,
    read_sandbox,
    save,
    stale,
    with_instance,
)
from caa.ledger.tables import attempts, events, sandboxes
from caa.sandbox import (
    FINAL_STATES,
    LIVE_STATES,
    Attempt,
    Event,
    Sandbox,
    SandboxState,
    check_attempt_transition,
)

Cursor = tuple[datetime, str]
"""Where a page of sandboxes ended: `(created_at, id)` of its last one. Stays good when that one is pruned."""

# SQLite takes 999 parameters at least, whatever it was built with.
_IN_ONE_QUERY = 900


def open_ledger(url: str) -> Ledger:
    """Open a ledger that has this code's schema.

    `url` is `sqlite:///<path>` or `postgresql://…`, the value of CAA_LEDGER_URL. Raises LedgerError naming that
    key and the value (password masked) when the URL is malformed, the driver is missing, the database cannot be
    reached, or its schema is older or newer than this code.
    """
    ledger = Ledger(url)
    try:
        reach(ledger._engine, url)
        check_revision(ledger._engine, url)
    except LedgerError:
        ledger.close()
        raise
    return ledger


class Ledger:
    """The sandboxes of any number of clusters and nodes, their launch attempts, and the trail of events.

    Get one from `open_ledger`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine = make_engine(url)
        self._writer = self._engine.execution_options(**{WRITES: True})
        if self._engine.dialect.name == "postgresql":
            # Every read sees one moment, however many statements it takes; SQLite gives that anyway.
            self._reader = self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        else:
            self._reader = self._writer.execution_options(**{WRITES: False})
        # SQLite lets one writer in and the rest poll, up to 100 ms apart and in no order: with 16 threads writing,
        # the slowest of 1,500 writes took 2.1 s, and 0.2 s with a lock to queue at. Other processes still poll.
        self._turn = threading.Lock() if self._engine.dialect.name == "sqlite" else None
        self.account = AccountStore(self._read, self._write)
        self.images = ImageStore(self._read, self._write)

    def __repr__(self) -> str:
        return f"Ledger({masked(self._url)!r})"

    def close(self) -> None:
        """Give back the connections. No call may follow."""
        self._engine.dispose()

    # Sandboxes

    def add_sandbox(self, sandbox: Sandbox, *, event: Event | None = None) -> Sandbox:
        """Record a new sandbox, at version 1.

        Raises SandboxExists, with the row, when its id is taken, and TunnelTaken when its tunnel's is.
        """
        sandbox = replace(sandbox, version=1)
        with self._write() as connection:
            if not insert_new(connection, sandboxes, sandbox_values(sandbox)):
                row = connection.execute(select(sandboxes).where(sandboxes.c.id == sandbox.id)).one_or_none()
                if row is None and sandbox.tunnel_id is not None:
                    raise TunnelTaken(f"tunnel id {sandbox.tunnel_id} is another sandbox's of the node")
                if row is None:  # pruned between the two statements
                    raise LedgerError(f"sandbox {sandbox.id} was being removed", retryable=True)
                raise SandboxExists(to_sandbox(row))
            add_event(connection, event, sandbox.id)
            return read_sandbox(connection, sandbox.id)

    def sandbox(self, sandbox_id: str) -> Sandbox | None:
        """The sandbox, or None."""
        with self._read() as connection:
            row = connection.execute(select(sandboxes).where(sandboxes.c.id == sandbox_id)).one_or_none()
        return None if row is None else to_sandbox(row)

    def sandboxes(
        self,
        *,
        node: str | None = None,
        cluster: str | None = None,
        states: Collection[SandboxState] | None = None,
        namespace: str | None = None,
        pod: str | None = None,
        limit: int | None = None,
        after: Cursor | None = None,
    ) -> list[Sandbox]:
        """The sandboxes that match every filter given, oldest first (by created_at, then id).

        For pages give `limit`, and as `after` the `(created_at, id)` of the last sandbox seen.
        """
        query = oldest_first(select(sandboxes))
        columns = {"node": node, "cluster": cluster, "pod_namespace": namespace, "pod_name": pod}
        for column, wanted in columns.items():
            if wanted is not None:
                query = query.where(sandboxes.c[column] == wanted)
        if states is not None:
            query = query.where(sandboxes.c.state.in_([state.value for state in states]))
        if after is not None:
            query = query.where(tuple_(sandboxes.c.created_at, sandboxes.c.id) > after)
        if limit is not None:
            query = query.limit(limit)
        with self._read() as connection:
            return [to_sandbox(row) for row in connection.execute(query)]

    def recent_sandboxes(self, *, ended_after: datetime, limit: int) -> list[Sandbox]:
        """Those that are not over and those that ended after `ended_after`, the newest first, `limit` at most."""
        live = sandboxes.c.state.in_([state.value for state in sorted(LIVE_STATES)])
        query = select(sandboxes).where(live | (sandboxes.c.changed_at > ended_after))
        query = query.order_by(sandboxes.c.created_at.desc(), sandboxes.c.id.desc()).limit(limit)
        with self._read() as connection:
            return [to_sandbox(row) for row in connection.execute(query)]

    def count_by_state(self, cluster: str, node: str) -> dict[SandboxState, int]:
        """How many sandboxes of the node are in each state; all states are among the keys."""
        query = (
            select(sandboxes.c.state, func.count())
            .where(sandboxes.c.cluster == cluster, sandboxes.c.node == node)
            .group_by(sandboxes.c.state)
        )
        with self._read() as connection:
            found = {SandboxState(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in SandboxState}

    def tunnel_ids(self, cluster: str, node: str, since: datetime) -> set[int]:
        """The tunnel ids of the node's sandboxes that are not over, or ended after `since`."""
        ours = (sandboxes.c.cluster == cluster) & (sandboxes.c.node == node) & sandboxes.c.tunnel_id.is_not(None)
        held = sandboxes.c.state.in_([state.value for state in sorted(LIVE_STATES)]) | (sandboxes.c.changed_at > since)
        with self._read() as connection:
            return set(connection.execute(select(sandboxes.c.tunnel_id).where(ours, held)).scalars())

    def save_sandbox(self, sandbox: Sandbox, *, event: Event | None = None) -> Sandbox:
        """Write a sandbox read before, and `event` with it; returns it as stored, with its next version.

        Raises StaleWriteError when the stored version is another or the row is gone, IllegalTransitionError when
        the stored state may not be followed by the new one, ValueError when a field that tells who the sandbox is
        has changed. Nothing is written then.
        """
        with self._write() as connection:
            return save(connection, sandbox, event)

    def start_sandbox(self, sandbox: Sandbox, *, limit: int, event: Event | None = None) -> Sandbox:
        """Write a sandbox whose StartVM begins, unless its node has `limit` others with an instance (below 0: none).

        Counted are those that are starting or running, and those that are stopping with an attempt that is not
        settled; not what the same pod had before, which this start supersedes. Of starts at once, on whatever
        connections, each sees those before it. Raises LimitReachedError, and as `save_sandbox` does.
        """
        with self._write() as connection:
            if limit >= 0:
                count = with_instance(connection, sandbox)
                if count >= limit:
                    raise LimitReachedError(count)
            return save(connection, sandbox, event)

    def occupied(self, cluster: str, node: str) -> int:
        """How many sandboxes of the node have an instance, or may have one: what its limit counts."""
        with self._read() as connection:
            return connection.execute(occupying(cluster, node)).scalar_one()

    # Launch attempts

    def add_attempt(self, attempt: Attempt, *, sandbox_version: int, event: Event | None = None) -> Attempt:
        """Record an intention to launch, at version 1. On return it is on disk, and the cloud may be asked.

        Only while the sandbox is starting and still at `sandbox_version`; else StaleWriteError, so that a stop
        that came first wins. Raises AttemptExists, with the row, when the number or the token is taken or
        another attempt of the sandbox is not settled.
        """
        attempt = replace(attempt, version=1)
        with self._write() as connection:
            query = select(sandboxes.c.version, sandboxes.c.state).where(sandboxes.c.id == attempt.sandbox_id)
            row = connection.execute(query.with_for_update()).one_or_none()
            if row is None or row.version != sandbox_version or row.state != SandboxState.STARTING:
                raise stale(f"sandbox {attempt.sandbox_id}", sandbox_version, row)
            if not insert_new(connection, attempts, attempt_values(attempt)):
                same_number = (attempts.c.sandbox_id == attempt.sandbox_id) & (attempts.c.number == attempt.number)
                unsettled = (attempts.c.sandbox_id == attempt.sandbox_id) & attempts.c.state.in_(UNSETTLED)
                taken = or_(same_number, attempts.c.token == attempt.token, unsettled)
                found = connection.execute(select(attempts).where(taken).limit(1)).one_or_none()
                if found is None:  # another sandbox's attempt had the token and was pruned between the statements
                    raise LedgerError(f"an attempt of sandbox {attempt.sandbox_id} was refused", retryable=True)
                raise AttemptExists(to_attempt(found))
            add_event(connection, event, attempt.sandbox_id)
            return read_attempt(connection, attempt.sandbox_id, attempt.number)

    def attempts(self, sandbox_id: str) -> list[Attempt]:
        """Every attempt of a sandbox, by number."""
        query = select(attempts).where(attempts.c.sandbox_id == sandbox_id).order_by(attempts.c.number)
        with self._read() as connection:
            return [to_attempt(row) for row in connection.execute(query)]

    def save_attempt(self, attempt: Attempt, *, event: Event | None = None) -> Attempt:
        """Write an attempt read before, and `event` with it; returns it as stored, with its next version.

        In a final state its user data, which holds the pod VM's key, is erased: nothing will repeat it.
        Raises as `save_sandbox` does.
        """
        what = f"attempt {attempt.number} of sandbox {attempt.sandbox_id}"
        with self._write() as connection:
            this = (attempts.c.sandbox_id == attempt.sandbox_id) & (attempts.c.number == attempt.number)
            row = connection.execute(select(attempts).where(this).with_for_update()).one_or_none()
            if row is None or row.version != attempt.version:
                raise stale(what, attempt.version, row)
            stored = to_attempt(row)
            check_fixed(stored, attempt, ATTEMPT_MUTABLE)
            if attempt.state != stored.state:
                check_attempt_transition(stored.state, attempt.state)
            values = {k: v for k, v in attempt_values(attempt).items() if k in (*ATTEMPT_MUTABLE, "user_data")}
            written = connection.execute(
                update(attempts)
                .where(this, attempts.c.version == attempt.version)
                .values(**values, version=attempt.version + 1)
            )
            if written.rowcount != 1:
                raise stale(what, attempt.version, None)
            add_event(connection, event, attempt.sandbox_id)
            return read_attempt(connection, attempt.sandbox_id, attempt.number)

    def attempts_of(self, sandbox_ids: Collection[str]) -> dict[str, list[Attempt]]:
        """The attempts of many sandboxes by sandbox, each by number; one without any is not among the keys."""
        found: dict[str, list[Attempt]] = {}
        wanted = list(sandbox_ids)
        with self._read() as connection:
            for start in range(0, len(wanted), _IN_ONE_QUERY):
                part = wanted[start : start + _IN_ONE_QUERY]
                query = select(attempts).where(attempts.c.sandbox_id.in_(part))
                for row in connection.execute(query.order_by(attempts.c.sandbox_id, attempts.c.number)):
                    found.setdefault(row.sandbox_id, []).append(to_attempt(row))
        return found

    def snapshot(self, cluster: str, node: str) -> tuple[list[Sandbox], list[Attempt]]:
        """The node's live sandboxes (oldest first) and all their attempts, as of one moment."""
        live = (
            (sandboxes.c.cluster == cluster)
            & (sandboxes.c.node == node)
            & sandboxes.c.state.in_([state.value for state in sorted(LIVE_STATES)])
        )
        theirs = (
            select(attempts)
            .join(sandboxes, sandboxes.c.id == attempts.c.sandbox_id)
            .where(live)
            .order_by(attempts.c.sandbox_id, attempts.c.number)
        )
        with self._read() as connection:
            rows = connection.execute(oldest_first(select(sandboxes).where(live))).all()
            attempt_rows = connection.execute(theirs).all()
        return [to_sandbox(row) for row in rows], [to_attempt(row) for row in attempt_rows]

    # Events

    def add_event(self, event: Event) -> Event:
        """Append to the trail; returns the event with its id. The sandbox need not be recorded (any more)."""
        with self._write() as connection:
            return replace(event, id=add_event(connection, event, event.sandbox_id))

    def events(self, sandbox_id: str, after_id: int = 0, limit: int | None = None) -> list[Event]:
        """The trail of a sandbox in order, from after `after_id`. Nothing turns up later behind an id seen."""
        query = (
            select(events)
            .where(events.c.sandbox_id == sandbox_id, events.c.id > after_id)
            .order_by(events.c.id)
            .limit(limit)
        )
        with self._read() as connection:
            return [to_event(row) for row in connection.execute(query)]

    def trail(
        self,
        *,
        after_id: int = 0,
        limit: int,
        sandbox_id: str | None = None,
        node: str | None = None,
        kinds: Collection[str] = (),
        since: datetime | None = None,
        until: datetime | None = None,
    ) -> list[Event]:
        """Events of all sandboxes and nodes that match every filter given, in order, from after `after_id`.

        `since` and `until` are of when it happened, the latter not included. On PostgreSQL an event of another sandbox
        may turn up behind an id seen for as long as its transaction takes: only those of one sandbox wait for each
        other, for else one node that hangs would stop all others.
        """
        query = select(events).where(events.c.id > after_id).order_by(events.c.id).limit(limit)
        for column, wanted in (("sandbox_id", sandbox_id), ("node", node)):
            if wanted is not None:
                query = query.where(events.c[column] == wanted)
        if kinds:
            query = query.where(events.c.kind.in_(kinds))
        if since is not None:
            query = query.where(events.c.at >= since)
        if until is not None:
            query = query.where(events.c.at < until)
        with self._read() as connection:
            return [to_event(row) for row in connection.execute(query)]

    def last_event_id(self) -> int:
        """The id of the newest event of all; 0 without any."""
        with self._read() as connection:
            return int(connection.execute(select(func.coalesce(func.max(events.c.id), 0))).scalar_one())

    def prune(self, older_than: datetime) -> int:
        """Remove sandboxes that ended before `older_than`, and their attempts; returns how many sandboxes.

        Events stay for good: the database refuses to delete them, as a trail that its writer can shorten
        proves nothing. They carry the sandbox's id without a foreign key, and are small (no user data).
        A final sandbox with an unsettled attempt (a defect) stays too, for the attempt is all that tells of a VM.
        """
        unsettled = exists().where(attempts.c.sandbox_id == sandboxes.c.id, attempts.c.state.in_(UNSETTLED))
        with self._write() as connection:
            done = connection.execute(
                delete(sandboxes).where(
                    sandboxes.c.state.in_([state.value for state in sorted(FINAL_STATES)]),
                    sandboxes.c.changed_at < older_than,
                    ~unsettled,
                )
            )
            return done.rowcount

    # Transactions

    def _read(self) -> AbstractContextManager[Connection]:
        return self._transaction(writes=False)

    def _write(self) -> AbstractContextManager[Connection]:
        return self._transaction(writes=True)

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[Connection]:
        engine = self._writer if writes else self._reader
        with self._in_turn(writes), errors_of(self._url), engine.begin() as connection:
            yield connection

    @contextmanager
    def _in_turn(self, writes: bool) -> Iterator[None]:
        if self._turn is None or not writes:
            yield
            return
        if not self._turn.acquire(timeout=LOCK_WAIT_S):
            raise LedgerError(f"{URL_KEY}: {masked(self._url)} is busy with other writes", retryable=True)
        try:
            yield
        finally:
            self._turn.release()
