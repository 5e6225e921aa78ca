"""Decisions, choices, and the trimming of what is too old."""

from __future__ import annotations

from datetime import timedelta

from bench.million.listed.known import (
    AGE_OF_ALL,
    AGE_OF_NONE,
    DEFAULTS,
    NOBODY,
    NOW,
    REQUEST,
)
from bench.million.statements import (
    Form,
    Limit,
    case,
    statement,
    statements,
    with_defaults,
)

#: What the retention pass deletes at once.
_BATCH = 5000
_AGES = {
    "nothing is old": AGE_OF_NONE,
    "everything is old": AGE_OF_ALL,
    "only the oldest are old": timedelta(days=79, hours=23),
}
_TRIMMED = tuple(case(name, age=age, most=_BATCH) for name, age in _AGES.items())
#: What the statistics count: the pass says from before which time.
_COUNTED = tuple(case(name, older_than=NOW - age, most=_BATCH) for name, age in _AGES.items())

LISTED = with_defaults(
    (
        statements(
            "storage.session.decisions:_INSERT",
            Form("finished", (case(), case("of no project", d_session_id=None)), path=(True,)),
            Form("in flight", (case(),), path=(False,)),
        ),
        statement("storage.session.decisions:_BY_ID", case(), case("none", decision_id=NOBODY)),
        statement(
            "storage.session.decisions:_BY_REQUEST",
            case(method="StartSession", request_id=REQUEST),
            case("new", method="StartSession", request_id=NOBODY),
        ),
        statement("storage.session.decisions:_FREE"),
        statement("storage.session.decisions:_REPLAYED"),
        statement("storage.session.decisions:_TRIM", *_COUNTED),
        statements(
            "storage.session.decisions:_PAGES",
            *(
                Form(
                    f"of_session={of_session}, after={after}",
                    (case(), case("none", session_id=NOBODY, last=NOBODY)),
                    path=((of_session, after),),
                    values={"last": DEFAULTS["decision_id"]},
                )
                for of_session in (True, False)
                for after in (True, False)
            ),
        ),
        statement("storage.session.events:_TRIM", *_TRIMMED),
        statement(
            "storage.session.stats:_TRIM",
            *_COUNTED,
            limit=Limit(
                pages=3_000,
                because="PostgreSQL 18 may skip through the projects' index: a descent for each",
            ),
        ),
        statement("storage.session.choices:_TRIM", *_COUNTED),
        statement(
            "storage.session.choices:_TRIM_OFFERS",
            case("none has expired", most=_BATCH),
            case(
                "all have expired",
                before=("UPDATE choice_tokens SET expire_time = now() - interval '3 days'",),
                most=_BATCH,
            ),
        ),
        statement(
            "storage.session.choices:_OFFER",
            case(
                token_hash=bytes(32), choice="CONTINUE", start_count=3, expected_continuity=4,
                checkpoint_id=None, offered="[]", valid=timedelta(minutes=10),
            ),
        ),
        statement(
            "storage.session.choices:_FIND", case(), case("unknown", token_hash=bytes(32))
        ),
        statement("storage.session.choices:_USE", case(), case("unknown", token_hash=bytes(32))),
        statement("storage.session.choices:_DELETE_EARLIER_CHOICE"),
        statement(
            "storage.session.choices:_CHOSE",
            case(
                decision_id=NOBODY, choice="CONTINUE", checkpoint_id=None, offered="[]",
                asked=True, remember=False,
            ),
        ),
        statement(
            "storage.session.choices:_WAITS",
            limit=Limit(pages=2_500, because="reads the 2,000 newest decisions, to find reuses"),
        ),
    ),
    DEFAULTS,
)  # fmt: skip
