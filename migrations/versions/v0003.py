"""A sandbox's network: what its pod's network is like, and the id of the tunnel that carries it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("pod_network", sa.JSON(none_as_null=True)))
    op.add_column("sandboxes", sa.Column("tunnel_id", sa.Integer))
    live = sa.text("state IN ('created', 'starting', 'running', 'stopping')")
    op.create_index(
        "uq_sandboxes_tunnel",
        "sandboxes",
        ["cluster", "node", "tunnel_id"],
        unique=True,
        sqlite_where=live,
        postgresql_where=live,
    )
