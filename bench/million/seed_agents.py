"""The rows of agent sessions, by SQL: short conversations, some long ones, text by Zipf's law.

There are `count` sessions `a1`, `a2`, … of two turns, and conversations of 5,000 and 50,000 turns.
A hundredth was rewound, a hundredth forked, and some branches belong to no session any more. The
word of rank 1, `w1`, is in most messages; the rarest are in a few; `wnever` is in none.
"""

from __future__ import annotations

from bench.million.dice import dice, rank, text
from bench.million.steps import Step

#: The sizes of the long conversations: their names are `c` and the number of turns.
LONG = (0, 20, 5_000, 50_000)
VOCABULARY = 200_000
#: Where the branches of each kind begin.
SET_ASIDE, OWNERLESS, FORKED, LONG_BRANCH = 100_000_000, 200_000_000, 300_000_000, 400_000_000
_TURN_COLUMNS = """branch_id, turn_number, tokens, estimated_tokens, size_bytes, tokens_after,
    estimated_after, bytes_after, create_time, request_id, request_hash, tenant, roles, contents,
    token_counts"""
_AT = "now() - interval '80 days' * ((%(count)s - n)::float8 / %(count)s)"
_STATE = """CASE WHEN mod(n, 10) < 3 THEN 'ACTIVE' WHEN mod(n, 10) < 7 THEN 'EXPIRED'
    ELSE 'ENDED' END"""
_SESSIONS = f"""
INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
    head_branch, turn_count, total_tokens, total_bytes, idle_timeout, created_at, last_query_at,
    idle_from, seen_at, due_at, ended_at, purge_at)
SELECT 'default', 'a' || n,
    CASE WHEN n = 1 THEN 'oldest' WHEN mod(n, 1000) = 0 THEN 'rare'
        ELSE 'role-' || {rank(100, "n", 20)} END,
    'You are the CEO.', state,
    jsonb_build_object('team', 't' || {rank(500, "n", 21)},
        'env', CASE WHEN mod(n, 2) = 0 THEN 'prod' ELSE 'dev' END),
    n, 2, 500, 400, interval '30 days', at, at + interval '2 seconds', at,
    at + interval '2 seconds', CASE WHEN state = 'ACTIVE' THEN now() + interval '30 days' END,
    CASE WHEN state <> 'ACTIVE' THEN at + interval '1 hour' END,
    CASE WHEN state <> 'ACTIVE' THEN now() + interval '5 days' END
FROM (
    SELECT n, {_AT} AS at, {_STATE} AS state FROM generate_series(1::bigint, %(count)s) AS n
) made
"""
_BRANCHES = """
INSERT INTO llm_branches (branch_id, tenant, session_id, create_time) OVERRIDING SYSTEM VALUE
SELECT head_branch, tenant, session_id, created_at FROM llm_sessions
"""
_ROLE = f"""CASE WHEN {dice("b * 64 + t", 22)} < 0.0001 THEN 'tool'
    WHEN {dice("b * 64 + t", 22)} < 0.6 THEN 'user' ELSE 'assistant' END"""


def _turns(source: str) -> str:
    """The turns of `source`, a query of branch `b`, number `t` and time `at`."""
    said = text("b * 65536 + t", 23, words=16, vocabulary=VOCABULARY)
    return f"""
    INSERT INTO llm_turns ({_TURN_COLUMNS})
    SELECT b, t, 250, 0, 200, t * 250, 0, t * 200, at, md5(b || 'turn' || t)::uuid,
        decode(repeat('00', 32), 'hex'), 'default', ARRAY[{_ROLE}], ARRAY[{said}], '{{250}}'
    FROM ({source}) AS turn ORDER BY at
    """


_OF_EACH = """SELECT head_branch AS b, t, created_at + t * interval '1 second' AS at
    FROM llm_sessions, generate_series(1, 2) AS t WHERE session_id LIKE 'a%%'"""
_REWOUND = f"""
INSERT INTO llm_branches (branch_id, tenant, session_id, parent_id, parent_turn)
OVERRIDING SYSTEM VALUE
SELECT {SET_ASIDE} + n, 'default', 'a' || n, n, 1
FROM generate_series(100::bigint, %(count)s, 100) AS n
"""
_OF_REWOUND = f"""SELECT {SET_ASIDE} + n AS b, t, {_AT} AS at
    FROM generate_series(100::bigint, %(count)s, 100) AS n, generate_series(2, 4) AS t"""
_OWNERLESS = f"""
INSERT INTO llm_branches (branch_id, tenant) OVERRIDING SYSTEM VALUE
SELECT {OWNERLESS} + n, 'default' FROM generate_series(1000::bigint, %(count)s, 1000) AS n
"""
_OF_OWNERLESS = f"""SELECT {OWNERLESS} + n AS b, t, {_AT} AS at
    FROM generate_series(1000::bigint, %(count)s, 1000) AS n, generate_series(1, 2) AS t"""
_FORKS = f"""
WITH branch AS (
    INSERT INTO llm_branches (branch_id, tenant, session_id, parent_id, parent_turn)
    OVERRIDING SYSTEM VALUE
    SELECT {FORKED} + n, 'default', 'f' || n, n, 1
    FROM generate_series(51::bigint, %(count)s, 100) AS n RETURNING branch_id, parent_id
)
INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
    head_branch, turn_count, total_tokens, total_bytes, created_at, parent_session_id, parent_turn)
SELECT 'default', 'f' || parent_id, 'forked', 'You are the CEO.', 'ACTIVE', '{{}}', branch_id, 2,
    500, 400, now() - interval '1 day', 'a' || parent_id, 1
FROM branch
"""
_OF_FORKS = f"""SELECT {FORKED} + n AS b, 2 AS t, now() - interval '1 day' AS at
    FROM generate_series(51::bigint, %(count)s, 100) AS n"""
_REQUESTS = f"""
INSERT INTO llm_requests (tenant, method, request_id, request_hash, session_id, create_time)
SELECT 'default', 'CreateAgentSession', md5('made' || n)::uuid, decode(repeat('00', 32), 'hex'),
    'a' || n, now() - {dice("n", 24)} * interval '12 hours'
FROM generate_series(1::bigint, %(count)s / 10) AS n
"""


def _conversation(turns: int) -> Step:
    """The session and the branch of a long conversation."""
    return Step(
        f"conversation of {turns} turns",
        f"""
        WITH branch AS (
            INSERT INTO llm_branches (branch_id, tenant, session_id) OVERRIDING SYSTEM VALUE
            VALUES ({LONG_BRANCH + turns}, 'default', 'c{turns}')
        )
        INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
            head_branch, turn_count, total_tokens, total_bytes, idle_timeout, due_at, created_at)
        VALUES ('default', 'c{turns}', 'ceo', 'You are the CEO.', 'ACTIVE', '{{}}',
            {LONG_BRANCH + turns}, {turns}, {turns} * 250, {turns} * 200, interval '30 days',
            now() + interval '30 days', now() - interval '80 days')
        """,
        unchecked=True,
    )


def _long_turns(turns: int) -> str:
    return f"""SELECT {LONG_BRANCH + turns}::bigint AS b, t,
        now() - interval '80 days' * ({turns} - t)::float8 / {turns} AS at
        FROM generate_series(1::bigint, {turns}) AS t"""


_ALL_TURNS = _turns(
    " UNION ALL ".join(
        (_OF_EACH, _OF_REWOUND, _OF_OWNERLESS, _OF_FORKS, *(_long_turns(each) for each in LONG))
    )
)
_SEARCH = """
INSERT INTO llm_search (branch_id, turn_number, message_index, turn_id, create_time, tenant, role,
    document, agent_role)
SELECT t.branch_id, t.turn_number, 0, t.turn_id, t.create_time, t.tenant, t.roles[1],
    to_tsvector(%(language)s::regconfig, t.contents[1]), coalesce(s.agent_role, '')
FROM llm_turns t JOIN llm_branches b USING (branch_id)
LEFT JOIN llm_sessions s ON s.tenant = b.tenant AND s.session_id = b.session_id
ORDER BY turn_id
"""
_STATE_ROW = """
UPDATE llm_search_state
SET language = %(language)s, indexed_through = (SELECT max(turn_id) FROM llm_turns)
"""
_SEQUENCE = f"""
SELECT setval(pg_get_serial_sequence('llm_branches', 'branch_id'), {2 * LONG_BRANCH})
"""
_VACUUM = "VACUUM ANALYZE llm_sessions, llm_branches, llm_turns, llm_requests, llm_search"

STEPS = (
    Step("llm_sessions", _SESSIONS, rebuilt="llm_sessions", unchecked=True),
    Step("llm_branches", _BRANCHES, unchecked=True),
    *(_conversation(turns) for turns in LONG),
    Step("llm_sessions that were forked", _FORKS, unchecked=True),
    Step("llm_branches that were set aside", _REWOUND, unchecked=True),
    Step("llm_branches without a session", _OWNERLESS, unchecked=True),
    Step("llm_turns", _ALL_TURNS, rebuilt="llm_turns"),
    Step("llm_requests", _REQUESTS),
    Step("llm_search", _SEARCH, rebuilt="llm_search"),
    Step("llm_search_state", _STATE_ROW),
    Step("number of the next branch", _SEQUENCE),
    Step("vacuum of agent sessions", _VACUUM),
)
