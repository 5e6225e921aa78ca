"""The tables of agent sessions, on the same metadata as the others.

Turns are append-only and keyed by (branch, number): an append costs the same at turn 5 and at turn
50,000. Each turn carries the sums up to itself, so that what fits into a budget is found by a
binary search, and going back to a turn needs no recount.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, UUID

from session_service.storage.tables import metadata as metadata

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)
_ZERO = sa.text("0")

#: The index that makes an append's request id count once, per tenant.
TURN_REQUEST = "llm_turns_request"
#: The keys that a new session's id and a request's record can clash with.
SESSION_KEY = "llm_sessions_pkey"
REQUEST_KEY = "llm_requests_pkey"

llm_sessions = sa.Table(
    "llm_sessions",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("session_id", sa.Text, primary_key=True),
    sa.Column("agent_role", sa.Text, nullable=False),
    sa.Column("startup_context", sa.Text, nullable=False),
    sa.Column("startup_tokens", sa.BigInteger),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("labels", JSONB, nullable=False),
    sa.Column("head_branch", sa.BigInteger, nullable=False),
    sa.Column("turn_count", sa.BigInteger, nullable=False, server_default=_ZERO),
    # What callers counted, and an estimate for what they did not.
    sa.Column("total_tokens", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("estimated_tokens", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("total_bytes", sa.BigInteger, nullable=False, server_default=_ZERO),
    # Null: it never expires.
    sa.Column("idle_timeout", sa.Interval),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("last_query_at", _TIME, nullable=False, server_default=sa.func.now()),
    # The idle time also begins anew at an undelete or import, which are no queries.
    sa.Column("idle_from", _TIME, nullable=False, server_default=sa.func.now()),
    # These two are indexed in place of last_query_at, and moved by an append only where they lag
    # by minutes, so that almost every append stays a heap-only update. Both are lower bounds: of
    # the newest turn's time, and of the time to expire at.
    sa.Column("seen_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("due_at", _TIME),
    sa.Column("ended_at", _TIME),
    sa.Column("purge_at", _TIME),
    sa.Column("parent_session_id", sa.Text),
    sa.Column("parent_turn", sa.BigInteger),
    sa.CheckConstraint("state IN ('ACTIVE', 'EXPIRED', 'ENDED')", name="state"),
    sa.CheckConstraint("(state = 'ACTIVE') = (ended_at IS NULL)", name="ended"),
    sa.CheckConstraint("(state = 'ACTIVE') = (purge_at IS NULL)", name="purge"),
    postgresql_with={"fillfactor": "70"},
)
sa.Index("llm_sessions_head", llm_sessions.c.head_branch, unique=True)
sa.Index(
    "llm_sessions_created",
    llm_sessions.c.tenant,
    llm_sessions.c.created_at,
    llm_sessions.c.session_id,
)
sa.Index(
    "llm_sessions_role",
    llm_sessions.c.tenant,
    llm_sessions.c.agent_role,
    llm_sessions.c.created_at,
    llm_sessions.c.session_id,
)
sa.Index("llm_sessions_seen", llm_sessions.c.tenant, llm_sessions.c.seen_at)
sa.Index(
    "llm_sessions_labels",
    llm_sessions.c.labels,
    postgresql_using="gin",
    postgresql_ops={"labels": "jsonb_path_ops"},
)
sa.Index(
    "llm_sessions_due",
    llm_sessions.c.due_at,
    postgresql_where=sa.text("state = 'ACTIVE' AND due_at IS NOT NULL"),
)
sa.Index(
    "llm_sessions_purge",
    llm_sessions.c.purge_at,
    postgresql_where=llm_sessions.c.purge_at.is_not(None),
)

#: A line of turns that continues its parent's after `parent_turn`. It belongs to the session that
#: can go to it; to none once that is purged, and then it stays for as long as another shares it.
llm_branches = sa.Table(
    "llm_branches",
    metadata,
    sa.Column("branch_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text),
    sa.Column("parent_id", sa.BigInteger),
    sa.Column("parent_turn", sa.BigInteger, nullable=False, server_default=_ZERO),
    # Where the session stood when a rewind made this branch.
    sa.Column("previous_id", sa.BigInteger),
    sa.Column("previous_turn_count", sa.BigInteger),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    sa.ForeignKeyConstraint(
        ["tenant", "session_id"],
        ["llm_sessions.tenant", "llm_sessions.session_id"],
        name="llm_branches_session_fkey",
        ondelete="SET NULL (session_id)",
    ),
)
sa.Index("llm_branches_session", llm_branches.c.tenant, llm_branches.c.session_id)
sa.Index("llm_branches_parent", llm_branches.c.parent_id, llm_branches.c.parent_turn)
sa.Index(
    "llm_branches_ownerless",
    llm_branches.c.branch_id,
    postgresql_where=llm_branches.c.session_id.is_(None),
)

#: A turn's messages lie side by side, in arrays of one length; their contents are plain text. No
#: foreign key: it would lock the branch's row at every append, and the one statement that inserts
#: takes the branch from the session.
llm_turns = sa.Table(
    "llm_turns",
    metadata,
    sa.Column("branch_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("turn_number", sa.BigInteger, primary_key=True, autoincrement=False),
    # The order of insertion, which the indexer follows.
    sa.Column("turn_id", sa.BigInteger, sa.Identity(always=True), nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("estimated_tokens", sa.BigInteger, nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    # The conversation's sums after this turn.
    sa.Column("tokens_after", sa.BigInteger, nullable=False),
    sa.Column("estimated_after", sa.BigInteger, nullable=False),
    sa.Column("bytes_after", sa.BigInteger, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("request_id", _UUID),
    sa.Column("request_hash", sa.LargeBinary),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("roles", ARRAY(sa.Text), nullable=False),
    sa.Column("contents", ARRAY(sa.Text), nullable=False),
    sa.Column("token_counts", ARRAY(sa.BigInteger), nullable=False),
    # Per message what few have: tool calls, metadata, parts. Null where none has any.
    sa.Column("extras", JSONB),
    sa.Column("attachments", ARRAY(sa.LargeBinary)),
)
sa.Index("llm_turns_order", llm_turns.c.turn_id)
sa.Index(
    TURN_REQUEST,
    llm_turns.c.tenant,
    llm_turns.c.request_id,
    unique=True,
    postgresql_where=llm_turns.c.request_id.is_not(None),
)

#: What came of requests that carried an id, but of appends that went well: their turn says it.
llm_requests = sa.Table(
    "llm_requests",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("request_id", _UUID, primary_key=True),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    # Of a rewind: the branch that it set aside.
    sa.Column("branch_id", sa.BigInteger),
    sa.Column("error", JSONB),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index("llm_requests_age", llm_requests.c.create_time)

#: One row per message that can be found by its words; written by the indexer, apart from appends.
llm_search = sa.Table(
    "llm_search",
    metadata,
    sa.Column("branch_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("turn_number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("message_index", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("turn_id", sa.BigInteger, nullable=False),
    sa.Column("create_time", _TIME, nullable=False),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("document", TSVECTOR, nullable=False),
)
sa.Index("llm_search_document", llm_search.c.document, postgresql_using="gin")
sa.Index("llm_search_time", llm_search.c.tenant, llm_search.c.create_time)

#: One row: how far the indexer is, and in which language it has indexed.
llm_search_state = sa.Table(
    "llm_search_state",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("indexed_through", sa.BigInteger, nullable=False),
    sa.Column("indexed_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("language", sa.Text, nullable=False),
    sa.CheckConstraint("single", name="single"),
)
