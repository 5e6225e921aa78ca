"""Statistics, their roll-ups, and the numbers of live sessions."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

from bench.million.listed.known import NEVER, NOW
from bench.million.statements import (
    Form,
    Limit,
    case,
    not_run,
    statement,
    statements,
    with_defaults,
)
from session_service.storage.agent.rollups import SEEN
from session_service.storage.session.gauges import CHUNK
from session_service.storage.session.live_counts import BATCH
from session_service.storage.session.rollup_parts import JOINED
from session_service.storage.session.rollups import LEAST_OF_HOUR
from session_service.storage.session.stats import names

_SENDS = "sends a statement that another place makes"
#: An hour and a day that were rolled up, and what a figure has of them.
_TODAY = NOW.replace(hour=0, minute=0, second=0, microsecond=0)
_HOUR = NOW.replace(minute=0, second=0, microsecond=0)
_DAYS = [_TODAY - timedelta(days=number) for number in range(1, 91)]
_HOURS = [_TODAY - timedelta(days=1) + timedelta(hours=number) for number in range(24)]
_PERIOD = Limit(
    per_row=15, pages=1_500, because="reads the rows of one hour or day, as they are stored"
)
_OPEN = Limit(
    pages=1_200, because="reads the rows since the last hour or day that was rolled up, and no more"
)
_SKIPPED = Limit(
    pages=20_000, because="PostgreSQL skips through the index of projects: a search for each"
)
_EDGES = (
    case("the open hour", start=_HOUR, end=NOW),
    case("two hours", start=NOW - timedelta(hours=2), end=NOW),
    case("nothing", start=NOW - timedelta(days=400), end=NOW - timedelta(days=399)),
)
_RANGES = tuple(
    Form(
        f"of_project={of_project}, exact={exact}, {whose}",
        _EDGES,
        of="_range_statement",
        flags={"of_project": of_project, "exact": exact},
        values={"project_id": project},
        limit=_SKIPPED if exact and not of_project else _OPEN,
        settings=() if of_project or exact else (
            "SET LOCAL enable_indexscan = off", "SET LOCAL enable_indexonlyscan = off",
        ),
        prepared=not exact,
    )
    for (of_project, project, whose), exact in product(
        (
            (True, "nest", "half of all"),
            (True, "project-900", "few"),
            (True, "nowhere", "nothing"),
            (False, None, "all"),
        ),
        (True, False),
    )
)  # fmt: skip
#: A project without a roll-up of any hour of a day: each has less than LEAST_OF_HOUR rows.
_QUIET = Form(
    "of_project=True, a day without roll-ups of its hours",
    (case(start=_TODAY - timedelta(days=1), end=_TODAY),),
    of="_range_statement",
    flags={"of_project": True, "exact": False},
    values={"project_id": "project-2"},
    limit=Limit(
        pages=24 * LEAST_OF_HOUR, because=f"24 hours of less than {LEAST_OF_HOUR} decisions each"
    ),
)
_CHANGED = """INSERT INTO stats_changes (hours, at)
    SELECT 1, date_trunc('hour', now(), 'UTC') - interval '1 hour' * mod(n, 1000)
    FROM generate_series(1, least(10000, %(count)s / 20)) AS n"""
_NO_PARTS = "DELETE FROM stats_rollups WHERE hours = -24"
#: Each hour of yesterday as a part of the day.
_PARTS = """INSERT INTO stats_rollups (tenant, project_id, hours, start_time, figures)
    SELECT tenant, project_id, -24, start_time, figures FROM stats_rollups
    WHERE hours = 1 AND start_time >= date_trunc('day', now(), 'UTC') - interval '1 day'
      AND start_time < date_trunc('day', now(), 'UTC')"""
_NOTES = Limit(pages=200, because="reads the notes of changes, which the pass deletes")
_LIVE_CHANGES = """INSERT INTO live_session_changes (tenant, delta)
    SELECT 'default', 1 FROM generate_series(1, least(10000, %(count)s / 20))"""
_FOLDED = Limit(per_row=3, because=f"adds up to {BATCH} changes, and deletes them")
_TRIMMED = (
    case("nothing is old", before=("UPDATE stats_progress SET trim_time = NULL",)),
    case(
        "all of sixty days",
        before=("UPDATE stats_progress SET trim_time = now() - interval '20 days'",),
    ),
)
_OF_LIVE = "counts the live sessions of a tenant, which a quota limits, once a day"

SESSIONS = with_defaults(
    (
        statement(
            "storage.session.stats:_PROGRESS",
            case(),
            case("thousands of changes", before=(_CHANGED,), limit=_NOTES),
        ),
        statement(
            "storage.session.stats:_ROLLUPS",
            case("90 days", project="nest", days=_DAYS, hours=_HOURS),
            case("90 days of all", project="", days=_DAYS, hours=_HOURS),
            case("none of 90 days", project="nowhere", days=_DAYS, hours=_HOURS),
            limit=Limit(pages=1_000, because="a search for each of 90 days and 24 hours"),
        ),
        statements("storage.session.stats:_add_range", *_RANGES, _QUIET),
        not_run("storage.session.stats:_add_rollups", _SENDS),
        not_run("storage.session.stats:_progress", _SENDS),
        statements(
            "storage.session.rollups:begin",
            Form("where", (case(kept=timedelta(days=90)),), of="_BEGIN"),
            Form(
                "days without rows",
                (case(), case(
                    "no rows at all",
                    before=("TRUNCATE decisions, session_ends, choices CASCADE",),
                )),
                of="_SKIP",
                settings=("SET LOCAL enable_seqscan = off",),
                limit=Limit(pages=4_000, because="three searches for each of 90 days, once"),
            ),
        ),
        statements("storage.session.rollups:_lock", Form("", (case(),), of="_LOCK")),
        not_run("storage.session.rollups:_Locked.execute", _SENDS),
        not_run("storage.session.rollups:_Locked.value", _SENDS),
        statements(
            "storage.session.rollups:_Locked.count",
            Form(
                "the roll-ups before",
                (
                    case("of an hour", hours=1, start=_HOURS[0]),
                    case("of a day", hours=24, start=_DAYS[0]),
                    case("of none", hours=1, start=NEVER),
                ),
                of="_CLEAR",
                settings=("SET LOCAL enable_indexscan = off",),
            ),
            Form(
                "the period",
                (
                    case("an hour", hours=1, least=LEAST_OF_HOUR, start=_HOURS[0], end=_HOURS[1],
                         before=("DELETE FROM stats_rollups WHERE hours = 1",)),
                    case("a day", hours=24, least=1, start=_DAYS[0], end=_TODAY,
                         before=("DELETE FROM stats_rollups WHERE hours = 24",)),
                ),
                of="_of_period",
                arguments=(),
                limit=_PERIOD,
                settings=("SET LOCAL enable_indexscan = off",),
                prepared=False,
            ),
        ),
        statements(
            "storage.session.rollups:_Locked.roll_up",
            Form("the roll-ups before", (case(hours=24, start=_DAYS[0]),), of="_CLEAR"),
        ),
        statements(
            "storage.session.rollups:_Locked.roll_up_again",
            Form("a note", (case(hours=24, start=_DAYS[0]),), of="_NOTE"),
            Form("is it there", (case(note=0), case("of thousands", note=0, before=(_CHANGED,))),
                 of="_IS_NOTED"),
            Form("no more", (case(note=0), case("of thousands", note=0, before=(_CHANGED,))),
                 of="_FORGET_NOTE"),
        ),
        statements(
            "storage.session.rollup_parts:Parts._counted",
            Form(
                "three hours",
                (case(
                    hours=-24, least=1, start=_HOURS[0], end=_HOURS[3], before=(_NO_PARTS,),
                ),),
                of="_of_part",
                arguments=(),
                limit=_PERIOD,
                settings=("SET LOCAL enable_indexscan = off",),
                prepared=False,
            ),
        ),
        statements(
            "storage.session.rollup_parts:Parts._execute",
            Form("begin", (case(parts=-24, start=_DAYS[0], mark="[]"),), of="_BEGIN"),
            Form("move", (case(parts=-24, start=_DAYS[0], mark="[]"),), of="_MOVE"),
            Form("clear", (case(parts=-24, start=_DAYS[0], end=_TODAY),
                           case("many", parts=-24, start=_DAYS[0], end=_TODAY, before=(_PARTS,))),
                 of="_CLEAR"),
        ),
        statements(
            "storage.session.rollup_parts:Parts._one",
            Form("find", (case(parts=-24, start=_DAYS[0]),), of="_FIND"),
            Form(
                "add up",
                (
                    case("none"),
                    case(before=(_PARTS,), limit=Limit(
                        pages=60 * JOINED,
                        because="deletes the parts of up to 500 projects, and stores their sums",
                    )),
                ),
                of="_JOIN",
                values={
                    "parts": -24, "hours": 24, "start": _DAYS[0], "end": _TODAY, "most": JOINED,
                    "least": 1,
                },
                settings=("SET LOCAL enable_indexscan = on",),
            ),
        ),
        statements(
            "storage.session.rollups:_Locked.note_day",
            Form(
                "",
                (case(day=_DAYS[0]), case("among thousands", day=_DAYS[0], before=(_CHANGED,))),
                of="_NOTE_DAY",
                limit=_NOTES,
            ),
        ),
        statements(
            "storage.session.rollups:roll_up_hour", Form("", (case(end=_HOUR),), of="_HOURS_END")
        ),
        statements(
            "storage.session.rollups:roll_up_day", Form("", (case(end=_TODAY),), of="_DAYS_END")
        ),
        statements(
            "storage.session.rollups:roll_up_late_hour",
            Form("next", (case(), case("of thousands", before=(_CHANGED,))), of="_LATE_HOUR"),
            Form(
                "forget",
                (
                    case(hours=1, start=_HOUR),
                    case("of thousands", hours=1, start=_HOUR, before=(_CHANGED,)),
                ),
                of="_FORGET",
                limit=_NOTES,
            ),
        ),
        statements(
            "storage.session.rollups:roll_up_late_day",
            Form(
                "next",
                (case(), case("none of thousands", before=(_CHANGED,))),
                of="_LATE_DAY",
                limit=_NOTES,
            ),
        ),
        statements(
            "storage.session.rollups:recount",
            Form("checked", (case(end=_HOUR),), of="_CHECKED"),
            Form(
                "digest",
                (case(hours=1, start=_HOURS[0]), case("none", hours=1, start=NEVER)),
                of="_DIGEST",
                settings=("SET LOCAL enable_indexscan = off",),
            ),
            Form(
                "noted",
                (case(start=_HOUR), case("none of thousands", start=NEVER, before=(_CHANGED,))),
                of="_NOTED",
                limit=_NOTES,
            ),
        ),
        statement("storage.session.rollups:_NOTE_TRIM", case(age=timedelta(days=90))),
        statement("storage.session.rollups:_TRIM", *_TRIMMED),
        statement(
            "storage.claims:_CLAIM",
            case(hold=timedelta(minutes=1)),
            case("a new one", name="another", hold=timedelta(minutes=1)),
        ),
        statement("storage.claims:_RELEASE"),
        statement(
            "storage.session.live_counts:COUNT",
            case(),
            case("no such tenant", tenant="nobody"),
            case(
                "thousands of changes",
                before=(_LIVE_CHANGES,),
                limit=Limit(pages=200, because="reads the changes of the last ten seconds"),
            ),
        ),
        statements(
            "storage.session.live_counts:fold",
            *(
                Form(
                    name,
                    (case("none"), case("thousands of changes", before=(_LIVE_CHANGES,))),
                    of=name,
                    limit=_FOLDED,
                )
                for name in ("_MAKE_ROWS", "_LOCK_ROWS")
            ),
            Form(
                "_FOLD",
                (case("none"), case("thousands of changes", before=(_LIVE_CHANGES,))),
                of="_FOLD",
                values={"tenants": ["default"]},
                limit=_FOLDED,
            ),
        ),
        statements(
            "storage.session.live_counts:recount",
            Form("", (case(), case("due", before=(
                "UPDATE live_session_counts SET check_time = now() - interval '2 d'",
            ))), of="_DUE"),
        ),
        statements(
            "storage.session.live_counts:_recount", Form("", (case(),), of="_LOCK_ROW")
        ),
        statement(
            "storage.session.live_counts:_RECOUNT",
            case(limit=Limit(pages=25_000, because=_OF_LIVE)),
            case("no such tenant", tenant="nobody"),
        ),
        statement("storage.session.gauges:_KEEP", case(counts='{"overaged": 0}')),
        statements(
            "storage.session.gauges:_count_by_state",
            Form(
                "",
                (
                    case("the first chunk", time="-infinity", session_id="0" * 32),
                    case("the last", time=NEVER, session_id="0" * 32),
                ),
                of="_CHUNK",
                limit=Limit(pages=CHUNK + 1_000, because=f"counts {CHUNK} live sessions at once"),
            ),
        ),
    ),
    {
        "tenant": "default",
        "name": "sessions",
        "most": 5_000,
        "indexscan": "off",
        "project_id": None,
        **names(),
    },
)  # fmt: skip
_SPANS = (
    case("the open day", start=_TODAY, end=NOW),
    case("two days", start=NOW - timedelta(days=2), end=NOW),
    case("nothing", start=NOW - timedelta(days=400), end=NOW - timedelta(days=300)),
)
_SUMMED = (
    case("90 days", days=_DAYS),
    case("none", days=[NEVER]),
)
_OF_DAY = Limit(pages=5_000, because="reads the sessions that were created on one day or two")
_LATE_AGENTS = """INSERT INTO llm_stats_changes (tenant, start_time)
    SELECT 'default', date_trunc('day', now(), 'UTC') - interval '1 day' * mod(n, 80)
    FROM generate_series(1, least(10000, %(count)s / 20)) AS n"""

AGENTS = with_defaults(
    (
        statements(
            "storage.agent.stats:_FROM_ROWS",
            *(
                Form(
                    f"of_role={of_role}", _SPANS, path=(of_role,), limit=_OF_DAY, prepared=False
                )
                for of_role in (True, False)
            ),
        ),
        statements(
            "storage.agent.stats:_FROM_ROLLUPS",
            *(
                Form(
                    f"of_role={of_role}", _SUMMED, path=(of_role,), prepared=False,
                    limit=Limit(pages=1_000, because="a search for each of 90 days"),
                )
                for of_role in (True, False)
            ),
        ),
        not_run("storage.agent.stats:_rows", _SENDS),
        statements(
            "storage.agent.stats:stats",
            Form(
                "",
                (case(), case("thousands of changes", before=(_LATE_AGENTS,), limit=_NOTES)),
                of="_PROGRESS",
            ),
        ),
        statements("storage.agent.rollups:begin", Form("", (case(),), of="_BEGIN")),
        not_run("storage.agent.rollups:_row", _SENDS),
        statements(
            "storage.agent.rollups:roll_up_day",
            Form("next", (case(),), of="_LOCK"),
            Form("the roll-ups before", (case(start=_DAYS[0]),), of="_CLEAR_DAY"),
            Form("how far", (case(end=_TODAY),), of="_DAYS_END"),
        ),
        statements(
            "storage.agent.rollups:_roll_up",
            Form("the roll-ups before", (case(start=_DAYS[0]),), of="_CLEAR"),
        ),
        statements(
            "storage.agent.rollups:_count",
            *(
                Form(
                    f"the day: {of}",
                    (case(before=("DELETE FROM llm_stats_rollups WHERE tenant = 'default'",)),),
                    of=of,
                    values={"day": _DAYS[0], "start": _DAYS[0], "end": _TODAY},
                    limit=_OF_DAY,
                    prepared=False,
                )
                for of in ("_ROLL_UP_DAY", "_ROLL_UP")
            ),
        ),
        statements(
            "storage.agent.rollups:roll_up_late",
            Form("next", (case(), case("of thousands", before=(_LATE_AGENTS,))), of="_LATE"),
            Form(
                "forget",
                (
                    case(start=_DAYS[0]),
                    case("of thousands", start=_DAYS[0], before=(_LATE_AGENTS,)),
                ),
                of="_FORGET",
                limit=_NOTES,
            ),
        ),
        statements(
            "storage.agent.rollups:roll_up_seen",
            Form("since", (case(),), of="_SINCE"),
            Form(
                "days",
                (
                    case(since=NOW - timedelta(minutes=7)),
                    case("after an hour", since=NOW - timedelta(hours=1)),
                    case("after eighty days", since=NOW - timedelta(days=80)),
                    case(
                        "the end of eighty days", since=NOW - timedelta(days=80), tenant="default",
                        seen=NOW - timedelta(minutes=9),
                    ),
                ),
                of="_SEEN",
                values={
                    "start": NOW - timedelta(days=80), "end": _TODAY,
                    "tenant": "", "seen": NEVER, "id": "", "most": SEEN,
                },
                prepared=False,
                limit=Limit(pages=SEEN + 500, because=f"up to {SEEN} sessions with a turn"),
            ),
            Form("until", (case(time=NOW),), of="_SEEN_UNTIL"),
        ),
    ),
    {"tenant": "default", "agent_role": "role-1"},
)  # fmt: skip

LISTED = (*SESSIONS, *AGENTS)
