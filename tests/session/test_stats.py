"""GetSessionStats: equal to a plain recount of the rows, fast, and right about real sessions."""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc
import psycopg
import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from bench import stats as filling
from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.domain.session import AttemptResult, Outcome, Rung
from session_service.domain.stats import Day, Figures, Latency, Span, Started, Tries
from session_service.reconcile import retention
from session_service.rpc.fields import timestamp
from session_service.stats.service import Stats
from session_service.storage.database import Database
from session_service.storage.migrate import engine as migration_engine
from session_service.storage.migrate import upgrade
from tests.cases import each
from tests.container.harness import failing
from tests.session.ageing import IDLE, make_due, make_idle, run_due_pass, sql
from tests.session.harness import TIMEOUT, Replica, World, request_id
from tests.session.test_choices import offered, policies
from tests.session.test_process import NOWHERE, launch, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

pytestmark = pytest.mark.replicas(1)

#: ROOST_STATS_ROWS=1000000 is the size for which a speed is promised.
ROWS = int(os.environ.get("ROOST_STATS_ROWS", "20000"))
FULL = 1_000_000
MOST_MS = 200.0
DAY = timedelta(days=1)
STARTS = ("StartSession", "ResumeSession")
Row = dict[str, Any]


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on the test's database."""
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
    """The percentile: the smallest value that this share of the values does not exceed."""
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
    """The start of its day in UTC."""
    return time.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


def within(rows: list[Row], span: Span, column: str) -> list[Row]:
    """The rows of the span."""
    return [
        row
        for row in rows
        if row["tenant"] == span.tenant
        and span.project_id in (None, row["project_id"])
        and span.start <= row[column] < span.end
    ]


def check(figures: Figures, decisions: list[Row], ends: list[Row]) -> None:
    """Compare the statistics with a plain count of all rows."""
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
    rejected = [row["error"]["reason"] for row in starts if row["error"] is not None]
    assert figures.refusals == Counter(rejected)

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
    """Move some of the project's reuses to the first moment of a day."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE decisions SET create_time = %(time)s, finish_time = %(time)s WHERE decision_id"
            " IN (SELECT decision_id FROM decisions WHERE outcome = 'REUSED' AND project_id ="
            " 'nest' AND create_time > %(time)s - interval '1 day' LIMIT 3)",
            {"time": midnight(now - 2 * DAY)},
        )


def between_reuses(decisions: list[Row]) -> Span:
    """A span from the time of one of the project's reuses to that of a later one."""
    times = sorted(
        row["create_time"]
        for row in decisions
        if row["outcome"] == "REUSED" and row["project_id"] == "nest" and not row["joined"]
    )
    return Span("default", "nest", times[-200], times[-10])


@pytest.mark.timeout(600)
async def test_the_figures_equal_a_plain_recount(database: Database, database_url: str) -> None:
    """For one project and for all; for whole days, odd spans and an empty one; and fast."""
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
        "nothing": Span("default", "unknown", now - 40 * DAY, now),
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
    """By rung: attempts, succeeded, degraded."""
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


@pytest.mark.replicas(2)
async def test_starts_are_counted_by_outcome(roost: World) -> None:
    """Each call counts once, by its outcome; other projects do not count."""
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
    assert timedelta(0) < created.latency_p50.ToTimedelta() < timedelta(seconds=TIMEOUT)
    assert created.latency_p50 == created.latency_p99
    assert sum(day.start_count for day in found.days) == 6
    assert found.current.oldest_live_age.ToTimedelta() > timedelta(0)

    assert (await figures_of(one, "elsewhere")).start_count == 0
    assert (await figures_of(one, "")).start_count == 6


@pytest.mark.replicas(2)
async def test_joiners_are_counted_separately(roost: World) -> None:
    """One call leads and creates. The calls that join it add neither starts nor creations."""
    await asyncio.gather(*(replica.start("wren") for replica in [roost.one, roost.two] * 4))
    found = await figures_of(roost.one)
    assert found.container_creation_count == 1
    assert by_outcome(found)["CREATED"] == 1
    assert found.join_count + found.start_count == 8
    assert rungs(found) == {"CREATE": (1, 1, 0)}


async def test_the_choices_of_users_are_counted(roost: World) -> None:
    """When asked, and by a saved preference. CHOICE_REQUIRED counts among the refusals."""
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
    """An end by a call, a FRESH start or the reconciler. An undelete deletes the row again."""
    one = roost.one
    ended = (await one.start("wren")).session
    await one.end(ended.session_id)
    replaced = (await one.start("robin")).session
    fresh = (await one.start("robin", mode=pb.START_MODE_FRESH)).session
    expired = (await one.start("finch")).session
    await one.pause(expired.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    await sql(one, "UPDATE sessions SET pause_time = now() - interval '31 days' WHERE user_id = %s",
              "finch")  # fmt: skip
    await make_due(roost, expired)
    await run_due_pass(one)
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
    await make_due(roost, replaced, expired)
    await run_due_pass(one)
    assert await sql(one, "SELECT max(end_time) FROM session_ends") == [before]

    starts = (await figures_of(one)).start_count
    await sql(one, "DELETE FROM sessions")
    found = await figures_of(one)
    assert dict(found.end_counts) == {"REQUESTED": 2, "REPLACED": 1, "EXPIRED": 1}
    assert found.start_count == starts == 4


async def test_a_session_that_never_came_up_has_no_lifetime(roost: World) -> None:
    """It counts among the ends, and not in the average lifetime."""
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


async def test_an_end_by_policy_leaves_a_row(roost: World) -> None:
    """The idle pause of a session that keeps nothing ends it."""
    policy = pb.Policy(persistence=pb.Policy.PERSISTENCE_EPHEMERAL)
    policy.idle_timeout.FromTimedelta(IDLE)
    session = (await roost.one.start("wren", policy=policy)).session
    await make_idle(roost, session)
    await run_due_pass(roost.one)
    assert await ends(roost.one) == {session.session_id: "EPHEMERAL"}


async def test_rows_of_ends_are_deleted_by_retention(database: Database, database_url: str) -> None:
    """Retention deletes them with the decisions."""
    await filling.fill(database_url, 2000, 1, datetime.now(UTC))
    tidied = await retention.run_pass(database, DAY, timedelta(days=7, hours=1))
    assert (tidied.decisions, tidied.ends) == (1000, 50)


# --- requests -------------------------------------------------------------------------------------

NOW = datetime(2026, 7, 1, tzinfo=UTC)


@each(
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
async def test_a_wrong_span_is_rejected_naming_its_fields(
    roost: World, request_: rpc_pb.GetSessionStatsRequest, fields: tuple[str, ...]
) -> None:
    """INVALID_FIELD, with every wrong field."""
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


def test_an_upgrade_fills_in_the_projects_of_old_rows(
    empty_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches. Rows whose session is gone get none. An interrupted migration may run again."""
    engine = migration_engine(empty_database_url)
    upgrade(empty_database_url, "0007")
    with engine.begin() as connection:
        connection.execute(sa.text(_OLD_SESSION))
        connection.execute(sa.text(_OLD_DECISION))
    upgrade(empty_database_url, "0008")
    with engine.begin() as connection:
        # As if an earlier run had been killed halfway.
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

    async def all_figures() -> Figures:
        now = datetime.now(UTC) + DAY
        async with Database(empty_database_url, max_size=2) as database:
            return await Stats(database).figures(Span("default", None, now - 2 * DAY, now))

    figures = asyncio.run(all_figures())
    assert figures.ends == {"REQUESTED": 2}
    assert figures.average_lifetime == timedelta(hours=1)


# --- the command ----------------------------------------------------------------------------------


async def run_stats(database_url: str, *arguments: str) -> tuple[int | None, str, str]:
    """`python -m session_service stats`, as an operator runs it."""
    return await outcome(await launch("stats", *arguments, ROOST_DATABASE_URL=database_url))


async def test_the_command_shows_the_figures_of_the_call(roost: World, database_url: str) -> None:
    """As a table, and as the same message in JSON."""
    await roost.one.start("wren")
    await roost.one.start("wren")
    until = (datetime.now(UTC) + DAY).replace(microsecond=0)
    span = ("--project", "nest", "--from", (until - 2 * DAY).isoformat(), "--to", str(until))
    status, out, err = await run_stats(database_url, *span)
    assert (status, err) == (0, "")
    assert "50.0 %   1 of 2 starts found a running container" in out

    status, out, _ = await run_stats(database_url, *span, "--json")
    message = json_format.Parse(out, rpc_pb.GetSessionStatsResponse())
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


@pytest.mark.parametrize("arguments", [("--svg", "a.svg"), ("--svg=a.svg",), ("--svg",)])
async def test_the_former_option_svg_names_the_dashboard(arguments: tuple[str, ...]) -> None:
    """In one line, before anything is read from the database."""
    status, out, err = await run_stats(NOWHERE, *arguments)
    assert (status, out) == (2, "")
    assert err == (
        "session_service stats: --svg no longer exists; the Grafana dashboard "
        "docs/grafana/roost.json in the repository of Roost draws the five statistics\n"
    )


async def test_a_database_that_does_not_answer_is_one_clear_line() -> None:
    status, _, err = await run_stats(NOWHERE)
    assert (status, "ROOST_DATABASE_URL" in err) == (2, True)
