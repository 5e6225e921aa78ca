"""Many sessions with many turns, made by SQL."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from session_service.storage.database import Connection

#: Sessions of four roles, one a second, the newest now; one in a hundred has been idle too long.
_SESSIONS = """
WITH made AS (
    INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
        head_branch, turn_count, total_tokens, total_bytes, idle_timeout, created_at,
        last_query_at, idle_from, seen_at, due_at)
    SELECT 'default', 's' || n, (ARRAY['ceo', 'cto', 'cfo', 'pm'])[n %% 4 + 1], 'Begin.', 'ACTIVE',
        jsonb_build_object('team', 't' || n %% 1000), n + 1000000, %(turns)s, %(turns)s::int * 50,
        %(turns)s::int * 300, CASE WHEN n %% 100 = 0 THEN interval '1 h' ELSE interval '100 d' END,
        t, t, t, t, t + CASE WHEN n %% 100 = 0 THEN interval '1 h' ELSE interval '100 d' END
    FROM generate_series(%(first)s::int, %(last)s::int) AS n,
        LATERAL (SELECT now() - make_interval(secs => %(sessions)s::int - n + 7200) AS t) AS time
    RETURNING session_id, head_branch
)
INSERT INTO llm_branches (branch_id, tenant, session_id) OVERRIDING SYSTEM VALUE
SELECT head_branch, 'default', session_id FROM made
"""
#: Each message has a word of its own, one of a thousand, one of ten, and one that all have.
_TURNS = """
INSERT INTO llm_turns (branch_id, turn_number, tokens, estimated_tokens, size_bytes, tokens_after,
    estimated_after, bytes_after, create_time, tenant, roles, contents, token_counts)
SELECT n + 1000000, k, 50, 0, 300, k * 50, 0, k * 300,
    now() - make_interval(secs => %(sessions)s::int - n + 7200), 'default', '{user,assistant}',
    ARRAY['question ' || k || ' about own' || n || 'x' || k || ' and topic' || (n * 7 + k) %% 1000,
          'common answer with rather' || k %% 10 || ' ' || repeat('some more text ', 12)],
    '{20,30}'
FROM generate_series(%(first)s::int, %(last)s::int) AS n, generate_series(1, %(turns)s::int) AS k
"""
STEP = 5000


async def fill(connection: Connection, sessions: int, turns: int) -> None:
    """Put so many sessions of so many turns into an empty database."""
    await connection.execute("SET statement_timeout = 0")
    for first in range(1, sessions + 1, STEP):
        last = min(first + STEP - 1, sessions)
        params = {"first": first, "last": last, "turns": turns, "sessions": sessions}
        await connection.execute(_SESSIONS, params)
        await connection.execute(_TURNS, params)
    await connection.execute("VACUUM ANALYZE llm_sessions, llm_branches, llm_turns")
