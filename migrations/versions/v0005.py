"""What an audit compares: what the cloud said it made, and which node wrote an event."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("launched", sa.JSON(none_as_null=True)))
    for name in ("cluster", "node"):
        op.add_column("events", sa.Column(name, sa.Text))
