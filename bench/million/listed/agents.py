"""Writes of agent sessions, their requests, expiry and purge."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

from bench.million.listed.known import MOVED, NOBODY
from bench.million.seed_agents import LONG_BRANCH, OWNERLESS, SET_ASIDE
from bench.million.statements import (
    Form,
    Limit,
    Lookup,
    case,
    statement,
    statements,
    with_defaults,
)
from session_service.storage.agent.expiry import TURN_BYTES, TURNS

#: Request ids that the seed has used: of a turn, and of a session's creation.
TURN_REQUEST = Lookup("SELECT md5('1turn1')::uuid")
CREATE_REQUEST = Lookup("SELECT md5('made1')::uuid")
_LARGEST = LONG_BRANCH + 50_000
AGENT_DEFAULTS: dict[str, object] = {
    "tenant": "default",
    "session_id": "c20",
    "branch_id": LONG_BRANCH + 20,
    "r_tenant": "default",
    "r_method": "CreateAgentSession",
    "r_request_id": NOBODY,
    "r_request_hash": bytes(32),
    "r_session_id": "c20",
    "r_branch_id": None,
    "r_error": None,
    "retention": timedelta(days=30),
    "expected": 20,
    "agent_role": "role-1",
    "startup_context": "You are the CEO.",
    "startup_tokens": None,
    "labels": "{}",
    "idle_timeout": timedelta(days=30),
    "created_at": None,
    "last_query_at": None,
    "t_tokens": 250,
    "t_estimated_tokens": 0,
    "t_roles": "{user}",
    "t_contents": '{"a new turn"}',
    "t_token_counts": "{250}",
    "t_extras": None,
    "t_attachments": None,
    "t_size_bytes": 200,
    "t_request_id": NOBODY,
    "t_request_hash": bytes(32),
    "t_tenant": "default",
    "t_branch_id": LONG_BRANCH + 20,
    "t_turn_number": 21,
    "t_tokens_after": 1,
    "t_estimated_after": 1,
    "t_bytes_after": 1,
    "t_create_time": None,
    "size": 51,
    "turns": TURNS,
    "bytes": TURN_BYTES,
}
_APPENDS = tuple(
    Form(
        f"revive={revive}, expected={expected}, with_request_id={with_request_id}",
        (
            case(),
            case("at turn 50,000", session_id="c50000", expected=50_000),
            case("no such session", session_id="nobody"),
        ),
        flags={"revive": revive, "expected": expected, "with_request_id": with_request_id},
    )
    for revive, expected, with_request_id in product((False, True), repeat=3)
)
_EXPIRING = """UPDATE llm_sessions SET due_at = now(), idle_timeout = interval '1 hour' WHERE
    session_id IN (SELECT 'a' || n * 10 FROM generate_series(1, least(2000, %(count)s / 20)) AS n)
"""
_PURGING = """UPDATE llm_sessions SET purge_at = now() WHERE session_id IN (
    SELECT 'a' || n * 10 + 5 FROM generate_series(1, least(2000, %(count)s / 20)) AS n)"""
_FORGETTING = """UPDATE llm_requests SET create_time = now() - interval '2 days' WHERE request_id
    IN (SELECT md5('made' || n)::uuid FROM generate_series(1, least(2000, %(count)s / 20)) AS n)"""

#: The branches of a batch, and a long one, and those that forks continue, without a session.
_OWNERLESS = Lookup(
    f"SELECT array_agg({OWNERLESS} + n * 1000) FROM generate_series(1, %(count)s / 1000) AS n"
)
_FORKED = Lookup("SELECT array_agg(n) FROM generate_series(51, least(2051, %(count)s), 100) AS n")
_DISOWNING = f"""UPDATE llm_branches SET session_id = NULL WHERE branch_id = {_LARGEST}
    OR branch_id IN (SELECT n FROM generate_series(51, least(2051, %(count)s), 100) AS n)"""

#: An entry for each of 16 words and 14 keys.
_WORDS = Limit(per_row=180, because="each word and key of a message has an entry in the index")

LISTED = with_defaults(
    (
        statements("storage.agent.appends:_append", *_APPENDS),
        statement("storage.agent.appends:_INSERT_IMPORTED"),
        statement(
            "storage.agent.appends:_UPDATE_IMPORTED",
            case(estimated=0, newest=None, size=200, tokens=250, turn_count=21),
        ),
        statement(
            "storage.agent.branches:_CREATE",
            case(
                parent_id=LONG_BRANCH + 20, parent_turn=10, previous_id=LONG_BRANCH + 20,
                previous_turn_count=20,
            ),
        ),
        statement(
            "storage.agent.branches:_FIND_POINT",
            case(high=20, turn_number=10),
            case("far back", branch_id=_LARGEST, high=50_000, turn_number=1),
            case("the last of 50,000", branch_id=_LARGEST, high=50_000, turn_number=50_000),
            case("no such turn", branch_id=_LARGEST, high=50_000, turn_number=60_000),
        ),
        statement(
            "storage.agent.branches:_FORK",
            case(
                new_session_id="new", parent_id=LONG_BRANCH + 20, estimated_tokens=0, labels=None,
                total_bytes=1, total_tokens=1, turn_count=10,
            ),
        ),
        statement("storage.agent.branches:_PREVIOUS", case(), case("none", branch_id=1)),
        statement("storage.agent.requests:_INSERT"),
        statement(
            "storage.agent.requests:_INSERT_OR_GET",
            case(),
            case("is there", r_request_id=CREATE_REQUEST),
        ),
        statement(
            "storage.agent.requests:_FIND", case(r_request_id=CREATE_REQUEST), case("none")
        ),
        statement(
            "storage.agent.requests:_FIND_TURN", case(r_request_id=TURN_REQUEST), case("none")
        ),
        statements(
            "storage.agent.sessions:_create",
            Form(
                "with_request_id=False", (case(session_id="new"),), flags={"with_request_id": False}
            ),
            Form(
                "with_request_id=True", (case(session_id="new"),), flags={"with_request_id": True}
            ),
        ),
        statements(
            "storage.agent.sessions:_create_imported", Form("", (case(session_id="new"),), flags={})
        ),
        statements(
            "storage.agent.sessions:_GET",
            *(
                Form(f"context={context}", (case(), case("none", session_id="no")), path=(context,))
                for context in (True, False)
            ),
        ),
        statement("storage.agent.sessions:_LOCK"),
        statement("storage.agent.sessions:_END", case(), case("again", session_id="a5")),
        statement("storage.agent.sessions:_UNDELETE", case(), case("ended", session_id="a5")),
        statement(
            "storage.agent.sessions:_MOVE_HEAD",
            case(
                new_head_branch=2 * LONG_BRANCH + 1, new_turn_count=1, new_total_tokens=1,
                new_estimated_tokens=0, new_total_bytes=1,
            ),
        ),
        statement(
            "storage.agent.changes:_MARKS",
            case(tenants=["default"] * 3, session_ids=["c20", "c50000", "a1"]),
            case("none", tenants=["default"], session_ids=["nobody"]),
        ),
        statement(
            "storage.agent.expiry:EXPIRE",
            case("none is due", size=500),
            case("thousands are due", size=500, before=(_EXPIRING,), limit=MOVED),
        ),
        statement(
            "storage.agent.expiry:PURGE",
            case("none is due", size=500),
            case("thousands are due", size=500, before=(_PURGING,)),
        ),
        statement(
            "storage.agent.expiry:_DELETE_REQUESTS",
            case("none is old", size=1000),
            case("thousands are old", size=1000, before=(_FORGETTING,)),
        ),
        statement(
            "storage.agent.expiry:_OWNERLESS_BRANCHES",
            case(below=2**63 - 1, size=100),
            case("no more", below=1, size=100),
        ),
        statement(
            "storage.agent.expiry:_TRIM",
            case(branches=_OWNERLESS),
            case("of sessions", branches=[SET_ASIDE + 100, 1]),
            case("of 50,000 turns", branches=[_LARGEST], before=(_DISOWNING,)),
            case("that forks continue", branches=_FORKED, before=(_DISOWNING,)),
            case("unknown", branches=[7_000_000_000]),
        ),
        statement("storage.agent.search:_LOCK_STATE"),
        statement("storage.agent.search:_LAST", case(language="english")),
        statement(
            "storage.agent.search:_FILL_ROLES",
            case("all are there", below=2**62, size=500),
            case(
                "many are missing",
                before=("UPDATE llm_search SET agent_role = NULL WHERE turn_id <= 500",),
                below=2**62, size=500, limit=_WORDS,
            ),
        ),
        statement("storage.agent.search:_MOVE_STATE", case(language="english", through=0)),
        statement(
            "storage.agent.search:_LOCK_BATCH",
            case("none is new", through=2**62, to=2**62, size=500, bytes=8 * 1024 * 1024),
            case(
                "many are new", through=0, to=2**62, size=500, bytes=8 * 1024 * 1024,
                limit=Limit(pages=6_000, because="locks the branches of 500 turns"),
            ),
        ),
        statement(
            "storage.agent.search:_ADD",
            case(
                "none is new", through=2**62, to=2**62, language="english", characters=100_000,
            ),
            case(
                "many are new",
                before=("DELETE FROM llm_search WHERE turn_id <= 500",),
                through=0, to=500, language="english", characters=100_000,
                limit=_WORDS,
            ),
        ),
    ),
    AGENT_DEFAULTS,
)  # fmt: skip
