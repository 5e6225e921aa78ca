"""Checkpoints, their bytes, and the volumes that restores created."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, UUID, key_columns, metadata
from session_service.storage.tables.session import sessions

#: The unique index that allows one WRITING checkpoint per session.
WRITING = "checkpoints_writing"

#: One row per key that ever had a checkpoint. The lock on this row orders the checkpoints of a key:
#: each gets its number under it.
checkpoint_numbers = sa.Table(
    "checkpoint_numbers",
    metadata,
    *key_columns(primary_key=True),
    sa.Column("last_number", sa.BigInteger, nullable=False),
)

#: Checkpoints. No foreign key to the session: a checkpoint belongs to the session's key, and exists
#: longer than the session.
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
    # No longer used; a later version drops it.
    sa.Column("upload", sa.Text),
    sa.Column("failure", sa.Text),
    sa.Column("decision_id", UUID),
    sa.Column("lease_until", TIME),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("ready_time", TIME),
    sa.CheckConstraint("state IN ('WRITING', 'READY', 'FAILED', 'DELETING')", name="state"),
    # A WRITING checkpoint has a lease, no other has one; a READY one has a place for its bytes.
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
sa.Index(
    WRITING,
    checkpoints.c.session_id,
    unique=True,
    postgresql_where=sa.text("state = 'WRITING'"),
)
#: For the retention pass.
sa.Index(
    "checkpoints_untidy",
    checkpoints.c.create_time,
    postgresql_where=sa.text("state <> 'READY'"),
)

#: The compressed bytes of small checkpoints, in chunks. One statement writes one chunk.
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


#: The JSON path of the volume that a spec mounts. A Fly machine can mount one volume.
MOUNTED = "{mounts,0,volume_id}"

#: Volumes that restores created. No foreign key to the session or the checkpoint: a volume can
#: exist longer than both.
volumes = sa.Table(
    "volumes",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("session_id", UUID, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("checkpoint_id", UUID, nullable=False),
    sa.Column("volume_id", sa.Text),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("due_at", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("failure_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)
sa.Index("volumes_due", volumes.c.due_at)

#: By volume: the sessions that mount it, and the checkpoints taken of it. A touch does not change
#: the spec, and so it is still a heap-only update.
sa.Index(
    "sessions_mounted",
    sa.text(f"(spec #>> '{MOUNTED}')"),
    postgresql_where=sa.text("spec ? 'mounts'"),
    _table=sessions,
)
sa.Index(
    "checkpoints_mounted",
    sa.text(f"(spec #>> '{MOUNTED}')"),
    postgresql_where=sa.text("kind = 'VOLUME' AND state IN ('WRITING', 'READY')"),
    _table=checkpoints,
)
