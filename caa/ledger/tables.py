"""The tables, as this code expects them. migrations/ makes them; a test holds the two together."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect

SCHEMA_REVISION = "0006"
"""The newest migration. Revisions are numbers of four digits, so that older and newer can be told apart
without loading Alembic (100 ms and 10 MB that `caa serve` need not pay)."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment. Stored as UTC (text on SQLite, timestamptz on PostgreSQL), read as timezone-aware UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a datetime for the ledger must be timezone-aware")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Sentence(TypeDecorator[str]):
    """Text for people, much of it a cloud's own words. What a database cannot hold (NUL, lone surrogates) is
    replaced: a strange error text must not keep the state next to it from being written."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


def _required(name: str, kind: Any, *args: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, *args, nullable=False, **options)


metadata = MetaData()

sandboxes = Table(
    "sandboxes",
    metadata,
    _required("id", Text, primary_key=True),
    _required("cluster", Text),
    _required("node", Text),
    _required("pod_namespace", Text),
    _required("pod_name", Text),
    _required("door", Text),
    _required("annotations", JSON),
    _required("netns_path", Text),
    _required("socket_path", Text),
    _required("state", Text),
    _required("created_at", UtcDateTime),
    _required("changed_at", UtcDateTime),
    _required("failure_reason", Text),
    _required("failure", Sentence),
    _required("agent_seen", Boolean),
    _required("version", Integer),
    Column("pod_network", JSON(none_as_null=True)),
    Column("tunnel_id", Integer),
    Index("ix_sandboxes_created_at_id", "created_at", "id"),  # the order of every list
    Index("ix_sandboxes_cluster_node_state", "cluster", "node", "state"),  # the planner's snapshot
    Index("ix_sandboxes_pod", "pod_namespace", "pod_name"),  # one VM per pod; `caa audit` by pod
)

attempts = Table(
    "attempts",
    metadata,
    _required("sandbox_id", Text, ForeignKey("sandboxes.id", ondelete="CASCADE"), primary_key=True),
    _required("number", Integer, primary_key=True, autoincrement=False),
    _required("name", Text),
    _required("token", Text),
    _required("offering", JSON),
    _required("image", Text),
    _required("user_data", LargeBinary),
    _required("state", Text),
    _required("created_at", UtcDateTime),
    _required("instance_id", Text),
    _required("addresses", JSON),
    _required("error_reason", Text),
    _required("error", Sentence),
    _required("version", Integer),
    Column("launched", JSON(none_as_null=True)),
    UniqueConstraint("token", name="uq_attempts_token"),
)

LIVE = text("state IN ('created', 'starting', 'running', 'stopping')")

# Of the sandboxes of a node that are not over, no two have one tunnel. NULLs are all different.
Index(
    "uq_sandboxes_tunnel",
    sandboxes.c.cluster,
    sandboxes.c.node,
    sandboxes.c.tunnel_id,
    unique=True,
    sqlite_where=LIVE,
    postgresql_where=LIVE,
)

UNSETTLED = text("state IN ('intended', 'accepted')")

# At most one attempt of a sandbox may exist in the cloud: the database itself says so.
Index(
    "uq_attempts_unsettled",
    attempts.c.sandbox_id,
    unique=True,
    sqlite_where=UNSETTLED,
    postgresql_where=UNSETTLED,
)

# No foreign key to sandboxes: the trail outlives the row it tells of.
events = Table(
    "events",
    metadata,
    _required("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _required("sandbox_id", Text),
    _required("at", UtcDateTime),
    _required("kind", Text),
    _required("message", Sentence),
    Column("attempt", Integer),
    _required("data", JSON),
    Column("cluster", Text),
    Column("node", Text),
    Index("ix_events_sandbox_id_id", "sandbox_id", "id"),
    sqlite_autoincrement=True,  # an id is never given twice
)

# Of calls to a cloud account. Moments are seconds since the epoch, for they are calculated with.
buckets = Table(
    "buckets",
    metadata,
    _required("name", Text, primary_key=True),
    _required("tokens", Double),
    _required("filled_at", Double),
    _required("paused_until", Double),
    _required("pause", Double),
    _required("refused_at", Double),
)

# A few rows, of the last minutes.
unavailable_offerings = Table(
    "unavailable_offerings",
    metadata,
    _required("account", Text, primary_key=True),
    _required("instance_type", Text, primary_key=True),
    _required("zone", Text, primary_key=True),
    _required("market", Text, primary_key=True),
    _required("since", UtcDateTime),
    _required("until", UtcDateTime),
    _required("quota", Boolean),
    _required("reason", Text),
    _required("message", Sentence),
)

# Pod VM images that are built here.
images = Table(
    "images",
    metadata,
    _required("id", Text, primary_key=True),
    _required("cluster", Text),
    _required("account", Text),
    _required("source", Text),
    _required("state", Text),
    _required("created_at", UtcDateTime),
    _required("changed_at", UtcDateTime),
    _required("digest", Text),
    _required("arch", Text),
    _required("image_id", Text),
    _required("phase", Text),
    Column("step", Text),
    _required("done", BigInteger),
    Column("total", BigInteger),
    _required("rate", Double),
    _required("resources", JSON),
    _required("measurements", JSON),
    _required("blocks", LargeBinary),
    _required("attempts", Integer),
    _required("failures", Integer),
    Column("retry_at", UtcDateTime),
    _required("reason", Text),
    _required("failure", Sentence),
    _required("cancelled", Boolean),
    _required("version", Integer),
)

# Of a cluster's images in an account at most one is being built, and at most one is what pod VMs boot.
for _name, _states in (("uq_images_open", "'building', 'failed'"), ("uq_images_ready", "'ready'")):
    _where = text(f"state IN ({_states})")
    Index(_name, images.c.cluster, images.c.account, unique=True, sqlite_where=_where, postgresql_where=_where)

# Who may do what only one may do at a time. `until` is seconds since the epoch, by the clock that all holders share.
leases = Table(
    "leases",
    metadata,
    _required("name", Text, primary_key=True),
    _required("holder", Text),
    _required("fence", BigInteger),
    _required("until", Double),
)
