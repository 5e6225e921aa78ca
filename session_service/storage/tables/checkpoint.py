"""State that was saved, and its bytes."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, UUID, key_columns, metadata

#: The index that lets one checkpoint of a session be written at a time.
WRITING = "checkpoints_writing"

#: One row per key that ever had a checkpoint: its lock is what makes numbers one after the other.
checkpoint_numbers = sa.Table(
    "checkpoint_numbers",
    metadata,
    *key_columns(primary_key=True),
    sa.Column("last_number", sa.BigInteger, nullable=False),
)

#: State that was saved. No foreign key to its session: it outlives that, at the session's key.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("checkpoint_id", UUID, primary_key=True),
    *key_columns(),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("session_id", UUID, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("parent_id", UUID),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
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
    sa.Column("decision_id", UUID),
    sa.Column("lease_until", TIME),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("ready_time", TIME),
    sa.CheckConstraint("state IN ('WRITING', 'READY', 'FAILED', 'DELETING')", name="state"),
    # Whoever writes one has a lease on it, and a READY one says where its bytes are.
    sa.CheckConstraint("(state = 'WRITING') = (lease_until IS NOT NULL)", name="lease"),
    sa.CheckConstraint("state <> 'READY' OR place IS NOT NULL", name="place"),
)
sa.Index(
    "checkpoints_number",
    checkpoints.c.tenant,
    checkpoints.c.project_id,
    checkpoints.c.user_id,
    checkpoints.c.slot,
    checkpoints.c.number,
    unique=True,
)
sa.Index("checkpoints_session", checkpoints.c.session_id)
sa.Index("checkpoints_decision", checkpoints.c.decision_id)
sa.Index("checkpoints_parent", checkpoints.c.parent_id)
#: One at a time of a session.
sa.Index(
    WRITING,
    checkpoints.c.session_id,
    unique=True,
    postgresql_where=sa.text("state = 'WRITING'"),
)
#: What the janitor has to look at.
sa.Index(
    "checkpoints_untidy",
    checkpoints.c.create_time,
    postgresql_where=sa.text("state <> 'READY'"),
)

#: The bytes of checkpoints that are small enough: compressed, in pieces, each a statement.
checkpoint_chunks = sa.Table(
    "checkpoint_chunks",
    metadata,
    sa.Column(
        "checkpoint_id",
        UUID,
        sa.ForeignKey("checkpoints.checkpoint_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("bytes", sa.LargeBinary, nullable=False),
)
