"""Volumes that restores made, from before the provider is asked for one until it is deleted."""

from __future__ import annotations

import sqlalchemy as sa

from session_service.storage.tables.checkpoint import checkpoints
from session_service.storage.tables.schema import TIME, UUID, metadata
from session_service.storage.tables.session import sessions

#: The volume that a spec mounts: Fly lets a machine have one.
MOUNTED = "{mounts,0,volume_id}"

#: No foreign key to its session or checkpoint: a volume outlives both until it is deleted.
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

#: Who mounts a volume, and what was saved of it. A touch changes no spec, and stays heap-only.
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
