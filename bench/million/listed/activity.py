"""The walks that move the times which lists are ordered by."""

from __future__ import annotations

from uuid import UUID

from bench.million.listed.known import ALWAYS, NEVER, NOW
from bench.million.statements import Form, Limit, case, statement, statements, with_defaults
from session_service.storage import activity
from session_service.storage.session import activity as session_activity

#: A chunk reads its rows by an index, and again by their key.
_READ = Limit(
    pages=activity.CHUNK * 3, because=f"reads a chunk of {activity.CHUNK} rows, and each by its key"
)
#: An update of an indexed column has an entry in each of about 20 indexes.
_MOVED = Limit(
    per_row=100, pages=activity.CHUNK * 6, because="each row that is moved enters 20 indexes again"
)
_LATE = """UPDATE sessions SET last_active_time = seen_at + interval '1 minute', seen_at = seen_at
    - interval '1 hour' WHERE state = 'ACTIVE' AND session_id IN (
    SELECT session_id FROM sessions WHERE state COLLATE "C" = 'ACTIVE'
    AND tenant COLLATE "C" = 'default' ORDER BY create_time, session_id LIMIT 500)"""
_LATE_AGENTS = """UPDATE llm_sessions SET last_query_at = seen_at + interval '1 minute', seen_at =
    seen_at - interval '1 hour' WHERE tenant = 'default' AND session_id IN (
    SELECT session_id FROM llm_sessions WHERE state COLLATE "C" = 'ACTIVE'
    AND tenant COLLATE "C" = 'default' ORDER BY created_at, session_id LIMIT 500)"""


def _chunks(first: object, late: str) -> Form:
    return Form(
        "",
        (
            case("none is late", time=ALWAYS, id=first, limit=_READ),
            case("all of a chunk are late", time=ALWAYS, id=first, before=(late,), limit=_MOVED),
            case("after the last", time=NEVER, id=first),
            case("no such tenant", tenant="nobody", time=ALWAYS, id=first),
        ),
        values={"state": "ACTIVE", "moved_after": activity.MOVED_AFTER},
    )


_TENANTS = (
    case("the first", state="ACTIVE", tenant=""),
    case("no more", state="ACTIVE", tenant="default"),
    case("in a state of none", state="STARTING", tenant=""),
)

LISTED = with_defaults(
    (
        statement(
            "storage.activity:_CLAIM",
            case("not due", before=("UPDATE activity_passes SET due_at = now() + interval '1 h'",)),
            case("due", before=("UPDATE activity_passes SET due_at = now()",)),
        ),
        statement("storage.activity:_RENEW", case()),
        statement("storage.activity:_COMPLETE", case(began=NOW)),
        statements("storage.session.activity:_MOVE", _chunks(UUID(int=0), _LATE)),
        statement("storage.session.activity:_TENANT", *_TENANTS),
        statements("storage.agent.activity:_MOVE", _chunks("", _LATE_AGENTS)),
        statement("storage.agent.activity:_TENANT", *_TENANTS[:2]),
    ),
    {
        "tenant": "default",
        "subject": session_activity.SUBJECT,
        "period": activity.PERIOD,
        "hold": activity.HOLD,
    },
)
