"""The walk that moves `llm_sessions.seen_at` after `last_query_at`, and `due_at` after the time to
expire at: see `storage/activity`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from session_service.storage.activity import CHUNK, Chunk, Walk
from session_service.storage.database import Statement

SUBJECT = "agent_sessions"
#: The last row of the chunk is that with the highest position. A row that another statement has
#: locked is left to the next walk. The trigger has set `seen_at` of sessions in other states.
_MOVE: Statement[Chunk] = Statement(
    f"""
    WITH chunk AS (
        SELECT tenant, created_at, session_id, last_query_at, seen_at FROM llm_sessions
        WHERE state COLLATE "C" = %(state)s
          AND tenant COLLATE "C" = %(tenant)s AND (created_at, session_id) > (%(time)s, %(id)s)
        ORDER BY created_at, session_id LIMIT {CHUNK}
    ), late AS (
        SELECT s.tenant, s.session_id, s.last_query_at,
            greatest(s.last_query_at, s.idle_from) + s.idle_timeout AS due
        FROM llm_sessions s JOIN chunk USING (tenant, session_id)
        WHERE chunk.seen_at < chunk.last_query_at AND chunk.seen_at < now() - %(moved_after)s
        FOR UPDATE OF s SKIP LOCKED
    ), moved AS (
        UPDATE llm_sessions s SET seen_at = late.last_query_at, due_at = late.due
        FROM late WHERE s.tenant = late.tenant AND s.session_id = late.session_id
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM chunk) = {CHUNK},
        created_at, session_id
    FROM chunk ORDER BY created_at DESC, session_id DESC LIMIT 1
    """,
    {},
    lambda row: Chunk(int(row[0]), {"time": row[2], "id": row[3]} if row[1] else None),
)
_TENANT = Statement(
    """
    SELECT tenant FROM llm_sessions
    WHERE state COLLATE "C" = %(state)s AND tenant COLLATE "C" > %(tenant)s
    ORDER BY tenant COLLATE "C" LIMIT 1
    """,
    {},
    lambda row: str(row[0]),
)
#: Only an ACTIVE session takes turns.
WALK = Walk(_TENANT, _MOVE, {"time": datetime.min.replace(tzinfo=UTC), "id": ""}, ("ACTIVE",))
