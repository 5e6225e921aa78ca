"""Volumes that restores made, and who mounts a volume.

Only adds: replicas of the version before run on beside it. What they make is in no row, and stays.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)
_MOUNTED = "(spec #>> '{mounts,0,volume_id}')"
_INDEXES = {
    "sessions": "spec ? 'mounts'",
    "checkpoints": "kind = 'VOLUME' AND state IN ('WRITING', 'READY')",
}


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Waits for whoever has begun to write before; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        for table, where in _INDEXES.items():
            # argued: sessions_mounted: what an unfinished build has left serves nobody
            # argued: checkpoints_mounted: the same
            op.drop_index(f"{table}_mounted", table, if_exists=True, postgresql_concurrently=True)
            op.create_index(
                f"{table}_mounted",
                table,
                [sa.text(_MOUNTED)],
                postgresql_concurrently=True,
                postgresql_where=sa.text(where),
            )
    # Last, with the number of the revision: what commits by itself before it can begin anew.
    op.create_table(
        "volumes",
        sa.Column("app", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("session_id", UUID(as_uuid=True), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("checkpoint_id", UUID(as_uuid=True), nullable=False),
        sa.Column("volume_id", sa.Text),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("failure_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.create_index("volumes_due", "volumes", ["due_at"])


def downgrade() -> None:
    for table in _INDEXES:
        op.drop_index(f"{table}_mounted", table)
    op.drop_table("volumes")
