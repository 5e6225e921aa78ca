"""What figures are counted from: whose project a decision is about, replays, ends of sessions.

Only adds, with defaults: replicas of the version before run on beside it. What they write meanwhile
has no project, and is counted among all projects only.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import UUID

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_ENDS = """
    INSERT INTO session_ends (session_id, tenant, project_id, end_time, lifetime, reason)
    SELECT session_id, tenant, project_id, end_time,
        CASE WHEN start_time IS NOT NULL THEN end_time - create_time END,
        coalesce(end_reason, 'REQUESTED')
    FROM sessions WHERE state IN ('ENDING', 'ENDED') AND end_time IS NOT NULL
"""


def upgrade() -> None:
    op.add_column("decisions", sa.Column("project_id", sa.Text))
    op.add_column(
        "decisions",
        sa.Column("replay_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    )
    op.create_table(
        "session_ends",
        sa.Column("session_id", UUID(as_uuid=True), nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("project_id", sa.Text, nullable=False),
        sa.Column("end_time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lifetime", sa.Interval),
        sa.Column("reason", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("session_id", name="session_ends_pkey"),
    )
    op.create_index("session_ends_project", "session_ends", ["tenant", "project_id", "end_time"])
    op.create_index("session_ends_time", "session_ends", ["end_time"], postgresql_using="brin")
    op.execute(_ENDS)
    # What is counted from an index alone must be on pages that were vacuumed since.
    # argued: autovacuum_vacuum_insert_threshold: says when to vacuum, and locks nobody out
    op.execute(
        "ALTER TABLE decisions SET (autovacuum_vacuum_insert_scale_factor = 0.01,"
        " autovacuum_vacuum_insert_threshold = 10000)"
    )


def downgrade() -> None:
    op.drop_table("session_ends")
    for column in ("project_id", "replay_count"):
        op.drop_column("decisions", column)
    op.execute(
        "ALTER TABLE decisions RESET (autovacuum_vacuum_insert_scale_factor,"
        " autovacuum_vacuum_insert_threshold)"
    )
