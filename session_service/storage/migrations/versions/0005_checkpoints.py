"""Checkpoints: state that is saved out of containers, and which one a session descends from.

Only adds: replicas of the version before run on beside it, and take no checkpoints.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)
_KEY = ("tenant", "project_id", "user_id", "slot")


def _text(*names: str) -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _numbers() -> None:
    op.create_table(
        "checkpoint_numbers",
        *_text(*_KEY),
        sa.Column("last_number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint(*_KEY, name="checkpoint_numbers_pkey"),
    )


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("checkpoint_id", _UUID, nullable=False),
        *_text(*_KEY),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("session_id", _UUID, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("parent_id", _UUID),
        *_text("kind", "state", "reason"),
        sa.Column("label", sa.Text, nullable=False, server_default=""),
        sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("app", sa.Text, nullable=False),
        sa.Column("spec", JSONB, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("size_bytes", sa.BigInteger),
        sa.Column("stored_bytes", sa.BigInteger),
        sa.Column("sha256", sa.LargeBinary),
        sa.Column("place", sa.Text),
        sa.Column("object", sa.Text),
        sa.Column("upload", sa.Text),
        sa.Column("failure", sa.Text),
        sa.Column("decision_id", _UUID),
        sa.Column("lease_until", _TIME),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("ready_time", _TIME),
        sa.PrimaryKeyConstraint("checkpoint_id", name="checkpoints_pkey"),
        sa.CheckConstraint(
            "state IN ('WRITING', 'READY', 'FAILED', 'DELETING')",
            name=op.f("checkpoints_state"),
        ),
        sa.CheckConstraint(
            "(state = 'WRITING') = (lease_until IS NOT NULL)", name=op.f("checkpoints_lease")
        ),
        sa.CheckConstraint("state <> 'READY' OR place IS NOT NULL", name=op.f("checkpoints_place")),
    )
    op.create_index("checkpoints_number", "checkpoints", [*_KEY, "number"], unique=True)
    op.create_index("checkpoints_session", "checkpoints", ["session_id"])
    op.create_index("checkpoints_decision", "checkpoints", ["decision_id"])
    op.create_index("checkpoints_parent", "checkpoints", ["parent_id"])
    op.create_index(
        "checkpoints_writing",
        "checkpoints",
        ["session_id"],
        unique=True,
        postgresql_where=sa.text("state = 'WRITING'"),
    )
    op.create_index(
        "checkpoints_untidy",
        "checkpoints",
        ["create_time"],
        postgresql_where=sa.text("state <> 'READY'"),
    )


def _chunks() -> None:
    op.create_table(
        "checkpoint_chunks",
        sa.Column("checkpoint_id", _UUID, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("bytes", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("checkpoint_id", "number", name="checkpoint_chunks_pkey"),
        sa.ForeignKeyConstraint(
            ["checkpoint_id"],
            ["checkpoints.checkpoint_id"],
            name="checkpoint_chunks_checkpoint_id_fkey",
            ondelete="CASCADE",
        ),
    )
    # Compressed already: PostgreSQL need not try once more.
    op.execute("ALTER TABLE checkpoint_chunks ALTER COLUMN bytes SET STORAGE EXTERNAL")


def upgrade() -> None:
    op.add_column("sessions", sa.Column("checkpoint_id", _UUID))
    # argued: sessions_checkpoint: before the first release, no installation has rows yet
    op.create_index(
        "sessions_checkpoint",
        "sessions",
        ["checkpoint_id"],
        postgresql_where=sa.text("checkpoint_id IS NOT NULL"),
    )
    _numbers()
    _checkpoints()
    _chunks()


def downgrade() -> None:
    for table in ("checkpoint_chunks", "checkpoints", "checkpoint_numbers"):
        op.drop_table(table)
    op.drop_index("sessions_checkpoint", "sessions")
    op.drop_column("sessions", "checkpoint_id")
