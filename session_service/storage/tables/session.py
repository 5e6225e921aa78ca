"""Sessions, their containers, and what happened to them."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, UUID, key_columns, metadata

#: The index that makes one live session per key true, under any number of replicas.
LIVE_KEY = "sessions_live_key"

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_id", UUID, primary_key=True),
    *key_columns(),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("transition", sa.Text),
    sa.Column("prior_state", sa.Text),
    sa.Column("owner", UUID),
    sa.Column("lease_until", TIME),
    sa.Column("deadline", TIME),
    sa.Column("decision_id", UUID),
    sa.Column("wish", JSONB),
    sa.Column("successor_id", UUID),
    sa.Column("predecessor_id", UUID),
    sa.Column("pause_depth", sa.Text),
    sa.Column("loss_untold", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("conditions", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("spec", JSONB, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("policy", JSONB, nullable=False),
    sa.Column("verified_at", TIME),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("start_time", TIME),
    sa.Column("last_active_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("pause_time", TIME),
    sa.Column("end_time", TIME),
    sa.Column("purge_time", TIME),
    sa.Column("due_at", TIME),
    sa.Column("start_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("end_reason", sa.Text),
    sa.Column("cause", sa.Text),
    sa.Column("failure_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("change_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("hold_until", TIME),
    sa.Column("holds", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("warn_time", TIME),
    sa.Column("activity", sa.Text, nullable=False, server_default=""),
    sa.Column("event_sequence", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("checkpoint_id", UUID),
    sa.Column("untold_continuity", sa.SmallInteger),
    sa.Column("checkpoint_time", TIME),
    sa.Column("checkpoint_try_time", TIME),
    sa.CheckConstraint(
        "state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED', 'ENDING', 'ENDED')", name="state"
    ),
    sa.CheckConstraint(
        "transition IN ('START', 'PAUSE', 'END', 'PURGE', 'REPLACE')", name="transition"
    ),
    # A state that is on its way somewhere has somebody who brings it there, and no other has.
    sa.CheckConstraint(
        "(state IN ('STARTING', 'PAUSING', 'ENDING')) = (transition IS NOT NULL)", name="in_flight"
    ),
    # A touch moves no indexed column, so that it stays a heap-only update; the room left in each
    # page keeps it on its page.
    postgresql_with={"fillfactor": "70"},
)
sa.Index(
    LIVE_KEY,
    sessions.c.tenant,
    sessions.c.project_id,
    sessions.c.user_id,
    sessions.c.slot,
    unique=True,
    postgresql_where=sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
)
sa.Index(
    "sessions_tenant_created", sessions.c.tenant, sessions.c.create_time, sessions.c.session_id
)
sa.Index(
    "sessions_live_created",
    sessions.c.create_time,
    postgresql_where=sa.text("state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')"),
)
sa.Index("sessions_due", sessions.c.due_at, postgresql_where=sessions.c.due_at.is_not(None))
sa.Index(
    "sessions_checkpoint",
    sessions.c.checkpoint_id,
    postgresql_where=sessions.c.checkpoint_id.is_not(None),
)

containers = sa.Table(
    "containers",
    metadata,
    sa.Column(
        "session_id",
        UUID,
        sa.ForeignKey("sessions.session_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("generation", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("container_id", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("region", sa.Text, nullable=False, server_default=""),
    sa.Column("boot_id", sa.Text),
    sa.Column("boot_time", TIME),
    sa.Column("start_time", TIME),
    sa.Column("cordoned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("wanted", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("destroy_time", TIME),
    sa.Column("saved_checkpoint_id", UUID),
    sa.Column("saved_start_time", TIME),
)
sa.Index(
    "containers_unwanted",
    containers.c.session_id,
    postgresql_where=sa.text("NOT wanted AND destroy_time IS NULL"),
)
sa.Index(
    "containers_present",
    containers.c.app,
    containers.c.container_id,
    postgresql_where=sa.text("destroy_time IS NULL"),
)

#: What happened to a session: appended with the change itself, numbered under its row's lock.
session_events = sa.Table(
    "session_events",
    metadata,
    sa.Column(
        "session_id",
        UUID,
        sa.ForeignKey("sessions.session_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("details", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index("session_events_time", session_events.c.create_time, postgresql_using="brin")
