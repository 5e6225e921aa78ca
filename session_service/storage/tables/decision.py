"""Decisions, offers, choices and ends of sessions: rows that exist longer than the session."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, UUID, key_columns, metadata, time_index

#: The unique index on request ids, per tenant and method.
REQUEST = "decisions_request"

#: One row per mutating call: the request, the decision with its reason, and the result. There is no
#: foreign key, because decisions exist longer than their sessions.
decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("decision_id", UUID, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("session_id", UUID),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("mode", sa.Text),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("explanation", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("continuity", sa.SmallInteger),
    sa.Column("continuity_verified", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("joined", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("leader_decision_id", UUID),
    sa.Column("attempts", JSONB, nullable=False, server_default=sa.text("'[]'")),
    sa.Column("error", JSONB),
    sa.Column("request_id", UUID),
    sa.Column("request_hash", sa.LargeBinary),
    sa.Column("inputs", JSONB, nullable=False, server_default=sa.text("'{}'")),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("finish_time", TIME),
    # NULL if the decision belongs to no project, and in rows that are older than this column if
    # their session was deleted before the column was added.
    sa.Column("project_id", sa.Text),
    sa.Column("replay_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # An index-only scan is fast only for pages that were vacuumed after their last change. Rows are
    # mostly inserted, and so autovacuum must run after fewer inserts than by default.
    postgresql_with={
        "autovacuum_vacuum_insert_scale_factor": "0.01",
        "autovacuum_vacuum_insert_threshold": "10000",
    },
)
sa.Index(
    REQUEST,
    decisions.c.tenant,
    decisions.c.method,
    decisions.c.request_id,
    unique=True,
    postgresql_where=decisions.c.request_id.is_not(None),
)
sa.Index("decisions_session", decisions.c.session_id, decisions.c.decision_id)
time_index("decisions_created", decisions.c.create_time)
#: For the recent durations of outcomes. Reuses are left out: they are most rows and take no time.
sa.Index(
    "decisions_outcome",
    decisions.c.outcome,
    decisions.c.decision_id,
    postgresql_where=sa.text("outcome <> 'REUSED' AND NOT joined"),
)
#: For the statistics of a project. Reuses, which are most rows, are counted by an index-only scan.
sa.Index(
    "decisions_project",
    decisions.c.tenant,
    decisions.c.project_id,
    decisions.c.joined,
    decisions.c.outcome,
    decisions.c.create_time,
)
sa.Index(
    "decisions_replayed",
    decisions.c.tenant,
    decisions.c.project_id,
    decisions.c.create_time,
    postgresql_where=sa.text("replay_count > 0"),
)

#: One row per ended session, which exists longer than the session's row. `lifetime` is NULL if the
#: session was never ACTIVE.
session_ends = sa.Table(
    "session_ends",
    metadata,
    sa.Column("session_id", UUID, primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("project_id", sa.Text, nullable=False),
    sa.Column("end_time", TIME, nullable=False),
    sa.Column("lifetime", sa.Interval),
    sa.Column("reason", sa.Text, nullable=False),
)
sa.Index(
    "session_ends_project",
    session_ends.c.tenant,
    session_ends.c.project_id,
    session_ends.c.end_time,
)
time_index("session_ends_ended", session_ends.c.end_time)


#: One row per offered candidate. Only the SHA-256 of its token is stored, never the token.
choice_tokens = sa.Table(
    "choice_tokens",
    metadata,
    sa.Column("token_hash", sa.LargeBinary, primary_key=True),
    *key_columns(),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("session_id", UUID, nullable=False),
    sa.Column("start_count", sa.BigInteger, nullable=False),
    sa.Column("expected_continuity", sa.SmallInteger, nullable=False),
    sa.Column("checkpoint_id", UUID),
    sa.Column("offered", JSONB, nullable=False),
    sa.Column("decision_id", UUID),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("expire_time", TIME, nullable=False),
)
sa.Index("choice_tokens_expire", choice_tokens.c.expire_time)

#: One row per choice, by the decision that carried it out. `asked` is false if the user was not
#: asked, because a stored preference decided. `offered` has the candidates.
choices = sa.Table(
    "choices",
    metadata,
    sa.Column("decision_id", UUID, primary_key=True),
    *key_columns(),
    sa.Column("session_id", UUID, nullable=False),
    sa.Column("choice", sa.Text, nullable=False),
    sa.Column("checkpoint_id", UUID),
    sa.Column("offered", JSONB, nullable=False),
    sa.Column("asked", sa.Boolean, nullable=False),
    sa.Column("remember", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("create_time", TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index(
    "choices_key",
    choices.c.tenant,
    choices.c.project_id,
    choices.c.user_id,
    choices.c.slot,
    choices.c.decision_id,
)
time_index("choices_created", choices.c.create_time)
