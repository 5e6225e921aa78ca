"""Agent sessions: their branches, turns, requests, search index, and the analysts' view."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TSVECTOR, UUID

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_UUID = UUID(as_uuid=True)
_TIME = sa.DateTime(timezone=True)
_ZERO = sa.text("0")

#: A session's conversation as one value. A branch holds its turns above `low`, up to `high`; those
#: below are its parent's.
_HISTORY = """
CREATE VIEW llm_session_history AS
SELECT s.tenant, s.session_id, s.agent_role, s.startup_context,
       COALESCE(history.messages, '[]'::jsonb) AS conversation_history,
       s.turn_count, s.total_tokens, s.state, s.labels, s.created_at, s.last_query_at
FROM llm_sessions s
LEFT JOIN LATERAL (
    WITH RECURSIVE segment (branch_id, parent_id, low, high) AS (
        SELECT b.branch_id, b.parent_id, b.parent_turn, s.turn_count
        FROM llm_branches b WHERE b.branch_id = s.head_branch
        UNION ALL
        SELECT b.branch_id, b.parent_id, b.parent_turn, g.low
        FROM segment g JOIN llm_branches b ON b.branch_id = g.parent_id
    )
    SELECT jsonb_agg(
        jsonb_build_object(
            'turn', t.turn_number, 'role', m.role, 'content', m.content, 'tokens', m.tokens,
            'created_at', t.create_time
        ) || COALESCE(NULLIF(t.extras -> (m.place - 1)::int, 'null'::jsonb), '{}'::jsonb)
        ORDER BY t.turn_number, m.place
    ) AS messages
    FROM segment g
    JOIN llm_turns t
      ON t.branch_id = g.branch_id AND t.turn_number > g.low AND t.turn_number <= g.high
    CROSS JOIN LATERAL unnest(t.roles, t.contents, t.token_counts)
      WITH ORDINALITY AS m (role, content, tokens, place)
) history ON true
"""


def _sessions() -> None:
    op.create_table(
        "llm_sessions",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("session_id", sa.Text, primary_key=True),
        sa.Column("agent_role", sa.Text, nullable=False),
        sa.Column("startup_context", sa.Text, nullable=False),
        sa.Column("startup_tokens", sa.BigInteger),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("labels", JSONB, nullable=False),
        sa.Column("head_branch", sa.BigInteger, nullable=False),
        sa.Column("turn_count", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("total_tokens", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("estimated_tokens", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("total_bytes", sa.BigInteger, nullable=False, server_default=_ZERO),
        sa.Column("idle_timeout", sa.Interval),
        sa.Column("created_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("last_query_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("idle_from", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("seen_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("due_at", _TIME),
        sa.Column("ended_at", _TIME),
        sa.Column("purge_at", _TIME),
        sa.Column("parent_session_id", sa.Text),
        sa.Column("parent_turn", sa.BigInteger),
        sa.CheckConstraint(
            "state IN ('ACTIVE', 'EXPIRED', 'ENDED')", name=op.f("llm_sessions_state")
        ),
        sa.CheckConstraint(
            "(state = 'ACTIVE') = (ended_at IS NULL)", name=op.f("llm_sessions_ended")
        ),
        sa.CheckConstraint(
            "(state = 'ACTIVE') = (purge_at IS NULL)", name=op.f("llm_sessions_purge")
        ),
        postgresql_with={"fillfactor": "70"},
    )
    op.create_index("llm_sessions_head", "llm_sessions", ["head_branch"], unique=True)
    op.create_index("llm_sessions_created", "llm_sessions", ["tenant", "created_at", "session_id"])
    op.create_index(
        "llm_sessions_role", "llm_sessions", ["tenant", "agent_role", "created_at", "session_id"]
    )
    op.create_index("llm_sessions_seen", "llm_sessions", ["tenant", "seen_at"])
    op.create_index(
        "llm_sessions_labels",
        "llm_sessions",
        ["labels"],
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
    )
    op.create_index(
        "llm_sessions_due",
        "llm_sessions",
        ["due_at"],
        postgresql_where=sa.text("state = 'ACTIVE' AND due_at IS NOT NULL"),
    )
    op.create_index(
        "llm_sessions_purge",
        "llm_sessions",
        ["purge_at"],
        postgresql_where=sa.text("purge_at IS NOT NULL"),
    )


def _branches() -> None:
    op.create_table(
        "llm_branches",
        sa.Column("branch_id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("session_id", sa.Text),
        sa.Column("parent_id", sa.BigInteger),
        sa.Column("parent_turn", sa.BigInteger, nullable=False, server_default=_ZERO),
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
    op.create_index("llm_branches_session", "llm_branches", ["tenant", "session_id"])
    op.create_index("llm_branches_parent", "llm_branches", ["parent_id", "parent_turn"])
    op.create_index(
        "llm_branches_ownerless",
        "llm_branches",
        ["branch_id"],
        postgresql_where=sa.text("session_id IS NULL"),
    )


def _turns() -> None:
    op.create_table(
        "llm_turns",
        sa.Column("branch_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("turn_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("turn_id", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("estimated_tokens", sa.BigInteger, nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
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
        sa.Column("extras", JSONB),
        sa.Column("attachments", ARRAY(sa.LargeBinary)),
    )
    op.create_index("llm_turns_order", "llm_turns", ["turn_id"])
    op.create_index(
        "llm_turns_request",
        "llm_turns",
        ["tenant", "request_id"],
        unique=True,
        postgresql_where=sa.text("request_id IS NOT NULL"),
    )


def _requests() -> None:
    op.create_table(
        "llm_requests",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("request_id", _UUID, primary_key=True),
        sa.Column("request_hash", sa.LargeBinary, nullable=False),
        sa.Column("session_id", sa.Text, nullable=False),
        sa.Column("branch_id", sa.BigInteger),
        sa.Column("error", JSONB),
        sa.Column("create_time", _TIME, nullable=False, server_default=sa.func.now()),
    )
    op.create_index("llm_requests_age", "llm_requests", ["create_time"])


def _search() -> None:
    op.create_table(
        "llm_search",
        sa.Column("branch_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("turn_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("message_index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("turn_id", sa.BigInteger, nullable=False),
        sa.Column("create_time", _TIME, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("document", TSVECTOR, nullable=False),
    )
    op.create_index("llm_search_document", "llm_search", ["document"], postgresql_using="gin")
    op.create_index("llm_search_time", "llm_search", ["tenant", "create_time"])


def _search_state() -> None:
    op.create_table(
        "llm_search_state",
        sa.Column("single", sa.Boolean, primary_key=True, server_default=sa.true()),
        sa.Column("indexed_through", sa.BigInteger, nullable=False),
        sa.Column("indexed_at", _TIME, nullable=False, server_default=sa.func.now()),
        sa.Column("language", sa.Text, nullable=False),
        sa.CheckConstraint("single", name=op.f("llm_search_state_single")),
    )


def upgrade() -> None:
    _sessions()
    _branches()
    _turns()
    _requests()
    _search()
    _search_state()
    op.execute("INSERT INTO llm_search_state (indexed_through, language) VALUES (0, 'english')")
    op.execute(_HISTORY)


def downgrade() -> None:
    op.execute("DROP VIEW llm_session_history")
    for table in (
        "llm_search_state",
        "llm_search",
        "llm_requests",
        "llm_turns",
        "llm_branches",
        "llm_sessions",
    ):
        op.drop_table(table)
