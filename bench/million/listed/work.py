"""Writes of sessions: openings, changes, claims, policies."""

from __future__ import annotations

from datetime import timedelta

from bench.million.listed.known import (
    APP,
    BOUND_TO,
    DEFAULTS,
    DUE_AT,
    INSTALLATION,
    LONG_ENDED,
    LOOKED_UP,
    MANY,
    MOVED,
    NEVER,
    NOBODY,
    PAUSED,
    PAUSING,
    POLICY,
    REVIVABLE,
    THEIR_DUE,
    THEIR_EPOCHS,
)
from bench.million.statements import (
    Form,
    Limit,
    Lookup,
    case,
    statement,
    statements,
    with_defaults,
)
from session_service.domain.states import State
from session_service.storage.session.change import NOW, Change, Now, Plus, Terms, parameters, shape
from session_service.storage.session.forgetting import SCAN

_TERMS = Terms(NOBODY, timedelta(seconds=10), timedelta(minutes=2)).values()
_OPENED: dict[str, object] = {
    "session_id": NOBODY,
    "tenant": "default",
    "project_id": "nest",
    "user_id": "new",
    "slot": "default",
    "state": "STARTING",
    "generation": 1,
    "epoch": 1,
    "transition": "START",
    "wish": None,
    "decision_id": NOBODY,
    "predecessor_id": None,
    "spec": '{"image": "roost/counter"}',
    "fingerprint": "f",
    "policy": POLICY,
    "checkpoint_id": None,
}


def _change(name: str, change: Change, session: object = None) -> Form:
    """A change of a session, of this shape; and the same of one that has changed meanwhile."""
    decided = change.decision if change.decision_id is not None else {}
    values: dict[str, object] = {
        **parameters(change.session, "s_"),
        **parameters(change.container, "c_"),
        **parameters(decided, "d_"),
    }
    if decided:
        values["d_id"] = DEFAULTS["decision_id"]
    if change.idle_for is not None:
        values["idle_for"] = change.idle_for
    if session is not None:
        values["session_id"] = session
    return Form(
        name,
        (case(), case("changed meanwhile", epoch=1)),
        arguments=(shape(change.session), shape(change.container), shape(decided)),
        flags={
            "advance": change.advance,
            "appends_event": change.appends_event,
            "idle": change.idle_for is not None,
            "end": change.end,
        },
        values=values,
    )


_CHANGES = (
    _change("a note", Change(NOBODY, 9, {"activity": "writes"}, advance=False)),
    _change("a new container", Change(NOBODY, 9, {"generation": Plus()}, advance=False)),
    _change("a hold", Change(
        NOBODY, 9, {"holds": "{}", "hold_until": NEVER, "due_at": NOW}, advance=False, event="HOLD",
    )),
    _change("an idle pause", Change(
        NOBODY, 9,
        {**_TERMS, "state": State.PAUSING, "transition": "PAUSE", "prior_state": State.ACTIVE},
        idle_for=timedelta(0),
    )),
    _change("a start that came up", Change(
        NOBODY, 9,
        {"state": State.ACTIVE, "transition": None, "start_time": NOW, "verified_at": NOW,
         "due_at": Now(timedelta(minutes=30)), "start_count": Plus()},
        {"state": "STARTED", "region": "iad", "boot_id": "b", "start_time": NOW},
        {"outcome": "RESUMED", "finish_time": NOW},
        NOBODY,
    )),
    _change("an end", Change(
        NOBODY, 9,
        {"state": State.ENDED, "transition": None, "end_time": NOW, "purge_time": NOW,
         "end_reason": "REQUESTED", "due_at": NOW},
        {"state": "SUSPENDED"},
        {"finish_time": NOW},
        NOBODY,
    )),
    _change(
        "an undelete",
        Change(NOBODY, 9, {"state": State.PAUSED, "end_time": None, "end_reason": None}),
        REVIVABLE,
    ),
)  # fmt: skip
_DUE = """UPDATE sessions SET due_at = now() - interval '1 second' * mod(epoch, 10) WHERE session_id
    IN (SELECT session_id FROM sessions WHERE state = 'PAUSED' LIMIT least(10000, %(count)s / 20))
"""
_ENDED_DUE = """UPDATE sessions SET due_at = now() - interval '1 second' * mod(epoch, 10)
    WHERE session_id IN (
        SELECT session_id FROM sessions WHERE state = 'ENDED' LIMIT least(10000, %(count)s / 20))"""
_MANY_DUE = f"UPDATE sessions SET due_at = now() WHERE session_id = ANY(({MANY.sql})::uuid[])"
#: Those that are due are sorted, and 16 of them claimed.
_MOVED_OF_MANY = Limit(pages=3_000, because="reads 100 sessions, and moves 16 of them")
_FOUND = Limit(pages=SCAN * 2, because=f"reads the {SCAN} sessions that are due for longest")
_SPREADING = "UPDATE policies SET spread_until = now() WHERE project_id <= 'planned-2'"

LISTED = with_defaults(
    (
        statements(
            "storage.session.commit:_insert_session",
            Form(
                "",
                (
                    case(),
                    case("the key is taken", s_project_id="nest", s_user_id="u0"),
                ),
                arguments=(shape(_TERMS),),
                values={
                    **{f"s_{name}": value for name, value in _OPENED.items()},
                    **parameters(_TERMS, "s_"),
                },
            ),
        ),
        statement(
            "storage.session.commit:_INSERT_CONTAINER",
            case(c_session_id=PAUSED, c_generation=3, c_name="new", c_app=APP, c_state="CREATING"),
        ),
        statement("storage.session.commit:_LOCK"),
        statements("storage.session.change:_statement", *_CHANGES),
        statement(
            "storage.session.change:_CLAIM",
            case("not yet", session_id=PAUSING),
            case(
                "the lease is over",
                session_id=PAUSING,
                before=("UPDATE sessions SET lease_until = now() WHERE state = 'PAUSING'",),
            ),
        ),
        statement(
            "storage.session.due:_CLAIM",
            case("none is due", hold=timedelta(seconds=30)),
            case(
                "thousands are due",
                hold=timedelta(seconds=30),
                most=16,
                before=(_DUE,),
                limit=MOVED,
            ),
        ),
        statement(
            "storage.session.due:_CLAIM_THESE",
            case("none is due", ids=MANY, most=16, hold=timedelta(seconds=30)),
            case(
                "all are due",
                ids=MANY,
                most=16,
                hold=timedelta(seconds=30),
                before=(_MANY_DUE,),
                limit=_MOVED_OF_MANY,
            ),
            case(
                "others are due",
                ids=MANY,
                most=16,
                hold=timedelta(seconds=30),
                before=(_DUE,),
                limit=LOOKED_UP,
            ),
        ),
        statement(
            "storage.session.forgetting:_FIND",
            case("none is due"),
            case("thousands of others are due", before=(_DUE,), limit=_FOUND),
            case("thousands are due", before=(_ENDED_DUE,), limit=_FOUND),
        ),
        statement(
            "storage.session.forgetting:_FORGET",
            case(ids=LONG_ENDED, epochs=THEIR_EPOCHS),
            case("not ended", limit=LOOKED_UP),
        ),
        statement(
            "storage.session.forgetting:_KEPT",
            case(
                ids=LONG_ENDED,
                limit=Limit(pages=2_500, because="reads both containers of a thousand sessions"),
            ),
            case("unknown", ids=[NOBODY]),
        ),
        statement(
            "storage.session.forgetting:_DEFER",
            case(found=THEIR_DUE, times=THEIR_DUE, ids=LONG_ENDED, epochs=THEIR_EPOCHS),
            case("due otherwise", found=[NEVER], times=[NEVER], limit=LOOKED_UP),
        ),
        statement(
            "storage.session.due:_DEFER",
            case(claimed=DUE_AT, due_at=NEVER),
            case("changed meanwhile", claimed=NEVER, due_at=NEVER),
        ),
        statement(
            "storage.session.due:_BEGIN",
            case(saved=None, tried=None, due_at=NEVER),
            case("another was first", saved=NEVER, tried=None, due_at=NEVER),
        ),
        statement(
            "storage.policy:_INSERT",
            case(setting="{}", spec=None, project_id="new"),
            case("is there", setting="{}", spec=None, project_id="planned-1"),
        ),
        statement(
            "storage.policy:_UPDATE",
            case(setting="{}", spec=None, project_id="planned-1", version=1),
            case("changed meanwhile", setting="{}", spec=None, project_id="planned-1", version=7),
        ),
        statement("storage.policy:_PREFER", case(preference="ASK")),
        statement("storage.policy:_SET_TIER", case(tier="paid", tenant="tenant-1")),
        statement(
            "storage.policy:_CHANGED",
            case("nothing changed"),
            case("policies changed", before=(_SPREADING,)),
            case(
                "the tier of the large tenant changed",
                before=(
                    "INSERT INTO tiers VALUES ('default', 'paid', now(), now() + interval '1 h')",
                ),
            ),
        ),
        statement("storage.policy:_REPLACE", case(ids=MANY, old=POLICY, new=POLICY), limit=MOVED),
        statements(
            "storage.policy:_FINISH_SPREADS",
            Form("policies", (case("none"), case(before=(_SPREADING,))), path=(0,)),
            Form("tiers", (case("none"),), path=(1,)),
        ),
        statement(
            "storage.installation:_READ",
            limit=Limit(pages=100, because="looks the database up in a catalog of all databases"),
        ),
        statement(
            "storage.installation:_CLAIM",
            case(installation_id=INSTALLATION, bound_to=BOUND_TO),
            case(
                "bound elsewhere",
                installation_id=INSTALLATION,
                bound_to=Lookup("SELECT 'elsewhere'"),
            ),
        ),
    ),
    DEFAULTS,
)
