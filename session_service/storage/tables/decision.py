"""What was decided, and how sessions ended: rows that outlive their sessions."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from session_service.storage.tables.schema import TIME, UUID, metadata

#: The index that makes a request id count once, per tenant and method.
REQUEST = "decisions_request"

#: One row per mutating call: what was asked, what was decided and why, what came of it. It has no
#: foreign key, since decisions outlive their sessions.
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
    # None where it is about no project, and in rows older than the column whose session was gone.
    sa.Column("project_id", sa.Text),
    sa.Column("replay_count", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    # What is counted from an index alone must be on pages that were vacuumed since.
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
sa.Index("decisions_time", decisions.c.create_time, postgresql_using="brin")
#: What outcomes took lately. Reuses are most, take no time, and are left out.
sa.Index(
    "decisions_outcome",
    decisions.c.outcome,
    decisions.c.decision_id,
    postgresql_where=sa.text("outcome <> 'REUSED' AND NOT joined"),
)
#: A project's figures: reuses, which are most, are counted from it without a look at their rows.
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

#: One row per session that is over, which outlives it; `lifetime` is NULL where it never stood.
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
sa.Index("session_ends_time", session_ends.c.end_time, postgresql_using="brin")
