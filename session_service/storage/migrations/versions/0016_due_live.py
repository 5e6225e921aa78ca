"""The due sessions that have not ended, so that many ended ones do not hold their actions back.

Only adds: replicas of the version before run on beside it.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        # Waits for whoever has begun to write before; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        # argued: sessions_due_live: what an unfinished build has left serves nobody
        op.drop_index("sessions_due_live", "sessions", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "sessions_due_live",
            "sessions",
            ["due_at"],
            postgresql_concurrently=True,
            postgresql_where="due_at IS NOT NULL AND state <> 'ENDED'",
        )


def downgrade() -> None:
    op.drop_index("sessions_due_live", "sessions")
