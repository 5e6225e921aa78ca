"""Sessions, their containers and events; the installation; the state of the inventory pass."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.domain.states import LIVE, State
from session_service.storage.tables.schema import (
    BYTEWISE,
    TIME,
    UUID,
    key_columns,
    list_index,
    metadata,
)

#: The unique index that allows one live session per key, under any number of replicas.
LIVE_KEY = "sessions_live_key"
#: The live states as a list of SQL literals. A query that is to use a partial index of live rows
#: must repeat the predicate of the index with literals: PostgreSQL cannot prove that a parameter
#: implies it, and would read every session instead.
LIVE_STATES = ", ".join(f"'{state}'" for state in State if state in LIVE)
#: The predicate of the list indexes of live rows. It is not that of the other indexes of live rows,
#: so that none of those can serve a list (see `schema.BYTEWISE`).
LISTED_AS_LIVE = f"state {BYTEWISE} IN ({LIVE_STATES})"
_STATES = ", ".join(f"'{state}'" for state in State)
#: How far the list by last activity may be behind, at most: see `sessions.seen_at`.
SEEN_LAG: sa.ColumnElement[Any] = sa.literal_column("interval '5 minutes'")

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
    # What lists are ordered by in place of last_active_time: a touch and a reuse write no indexed
    # column, and so cost no entry in any index. It is never later than last_active_time. A trigger
    # sets it when a row is inserted and when its state is written, also by replicas that do not
    # know the column; while a session stays ACTIVE, a background pass moves it
    # (`storage/session/activity`), within SEEN_LAG of the activity.
    sa.Column("seen_at", TIME, nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint(f"state IN ({_STATES})", name="state"),
    sa.CheckConstraint(
        "transition IN ('START', 'PAUSE', 'END', 'PURGE', 'REPLACE')", name="transition"
    ),
    # An intermediate state has a transition that leads out of it; no other state has one.
    sa.CheckConstraint(
        "(state IN ('STARTING', 'PAUSING', 'ENDING')) = (transition IS NOT NULL)", name="in_flight"
    ),
    # A touch changes no indexed column, and so PostgreSQL can make it a heap-only update. For that
    # the new row version must fit on the same page: the fill factor leaves room.
    postgresql_with={"fillfactor": "70"},
)
sa.Index(
    LIVE_KEY,
    sessions.c.tenant,
    sessions.c.project_id,
    sessions.c.user_id,
    sessions.c.slot,
    unique=True,
    postgresql_where=sa.text(f"state IN ({LIVE_STATES})"),
)
sa.Index(
    "sessions_tenant_created", sessions.c.tenant, sessions.c.create_time, sessions.c.session_id
)
#: For lists (`storage/session/listing`): what they filter by, then their order.
sa.Index("sessions_seen", sessions.c.tenant, sessions.c.seen_at, sessions.c.session_id)
for _name, _time in (("created", sessions.c.create_time), ("seen", sessions.c.seen_at)):
    _order = (_time, sessions.c.session_id)
    # The state comes first for the pass that moves `seen_at`, which reads one state of all tenants.
    list_index(f"sessions_state_{_name}", (sessions.c.state, sessions.c.tenant), _order)
    for _text in ("user", "project"):
        _of = (sessions.c.tenant, sessions.c[f"{_text}_id"])
        list_index(f"sessions_{_text}_{_name}", _of, _order)
        list_index(f"sessions_live_{_text}_{_name}", _of, _order, LISTED_AS_LIVE)
sa.Index(
    "sessions_live_created",
    sessions.c.create_time,
    postgresql_where=sa.text(f"state IN ({LIVE_STATES})"),
)
sa.Index("sessions_due", sessions.c.due_at, postgresql_where=sessions.c.due_at.is_not(None))
# For claims: any number of ended sessions may be due before them, to be forgotten.
sa.Index(
    "sessions_due_live",
    sessions.c.due_at,
    postgresql_where=sa.text("due_at IS NOT NULL AND state <> 'ENDED'"),
)
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

#: Events of sessions. The statement that changes a session appends its event, numbered under the
#: lock of the session's row.
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


#: One row: the installation of Roost that this database belongs to.
installation = sa.Table(
    "installation",
    metadata,
    sa.Column("installation_id", UUID, primary_key=True),
    sa.Column("system_identifier", sa.Text, nullable=False),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)

#: One row per app: when the next inventory pass is due, which one replica claims.
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("due_at", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("pass_number", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)

#: One row per pass that moves `seen_at`, of sessions and of agent sessions: when it is next due,
#: which one replica claims, and when the last walk began that was complete.
activity_passes = sa.Table(
    "activity_passes",
    metadata,
    sa.Column("subject", sa.Text, primary_key=True),
    sa.Column("due_at", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("walk_time", TIME),
)

#: Containers with this installation's labels and no row, with the number of consecutive passes that
#: saw them.
orphans = sa.Table(
    "orphans",
    metadata,
    sa.Column("app", sa.Text, primary_key=True),
    sa.Column("container_id", sa.Text, primary_key=True),
    sa.Column("pass_number", sa.BigInteger, nullable=False),
    sa.Column("pass_count", sa.BigInteger, nullable=False, server_default=sa.text("1")),
    sa.Column("first_seen_time", TIME, nullable=False, server_default=sa.func.now()),
)
