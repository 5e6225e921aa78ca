"""The five figures: equal to a plain recount of the rows, quick, and right about real sessions."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import grpc
import psycopg
import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from bench import stats as filling
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service import janitor
from session_service.domain.figures import Day, Figures, Latency, Span, Started, Tries
from session_service.domain.session import AttemptResult, Outcome, Rung
from session_service.figures.stats import Stats
from session_service.rpc.times import timestamp
from session_service.storage.database import Database
from session_service.storage.migrate import engine_url, upgrade
from tests.container.harness import failing
from tests.session.ageing import IDLE, due, kept, quiet, sql
from tests.session.harness import TIMEOUT, Replica, World, request_id
from tests.session.test_choices import offered, policies
from tests.session.test_process import NOWHERE, launch, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from pathlib import Path

#: ROOST_STATS_ROWS=1000000 is the size that the promise about speed is about.
ROWS = int(os.environ.get("ROOST_STATS_ROWS", "20000"))
FULL = 1_000_000
MOST_MS = 200.0
DAY = timedelta(days=1)
STARTS = ("StartSession", "ResumeSession")
Row = dict[str, Any]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on the test's own database."""
    async with Database(database_url, max_size=2) as opened:
        yield opened


# --- a recount by other means -------------------------------------------------------------------


async def all_rows(url: str, table: str) -> list[Row]:
    """Every row of a table. Any: columns of every type."""
    async with (
        await psycopg.AsyncConnection.connect(url) as connection,
        connection.cursor(row_factory=psycopg.rows.dict_row) as cursor,
    ):
        await cursor.execute(f"SELECT * FROM {table}".encode())
        return await cursor.fetchall()


def percentile(took: list[timedelta], part: float) -> timedelta:
    """The smallest that so large a part is at most."""
    return sorted(took)[max(0, math.ceil(part * len(took)) - 1)]


def started(rows: Iterable[Row]) -> dict[Outcome, Started]:
    """Answered starts by outcome, with their latencies."""
    took: dict[Outcome, list[timedelta]] = defaultdict(list)
    for row in rows:
        took[Outcome(row["outcome"])].append(row["finish_time"] - row["create_time"])
    return {
        outcome: Started(
            len(times),
            None
            if outcome is Outcome.REUSED
            else Latency(*(percentile(times, part) for part in (0.5, 0.95, 0.99))),
        )
        for outcome, times in took.items()
    }


def midnight(time: datetime) -> datetime:
    """The beginning of its day, by UTC."""
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def within(rows: list[Row], span: Span, column: str) -> list[Row]:
    """Those of the span."""
    return [
        row
        for row in rows
        if row["tenant"] == span.tenant
        and span.project_id in (None, row["project_id"])
        and span.start <= row[column] < span.end
    ]


def check(figures: Figures, decisions: list[Row], ends: list[Row]) -> None:
    """Compare with what a plain count of all rows gives."""
    span = figures.span
    mine = within(decisions, span, "create_time")
    starts = [row for row in mine if row["method"] in STARTS]
    fine = [row for row in starts if row["error"] is None and row["outcome"] is not None]
    answered = [row for row in fine if not row["joined"]]
    assert figures.whole.outcomes == started(answered)
    assert figures.whole.starts == len(answered)
    reused = sum(row["outcome"] == "REUSED" for row in answered)
    assert figures.whole.reuse_rate == (reused / len(answered) if answered else 0)
    assert figures.joins == sum(row["joined"] for row in fine)
    assert figures.replays == sum(row["replay_count"] for row in starts)
    refused = [row["error"]["reason"] for row in starts if row["error"] is not None]
    assert figures.refusals == Counter(refused)

    tried: dict[Rung, Tries] = {}
    creations: Counter[datetime] = Counter()
    for row in mine:
        for rung, result, *_ in [] if row["joined"] else row["attempts"]:
            tried.setdefault(Rung(rung), Tries()).add(AttemptResult(result), 1)
            creations[midnight(row["create_time"])] += (
                rung in ("CREATE", "RESTORE") and result != "FAILED"
            )
    assert figures.rungs == tried
    assert figures.whole.creations == creations.total()
    assert figures.creations_per_hour == creations.total() / span.hours

    by_day: dict[datetime, list[Row]] = defaultdict(list)
    for row in answered:
        by_day[midnight(row["create_time"])].append(row)
    days = sorted({*by_day, *(day for day in creations if creations[day])})
    assert figures.days == [Day(day, started(by_day[day]), creations[day]) for day in days]

    over = within(ends, span, "end_time")
    assert figures.ends == Counter(row["reason"] for row in over)
    lived = [row["lifetime"] for row in over if row["lifetime"] is not None]
    average = sum(lived, timedelta(0)) / len(lived) if lived else None
    assert figures.average_lifetime == average


async def at_midnight(url: str, now: datetime) -> None:
    """Let some of the project's reuses come in the very moment in which a day begins."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE decisions SET create_time = %(time)s, finish_time = %(time)s WHERE decision_id"
            " IN (SELECT decision_id FROM decisions WHERE outcome = 'REUSED' AND project_id ="
            " 'nest' AND create_time > %(time)s - interval '1 day' LIMIT 3)",
            {"time": midnight(now - 2 * DAY)},
        )


def between_reuses(decisions: list[Row]) -> Span:
    """From the moment of one of the project's reuses to that of a later one."""
    times = sorted(
        row["create_time"]
        for row in decisions
        if row["outcome"] == "REUSED" and row["project_id"] == "nest" and not row["joined"]
    )
    return Span("default", "nest", times[-200], times[-10])


@pytest.mark.timeout(600)
async def test_the_figures_equal_a_plain_recount(database: Database, database_url: str) -> None:
    """Of a project and of all, of whole and of odd spans, of an empty one; quick at full size."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    now = datetime.now(UTC)
    await filling.fill(database_url, ROWS, seed, now)
    await at_midnight(database_url, now)
    decisions = await all_rows(database_url, "decisions")
    ends = await all_rows(database_url, "session_ends")
    stats = Stats(database)
    odd = timedelta(days=2, hours=5, microseconds=333)
    spans = {
        **filling.spans(now),
        "some hours": Span("default", "nest", now - odd, now - odd + timedelta(hours=7)),
        "across midnights": Span("default", "project-3", now - 30 * DAY, now - odd),
        "from a reuse to a reuse": between_reuses(decisions),
        "another tenant": Span("other", None, now - 40 * DAY, now),
        "nothing": Span("default", "nobody's", now - 40 * DAY, now),
        "the future": Span("default", None, now + DAY, now + 2 * DAY),
    }
    for name, span in spans.items():
        began = perf_counter()
        figures = await stats.figures(span)
        print(f"{name}: {figures.whole.starts} starts, {(perf_counter() - began) * 1000:.0f} ms")
        check(figures, decisions, ends)
    if ROWS >= FULL:
        took = min(await filling.measure(stats, spans["one project, the week"]))
        assert took <= MOST_MS


# --- real sessions --------------------------------------------------------------------------------


async def figures_of(
    replica: Replica, project_id: str = "nest", back: timedelta = timedelta(hours=1)
) -> rpc_pb.GetSessionStatsResponse:
    """GetSessionStats of the time until now."""
    now = datetime.now(UTC) + timedelta(minutes=1)
    request = rpc_pb.GetSessionStatsRequest(
        project_id=project_id, from_time=timestamp(now - back), to_time=timestamp(now)
    )
    return await replica.stub.GetSessionStats(request, timeout=TIMEOUT)


def rungs(answer: rpc_pb.GetSessionStatsResponse) -> dict[str, tuple[int, int, int]]:
    """By rung: tried, succeeded, degraded."""
    return {
        pb.Rung.Name(row.rung).removeprefix("RUNG_"): (
            row.attempt_count,
            row.success_count,
            row.degraded_count,
        )
        for row in answer.recovery
    }


def by_outcome(answer: rpc_pb.GetSessionStatsResponse) -> dict[str, int]:
    """How many starts had each outcome."""
    return {
        pb.StartOutcome.Name(row.outcome).removeprefix("START_OUTCOME_"): row.start_count
        for row in answer.outcomes
    }


async def test_what_sessions_did_is_counted(roost: World) -> None:
    """Each call once and as what it was; of another project nothing."""
    one = roost.one
    session = (await one.start("wren")).session
    for _ in range(3):
        await one.start("wren")
    await one.pause(session.session_id)
    again = request_id()
    for replica in (roost.one, roost.two, roost.one):
        await replica.start("wren", request_id=again)
    with pytest.raises(grpc.aio.AioRpcError):
        await one.start("wren", mode=pb.START_MODE_FAIL_IF_LIVE)
    await one.resume(session.session_id)

    found = await figures_of(one)
    assert by_outcome(found) == {"REUSED": 4, "RESUMED": 1, "CREATED": 1}
    assert found.start_count == 6
    assert found.reuse_rate == pytest.approx(4 / 6)
    assert (found.join_count, found.replay_count) == (0, 2)
    assert dict(found.refusal_counts) == {"LIVE_SESSION_EXISTS": 1}
    assert rungs(found) == {"RESUME": (1, 1, 0), "CREATE": (1, 1, 0)}
    assert found.container_creation_count == 1
    assert found.container_creations_per_hour == 1.0
    assert not found.HasField("average_lifetime")
    latencies = {row.outcome: row for row in found.outcomes}
    assert not latencies[pb.START_OUTCOME_REUSED].HasField("latency_p50")
    created = latencies[pb.START_OUTCOME_CREATED]
    assert timedelta(0) < created.latency_p50.ToTimedelta() < timedelta(seconds=15)
    assert created.latency_p50 == created.latency_p99
    assert sum(day.start_count for day in found.days) == 6
    assert found.current.oldest_live_age.ToTimedelta() > timedelta(0)

    assert (await figures_of(one, "elsewhere")).start_count == 0
    assert (await figures_of(one, "")).start_count == 6


async def test_joiners_are_apart(roost: World) -> None:
    """One leads and creates; who waits with it is neither a start nor a creation more."""
    await asyncio.gather(*(replica.start("wren") for replica in [roost.one, roost.two] * 4))
    found = await figures_of(roost.one)
    assert found.container_creation_count == 1
    assert by_outcome(found)["CREATED"] == 1
    assert found.join_count + found.start_count == 8
    assert rungs(found) == {"CREATE": (1, 1, 0)}


async def test_what_users_choose_is_counted(roost: World) -> None:
    """Asked, and by the preference that they gave; being asked is told among the refusals."""
    one = roost.one
    asks = pb.Policy(persistence=pb.Policy.PERSISTENCE_ASK)
    request = policy_pb.UpdateProjectPolicyRequest(project_id="nest", policy=asks)
    await policies(roost).UpdateProjectPolicy(request, timeout=TIMEOUT)
    await one.stop((await one.start()).session.session_id)
    token = (await offered(one.start()))[rpc_pb.CHOICE_CONTINUE].choice_token
    back = await one.start(choice_token=token)
    await one.stop(back.session.session_id)
    token = (await offered(one.start()))[rpc_pb.CHOICE_FRESH].choice_token
    await one.start(choice_token=token, remember=True)
    await one.start()
    found = await figures_of(one)
    assert (found.chose_continue_count, found.chose_new_count) == (1, 1)
    assert (found.auto_continue_count, found.auto_new_count) == (0, 1)
    assert dict(found.refusal_counts) == {"CHOICE_REQUIRED": 2}
    assert (await figures_of(one, "elsewhere")).chose_new_count == 0


async def ends(replica: Replica) -> dict[str, str]:
    """The rows of ends: session id and reason."""
    rows = await sql(replica, "SELECT session_id::text, reason FROM session_ends")
    return {str(session_id): str(reason) for session_id, reason in rows}


async def test_every_end_leaves_a_row_that_outlives_the_session(roost: World) -> None:
    """A call's, a FRESH start's, the keeper's; an undelete takes it back; a purge adds none."""
    one = roost.one
    ended = (await one.start("wren")).session
    await one.end(ended.session_id)
    replaced = (await one.start("robin")).session
    fresh = (await one.start("robin", mode=pb.START_MODE_FRESH)).session
    expired = (await one.start("finch")).session
    await one.pause(expired.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    await sql(one, "UPDATE sessions SET pause_time = now() - interval '31 days' WHERE user_id = %s",
              "finch")  # fmt: skip
    await due(roost, expired)
    await kept(one)
    await roost.until_state(replaced.session_id, pb.Session.STATE_ENDED)
    await roost.until_state(expired.session_id, pb.Session.STATE_ENDED)
    assert await ends(one) == {
        ended.session_id: "REQUESTED",
        replaced.session_id: "REPLACED",
        expired.session_id: "EXPIRED",
    }
    await sql(one, "UPDATE session_ends SET lifetime = interval '10 minutes'")
    found = await figures_of(one)
    assert dict(found.end_counts) == {"REQUESTED": 1, "REPLACED": 1, "EXPIRED": 1}
    assert found.average_lifetime.ToTimedelta() == timedelta(minutes=10)

    await one.undelete(ended.session_id)
    assert ended.session_id not in await ends(one)
    await one.end(ended.session_id, now=True)
    await one.end(fresh.session_id, now=True)
    assert len(await ends(one)) == 4
    (before,) = await sql(one, "SELECT max(end_time) FROM session_ends")
    await sql(one, "UPDATE sessions SET purge_time = now() - interval '1 hour'")
    await due(roost, replaced, expired)
    await kept(one)
    assert await sql(one, "SELECT max(end_time) FROM session_ends") == [before]

    starts = (await figures_of(one)).start_count
    await sql(one, "DELETE FROM sessions")
    found = await figures_of(one)
    assert dict(found.end_counts) == {"REQUESTED": 2, "REPLACED": 1, "EXPIRED": 1}
    assert found.start_count == starts == 4


async def test_a_session_that_never_stood_has_not_lived(roost: World) -> None:
    """It is told among the ends, and is no part of the average."""
    await roost.admin.set_fault("capacity", action="create", times=None)
    failure = await failing(roost.one.start("wren"))
    assert failure.reason == "PROVIDER_CAPACITY"
    (session_id,) = await sql(roost.one, "SELECT session_id::text FROM sessions")
    await roost.one.end(session_id[0])
    found = await figures_of(roost.one)
    assert dict(found.end_counts) == {"REQUESTED": 1}
    assert not found.HasField("average_lifetime")
    assert dict(found.refusal_counts) == {"PROVIDER_CAPACITY": 1}
    assert (found.start_count, found.container_creation_count) == (0, 0)
    assert rungs(found)["CREATE"][1:] == (0, 0)


async def test_what_ends_by_its_policy_leaves_a_row(roost: World) -> None:
    """The keeper's idle pause of a session that keeps nothing over one."""
    policy = pb.Policy(persistence=pb.Policy.PERSISTENCE_EPHEMERAL)
    policy.idle_timeout.FromTimedelta(IDLE)
    session = (await roost.one.start("wren", policy=policy)).session
    await quiet(roost, session)
    await kept(roost.one)
    assert await ends(roost.one) == {session.session_id: "EPHEMERAL"}


async def test_ends_go_when_their_time_is_over(database: Database, database_url: str) -> None:
    """With the decisions, by the janitor."""
    await filling.fill(database_url, 2000, 1, datetime.now(UTC))
    tidied = await janitor.tidy(database, DAY, timedelta(days=7, hours=1))
    assert (tidied.decisions, tidied.ends) == (1000, 50)


# --- requests -------------------------------------------------------------------------------------

NOW = datetime(2026, 7, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (rpc_pb.GetSessionStatsRequest(), ("from_time", "to_time")),
        (rpc_pb.GetSessionStatsRequest(from_time=timestamp(NOW)), ("to_time",)),
        (
            rpc_pb.GetSessionStatsRequest(from_time=timestamp(NOW), to_time=timestamp(NOW)),
            ("to_time",),
        ),
        (
            rpc_pb.GetSessionStatsRequest(
                from_time=timestamp(NOW), to_time=timestamp(NOW + 367 * DAY)
            ),
            ("to_time",),
        ),
        (
            rpc_pb.GetSessionStatsRequest(
                project_id="x" * 129, from_time=timestamp(NOW), to_time=timestamp(NOW + DAY)
            ),
            ("project_id",),
        ),
    ],
)
async def test_a_wrong_span_is_refused_by_its_field(
    roost: World, request_: rpc_pb.GetSessionStatsRequest, fields: tuple[str, ...]
) -> None:
    """INVALID_FIELD, naming all that is wrong."""
    failure = await failing(roost.one.stub.GetSessionStats(request_, timeout=TIMEOUT))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert failure.fields == fields


# --- the migration --------------------------------------------------------------------------------

_OLD_SESSION = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch, spec,
    fingerprint, policy, start_time, create_time, end_time, end_reason)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'default', 'project-' || n, 'u', 'default',
    CASE WHEN n <= 2 THEN 'ENDED' ELSE 'ACTIVE' END, 1, 1, '{}', '', '{}', now(),
    now() - interval '2 hours', CASE WHEN n <= 2 THEN now() - interval '1 hour' END,
    CASE WHEN n <= 2 THEN 'REQUESTED' END
FROM generate_series(1, 5) AS n
"""
_OLD_DECISION = """
INSERT INTO decisions (decision_id, tenant, session_id, method, rule, explanation)
SELECT gen_random_uuid(), 'default', lpad(to_hex(n % 6 + 1), 32, '0')::uuid, 'StartSession', '', ''
FROM generate_series(1, 600) AS n
"""


def test_an_upgrade_finds_out_whose_project_old_rows_are_about(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches; those whose session is gone have none. It may be run again where it broke off."""
    engine = sa.create_engine(engine_url(empty_database_url), poolclass=sa.NullPool)
    upgrade(empty_database_url, "0007")
    with engine.begin() as connection:
        connection.execute(sa.text(_OLD_SESSION))
        connection.execute(sa.text(_OLD_DECISION))
    upgrade(empty_database_url, "0008")
    with engine.begin() as connection:
        # As if a run before had been killed in its middle.
        connection.execute(sa.text("CREATE INDEX decisions_project ON decisions (tenant)"))
    upgrade(empty_database_url)
    with engine.connect() as connection:
        counted = connection.execute(
            sa.text("SELECT project_id, count(*) FROM decisions GROUP BY 1 ORDER BY 1")
        ).all()
    engine.dispose()
    assert [tuple(row) for row in counted] == [
        *((f"project-{n}", 100) for n in range(1, 6)),
        (None, 100),
    ]

    async def whole() -> Figures:
        now = datetime.now(UTC) + DAY
        async with Database(empty_database_url, max_size=2) as database:
            return await Stats(database).figures(Span("default", None, now - 2 * DAY, now))

    figures = asyncio.run(whole())
    assert figures.ends == {"REQUESTED": 2}
    assert figures.average_lifetime == timedelta(hours=1)


# --- the command ----------------------------------------------------------------------------------


async def run_stats(database_url: str, *arguments: str) -> tuple[int | None, str, str]:
    """`python -m session_service stats`, as an operator runs it."""
    return await outcome(await launch("stats", *arguments, ROOST_DATABASE_URL=database_url))


async def test_the_command_tells_what_the_call_tells(
    roost: World, database_url: str, tmp_path: Path
) -> None:
    """As a table, as the same message in JSON, and as a picture."""
    await roost.one.start("wren")
    await roost.one.start("wren")
    until = (datetime.now(UTC) + DAY).replace(microsecond=0)
    span = ("--project", "nest", "--from", (until - 2 * DAY).isoformat(), "--to", str(until))
    status, told, err = await run_stats(database_url, *span, "--svg", str(tmp_path / "a.svg"))
    assert (status, err) == (0, "")
    assert "50.0 %   1 of 2 starts found a running container" in told
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")

    status, told, _ = await run_stats(database_url, *span, "--json")
    message = json_format.Parse(told, rpc_pb.GetSessionStatsResponse())
    request = rpc_pb.GetSessionStatsRequest(
        project_id="nest", from_time=timestamp(until - 2 * DAY), to_time=timestamp(until)
    )
    answer = await roost.one.stub.GetSessionStats(request, timeout=TIMEOUT)
    for one in (message, answer):
        one.current.ClearField("oldest_live_age")
    assert message == answer


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--from", "yesterday"), "argument --from: 'yesterday' is neither a date nor a time"),
        (("--from", "2026-11-22", "--to", "2026-11-22"), "--to must be after --from"),
        (("--from", "2020-01-01", "--to", "2026-11-22"), "--to must be at most 366 days"),
    ],
)
async def test_a_wrong_span_is_one_clear_line(arguments: tuple[str, ...], line: str) -> None:
    status, _, err = await run_stats(NOWHERE, *arguments)
    assert (status, "Traceback" in err) == (2, False)
    assert line in err.splitlines()[-1]


async def test_a_picture_that_cannot_be_written_is_one_clear_line(database_url: str) -> None:
    status, _, err = await run_stats(database_url, "--svg", "/nowhere/a.svg")
    assert status == 2
    assert err.startswith("session_service stats: --svg: ")


async def test_a_database_that_does_not_answer_is_one_clear_line() -> None:
    status, _, err = await run_stats(NOWHERE)
    assert (status, "ROOST_DATABASE_URL" in err) == (2, True)
