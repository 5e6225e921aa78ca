"""What a search needs to look at a bounded part of the index at a time.

An index with the words of a message and with keys of what it is (`storage.agent.search_query` says
which), in place of the index of the words alone: it serves the statements of the version before
too. The agent's role is new in the table; a background loop fills it in for the rows that are
there.

Takes minutes on a large table, and stops nobody.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

#: The seconds from 1970 to a time, from 0 to 2^32 - 1.
_AGE = (
    "greatest(0, least(4294967295, floor(extract("
    "epoch FROM $6 - '1970-01-01 00:00:00+00'::timestamptz))))::bigint"
)
_SPANS = (12, 14, 16, 18, 20, 22, 24, 27, 30)
_KEYS = f"""
CREATE OR REPLACE FUNCTION llm_search_keys(
    tenant text, turn_id bigint, branch_id bigint, role text, agent_role text,
    create_time timestamptz
) RETURNS bigint[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
SELECT ARRAY[
    hashtextextended('w11/' || $1, $2 >> 11),
    hashtextextended('w16/' || $1, $2 >> 16),
    hashtextextended('branch', $3 & 16383),
    hashtextextended('role/' || $4, 0),
    hashtextextended(coalesce('agent/' || $1 || '/' || $5, 'agent'), 0),
    {", ".join(f"hashtextextended('t{bits}', {_AGE} >> {bits})" for bits in _SPANS)}
]
$$
"""
_EXPRESSION = "llm_search_keys(tenant, turn_id, branch_id, role, agent_role, create_time)"


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE llm_search ADD COLUMN IF NOT EXISTS agent_role TEXT")
        # argued: llm_search_keys: no statement of the version before calls it
        op.execute(_KEYS)
        # Waits for whoever has begun to write before; nobody waits for it.
        op.execute("SET lock_timeout = 0")
        # argued: llm_search_words: what an unfinished build has left serves nobody
        # argued: llm_search_roles: the same
        for name in ("llm_search_words", "llm_search_roles"):
            op.drop_index(name, "llm_search", if_exists=True, postgresql_concurrently=True)
        op.create_index(
            "llm_search_words",
            "llm_search",
            ["document", sa.text(_EXPRESSION)],
            postgresql_using="gin",
            postgresql_concurrently=True,
            postgresql_with={"fastupdate": "off"},
        )
        op.create_index(
            "llm_search_roles",
            "llm_search",
            ["turn_id"],
            postgresql_concurrently=True,
            postgresql_where=sa.text("agent_role IS NULL"),
        )
        # argued: llm_search_document: llm_search_words has the words too
        op.drop_index(
            "llm_search_document", "llm_search", if_exists=True, postgresql_concurrently=True
        )


def downgrade() -> None:
    op.create_index("llm_search_document", "llm_search", ["document"], postgresql_using="gin")
    for name in ("llm_search_words", "llm_search_roles"):
        op.drop_index(name, "llm_search")
    op.drop_column("llm_search", "agent_role")
    op.execute("DROP FUNCTION llm_search_keys(text, bigint, bigint, text, text, timestamptz)")
