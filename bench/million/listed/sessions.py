"""Reads of sessions: the hot path, look-ups, gauges, the inventory."""

from __future__ import annotations

from itertools import product

from bench.million.listed.known import (
    DEFAULTS,
    NOBODY,
    NOW,
    PAUSED,
    PAUSING,
    VERSION,
)
from bench.million.statements import (
    Form,
    Limit,
    case,
    statement,
    statements,
    with_defaults,
)
from session_service.storage.session.gauges import MOST

_HOT = tuple(
    Form(
        f"named={named}, spec={spec}, asked={asked}",
        (case(), case("no such key", user_id="nobody")),
        flags={"named": named, "spec": spec, "asked": asked},
        values={"asked": "{}"},
    )
    for named, spec, asked in product((False, True), repeat=3)
)
_HALF = "UPDATE containers SET wanted = false WHERE session_id IN (SELECT session_id FROM sessions"

LISTED = with_defaults(
    (
        statements("storage.session.reads:_hot", *_HOT),
        statement("storage.session.reads:_REUSE", case(), case("changed meanwhile", epoch=1)),
        statement("storage.session.reads:_REUSE_WITH_POLICY"),
        statement("storage.session.reads:_LIVE_AT", case(), case("no such key", user_id="nobody")),
        statement(
            "storage.session.reads:_BY_ID", case(), case("no such session", session_id=NOBODY)
        ),
        statement(
            "storage.session.reads:_ANY_TENANT", case(), case("no such session", session_id=NOBODY)
        ),
        statement(
            "storage.session.reads:_TOUCH",
            case(activity="writes"),
            case("paused", session_id=PAUSED, activity=""),
        ),
        statement("storage.session.holds:_LOCKED"),
        statement(
            "storage.session.gauges:_LIVE_AGES",
            case("as many as it counts", most=MOST),
            limit=Limit(pages=MOST + 1_000, because=f"reads the {MOST} oldest live sessions"),
        ),
        statement("storage.session.gauges:_NOW"),
        statement("storage.session.inventory:_APPS"),
        statement("storage.session.inventory:_ENTER", case(), case("new", app="another")),
        statement("storage.session.inventory:_CLAIM_PASS"),
        statement("storage.session.inventory:_BEGIN_PASS_NOW"),
        statement(
            "storage.session.inventory:_TRACKED_IDS",
            case(after=""),
            case("from the middle", after="8"),
            case("the end", after="~"),
            case("no such app", app="another", after=""),
        ),
        statement(
            "storage.session.inventory:_TRACKED",
            case(containers=[f"new{number}" for number in range(200)]),
            case("no such app", app="another", containers=["new0"]),
        ),
        statement("storage.session.inventory:_LABELLED", case(), case("none", ids=[NOBODY])),
        statement("storage.session.inventory:_VERIFY", case(verified_at=NOW)),
        statement(
            "storage.session.inventory:_COUNT",
            case(containers=[f"new{number}" for number in range(20)]),
        ),
        statement("storage.session.inventory:_CLEAR", case(), case("none", number=0)),
        statement(
            "storage.session.inventory:_UNWANTED",
            case(),
            case(
                "thousands are unwanted",
                before=(f"{_HALF} WHERE state = 'PAUSED' LIMIT least(10000, %(count)s / 20))",),
            ),
        ),
        statement(
            "storage.session.inventory:_DESTROYED", case(), case("unknown", session_id=NOBODY)
        ),
        statement(
            "storage.session.events:_AFTER",
            case(after=0),
            case("no more", after=99),
            case("unknown", after=0, session_id=NOBODY),
        ),
        statement("storage.session.choices:_LATEST", case(), case("none", user_id="nobody")),
        statement("storage.policy:_STORED", case(), case("none", user_id="nobody")),
        statement(
            "storage.policy:_WALK",
            case("all are outdated", project_id="nest", version="x", user_id="", slot=""),
            case("none is outdated", project_id="nest", version=VERSION, user_id="", slot=""),
            case("the end", project_id="nest", version=VERSION, user_id="~", slot=""),
        ),
        statement("storage.session.choices:_NOT_STARTED_SINCE", case(start_count=3)),
        statement(
            "storage.session.change:_RENEW",
            case("not owned"),
            case("owned", session_ids=[PAUSING], epochs=[9]),
        ),
    ),
    DEFAULTS,
)
