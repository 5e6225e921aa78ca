"""The tables of agent sessions, and their rows as values.

Branch and head. A session's conversation is the line of turns that ends at its head: turn
`turn_count` of branch `head_branch`. A branch (llm_branches) holds the turns above its
`parent_turn`; the turns up to that number are its parent's, and so on up to a branch without a
parent. An append adds a turn to the head branch. A fork makes a session whose first branch has the
other session's branch as its parent. A rewind makes a branch that leaves the conversation at an
earlier turn, and makes it the head; the branch that was the head is "set aside": it stays, it
belongs to the session, and UndoRewind makes it the head again (`previous_id`,
`previous_turn_count`). So neither copies a turn, and neither changes or deletes one.

Turns (llm_turns) are append-only and keyed by (branch, number): an append costs the same at turn 5
and at turn 50,000. Each turn's row carries the conversation's sums up to and including itself
(`tokens_after`, `estimated_after`, `bytes_after`), so that a binary search finds the turns that fit
into a budget, and a rewind takes the sums from one row.

The tables are on the same SQLAlchemy metadata as those of sessions: migrations compare it whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, UUID

from session_service.domain.agent import AgentSession, AgentState, Turn, load_messages
from session_service.storage.tables import metadata as metadata
from session_service.storage.tables.schema import BYTEWISE, list_index

if TYPE_CHECKING:
    from collections.abc import Sequence

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)
_ZERO = sa.text("0")

#: The unique index by which one tenant's request id appends at most one turn.
TURN_REQUEST = "llm_turns_request"
#: The primary key that a UniqueViolation names if the session id is taken.
SESSION_KEY = "llm_sessions_pkey"
#: The predicate of the list indexes of ACTIVE rows.
LISTED_AS_ACTIVE = f"state {BYTEWISE} = 'ACTIVE'"

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
    # The sum of the counts that callers gave, and of the estimates where they gave none.
    sa.Column("total_tokens", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("estimated_tokens", sa.BigInteger, nullable=False, server_default=_ZERO),
    sa.Column("total_bytes", sa.BigInteger, nullable=False, server_default=_ZERO),
    # Null: the session never expires.
    sa.Column("idle_timeout", sa.Interval),
    sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("last_query_at", _TIME, nullable=False, server_default=sa.func.now()),
    # An undelete and an import restart the idle time, though they are not queries.
    sa.Column("idle_from", _TIME, nullable=False, server_default=sa.func.now()),
    # These two are indexed in place of last_query_at. Both are lower bounds: `seen_at` of
    # last_query_at, `due_at` of the time to expire at. An append writes neither, because an update
    # of an indexed column is not heap-only (HOT) and costs an entry in every index of the table.
    # A trigger sets `seen_at` when the state changes; while a session stays ACTIVE, a background
    # pass moves both (`storage/agent/activity`), within SEEN_LAG of the turn.
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
#: For lists (`storage/agent/listing`), beside that by creation: what they filter by, then their
#: order.
sa.Index(
    "llm_sessions_active_time",
    llm_sessions.c.tenant,
    llm_sessions.c.seen_at,
    llm_sessions.c.session_id,
)
for _name, _time in (("created", llm_sessions.c.created_at), ("seen", llm_sessions.c.seen_at)):
    _order = (_time, llm_sessions.c.session_id)
    # The state comes first for the pass that moves `seen_at`, which reads the ACTIVE ones of all
    # tenants.
    list_index(f"llm_sessions_state_{_name}", (llm_sessions.c.state, llm_sessions.c.tenant), _order)
    _of_role = (llm_sessions.c.tenant, llm_sessions.c.agent_role)
    list_index(f"llm_sessions_role_{_name}", _of_role, _order)
    list_index(f"llm_sessions_active_role_{_name}", _of_role, _order, LISTED_AS_ACTIVE)
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

#: One row per tenant, day (UTC) of creation and role: what GetAgentStats would count.
llm_stats_rollups = sa.Table(
    "llm_stats_rollups",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("start_time", _TIME, primary_key=True),
    sa.Column("agent_role", sa.Text, primary_key=True),
    sa.Column("session_count", sa.BigInteger, nullable=False),
    sa.Column("turn_count", sa.BigInteger, nullable=False),
    sa.Column("total_tokens", sa.BigInteger, nullable=False),
    # The sum of the times from creation to the newest turn.
    sa.Column("lifetime", sa.Interval, nullable=False),
    sa.Column("with_turn", sa.BigInteger, nullable=False),
    sa.Column("with_second_turn", sa.BigInteger, nullable=False),
)
#: Days of creation of sessions that were changed otherwise than by an append, after their day.
#: Triggers append to it. The roll-up of such a day is not used until it is made again.
llm_stats_changes = sa.Table(
    "llm_stats_changes",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("change_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("start_time", _TIME, nullable=False),
)

#: A branch continues its parent's turns after turn `parent_turn` (see above). It belongs to the
#: session that can make it its head. When that session is purged, `session_id` becomes null; the
#: branch stays for as long as a branch of another session continues it.
llm_branches = sa.Table(
    "llm_branches",
    metadata,
    sa.Column("branch_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("tenant", sa.Text, nullable=False),
    sa.Column("session_id", sa.Text),
    sa.Column("parent_id", sa.BigInteger),
    sa.Column("parent_turn", sa.BigInteger, nullable=False, server_default=_ZERO),
    # The session's head at the rewind that made this branch; null if no rewind did.
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

#: A turn's messages are arrays of the same length, one element a message; contents are plain text.
#: There is no foreign key to llm_branches: it would lock the branch's row at every append. The one
#: statement that inserts takes the branch from the session's row, so it exists.
llm_turns = sa.Table(
    "llm_turns",
    metadata,
    sa.Column("branch_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("turn_number", sa.BigInteger, primary_key=True, autoincrement=False),
    # The order of insertion, which the index job follows.
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
    # The rare fields of each message: tool calls, metadata, parts. Null if no message has any.
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

#: The results of requests with a request id. A successful append has no row here: its turn's row
#: has the request id and hash.
llm_requests = sa.Table(
    "llm_requests",
    metadata,
    sa.Column("tenant", sa.Text, primary_key=True),
    sa.Column("method", sa.Text, primary_key=True),
    sa.Column("request_id", _UUID, primary_key=True),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("session_id", sa.Text, nullable=False),
    # For a rewind: the branch that it set aside.
    sa.Column("branch_id", sa.BigInteger),
    sa.Column("error", JSONB),
    sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
)
sa.Index("llm_requests_age", llm_requests.c.create_time)

#: The full-text index: one row for each message with text. The index job writes it, not the append.
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
    # The role of the sessions that have the turn: a fork has its parent's. Empty if there is none.
    # Null in rows that a version before revision 0014 wrote, until `search.fill_roles` comes by.
    sa.Column("agent_role", sa.Text),
)
#: The words of a message, and keys of what it is (see `search_query`). A search scans the index
#: many times, so new entries must not wait in a list that each scan reads whole (`fastupdate`).
sa.Index(
    "llm_search_words",
    llm_search.c.document,
    sa.text("llm_search_keys(tenant, turn_id, branch_id, role, agent_role, create_time)"),
    postgresql_using="gin",
    postgresql_with={"fastupdate": "off"},
)
sa.Index(
    "llm_search_roles",
    llm_search.c.turn_id,
    postgresql_where=llm_search.c.agent_role.is_(None),
)
#: Of the version before, which may run beside this one; nothing here uses it.
sa.Index("llm_search_time", llm_search.c.tenant, llm_search.c.create_time)

#: One row: the last turn_id that is indexed, and the text search configuration of the index.
llm_search_state = sa.Table(
    "llm_search_state",
    metadata,
    sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("indexed_through", sa.BigInteger, nullable=False),
    sa.Column("indexed_at", _TIME, nullable=False, server_default=sa.func.now()),
    sa.Column("language", sa.Text, nullable=False),
    sa.CheckConstraint("single", name="single"),
)


#: The columns of AgentSession, in its order, without the last, startup_context, which may be large.
_SESSION = (
    "tenant",
    "session_id",
    "agent_role",
    "startup_tokens",
    "state",
    "labels",
    "head_branch",
    "turn_count",
    "total_tokens",
    "estimated_tokens",
    "total_bytes",
    "idle_timeout",
    "created_at",
    "last_query_at",
    "idle_from",
    "ended_at",
    "purge_at",
    "parent_session_id",
    "parent_turn",
)
_TURN = (
    "branch_id",
    "turn_number",
    "tokens",
    "estimated_tokens",
    "tokens_after",
    "create_time",
    "roles",
    "contents",
    "token_counts",
    "extras",
    "attachments",
)
#: The number of columns of a session's row.
SESSION_WIDTH = len(_SESSION) + 1


def session_columns(
    source: sa.FromClause = llm_sessions, *, context: bool = False
) -> list[sa.ColumnElement[Any]]:
    """A session's columns; `context` includes the startup context. Any: every type."""
    last: sa.ColumnElement[Any] = (
        source.c.startup_context if context else sa.null().label("startup_context")
    )
    return [*(source.c[name] for name in _SESSION), last]


def turn_columns(source: sa.FromClause = llm_turns) -> list[sa.ColumnElement[Any]]:
    """A turn's columns. Any: every type."""
    return [source.c[name] for name in _TURN]


def no_session() -> list[sa.ColumnElement[Any]]:
    """Nulls with the names and types of a session's columns, for a UNION. Any: every type."""
    named = [sa.cast(sa.null(), llm_sessions.c[name].type).label(name) for name in _SESSION]
    return [*named, sa.cast(sa.null(), sa.Text).label("startup_context")]


def no_turn() -> list[sa.ColumnElement[Any]]:
    """Nulls with the names and types of a turn's columns, for a UNION. Any: every type."""
    return [sa.cast(sa.null(), llm_turns.c[name].type).label(name) for name in _TURN]


def make_session(row: Sequence[Any]) -> AgentSession:
    """The session of a row of `session_columns`."""
    values = list(row)
    values[4] = AgentState(values[4])
    return AgentSession(*values)


def make_turn(row: Sequence[Any]) -> Turn:
    """The turn of a row of `turn_columns`."""
    values = [*row[:6], load_messages(*row[6:])]
    return Turn(*values)
