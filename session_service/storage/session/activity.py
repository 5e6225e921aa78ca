"""The walk that moves `sessions.seen_at` after `last_active_time`: see `storage/activity`."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from session_service.storage.activity import CHUNK, Chunk, Walk
from session_service.storage.database import Statement

SUBJECT = "sessions"
#: The last row of the chunk is that with the highest position. A row that another statement has
#: locked is left to the next walk. The trigger has set `seen_at` of sessions in other states.
_MOVE: Statement[Chunk] = Statement(
    f"""
    WITH chunk AS (
        SELECT tenant, create_time, session_id, last_active_time, seen_at FROM sessions
        WHERE state COLLATE "C" = %(state)s
          AND tenant COLLATE "C" = %(tenant)s AND (create_time, session_id) > (%(time)s, %(id)s)
        ORDER BY create_time, session_id LIMIT {CHUNK}
    ), late AS (
        SELECT s.session_id, s.last_active_time FROM sessions s JOIN chunk USING (session_id)
        WHERE chunk.seen_at < chunk.last_active_time AND chunk.seen_at < now() - %(moved_after)s
        FOR UPDATE OF s SKIP LOCKED
    ), moved AS (
        UPDATE sessions s SET seen_at = late.last_active_time
        FROM late WHERE s.session_id = late.session_id
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM moved), (SELECT count(*) FROM chunk) = {CHUNK},
        create_time, session_id
    FROM chunk ORDER BY create_time DESC, session_id DESC LIMIT 1
    """,
    {},
    lambda row: Chunk(int(row[0]), {"time": row[2], "id": row[3]} if row[1] else None),
)
_TENANT = Statement(
    """
    SELECT tenant FROM sessions
    WHERE state COLLATE "C" = %(state)s AND tenant COLLATE "C" > %(tenant)s
    ORDER BY tenant COLLATE "C" LIMIT 1
    """,
    {},
    lambda row: str(row[0]),
)
#: A session in another state is not touched.
WALK = Walk(
    _TENANT,
    _MOVE,
    {"time": datetime.min.replace(tzinfo=UTC), "id": UUID(int=0)},
    ("ACTIVE", "PAUSING"),
)
