"""What the background work needs: events, holds, why a transition began, orphans seen.

Only adds, with defaults: replicas of the version before run on beside it.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)
_SESSION_COLUMNS = (
    "cause",
    "failure_count",
    "change_time",
    "hold_until",
    "holds",
    "warn_time",
    "activity",
    "event_sequence",
)


def _sessions() -> None:
    zero = sa.text("0")
    op.add_column("sessions", sa.Column("cause", sa.Text))
    op.add_column(
        "sessions", sa.Column("failure_count", sa.BigInteger, nullable=False, server_default=zero)
    )
    op.add_column(
        "sessions",
        sa.Column("change_time", _TIME, nullable=False, server_default=sa.func.now()),
    )
    op.add_column("sessions", sa.Column("hold_until", _TIME))
    op.add_column(
        "sessions", sa.Column("holds", JSONB, nullable=False, server_default=sa.text("'{}'"))
    )
    op.add_column("sessions", sa.Column("warn_time", _TIME))
    op.add_column("sessions", sa.Column("activity", sa.Text, nullable=False, server_default=""))
    op.add_column(
        "sessions", sa.Column("event_sequence", sa.BigInteger, nullable=False, server_default=zero)
    )


def _events() -> None:
    op.create_table(
        "session_events",
        sa.Column("session_id", _UUID, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("session_id", "sequence", name="session_events_pkey"),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name="session_events_session_id_fkey",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "session_events_time", "session_events", ["create_time"], postgresql_using="brin"
    )


def _sweeps() -> None:
    op.create_table(
        "sweeps",
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("due_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("pass_number", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.PrimaryKeyConstraint("app", name="sweeps_pkey"),
    )
    op.create_table(
        "orphans",
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("container_id", sa.Text, nullable=False),
        sa.Column("pass_number", sa.BigInteger, nullable=False),
        sa.Column("pass_count", sa.BigInteger, nullable=False, server_default=sa.text("1")),
        sa.Column("first_seen_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.PrimaryKeyConstraint("app", "container_id", name="orphans_pkey"),
    )


def upgrade() -> None:
    _sessions()
    _events()
    _sweeps()
    # argued: containers_present: before the first release, no installation has rows yet
    op.create_index(
        "containers_present",
        "containers",
        ["app", "container_id"],
        postgresql_where=sa.text("destroy_time IS NULL"),
    )
    # argued: decisions_time: before the first release, no installation has rows yet
    op.create_index("decisions_time", "decisions", ["create_time"], postgresql_using="brin")


def downgrade() -> None:
    op.drop_index("decisions_time", "decisions")
    op.drop_index("containers_present", "containers")
    for table in ("orphans", "sweeps", "session_events"):
        op.drop_table(table)
    for column in _SESSION_COLUMNS:
        op.drop_column("sessions", column)
