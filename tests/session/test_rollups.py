"""Statistics with roll-ups equal a plain recount of the rows, whatever happens to them later."""

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bench import stats as filling
from session_service.domain.stats import Span
from session_service.reconcile import retention
from session_service.stats.rollup import RolledUp, RollUp
from session_service.stats.service import Stats
from session_service.storage import claims
from session_service.storage.database import Database
from session_service.storage.session import rollups
from session_service.storage.session.retained import NAME
from tests.session.test_stats import STARTS, Row, all_rows, check, midnight, started, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from session_service.domain.session import Outcome
    from session_service.domain.stats import Figures, Started

#: Hundreds of hours are rolled up, each in a transaction.
pytestmark = pytest.mark.timeout(600)
ROWS = 6_000
DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
KEPT = timedelta(days=90)
AT_ONCE = timedelta(0)
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on the test's database."""
    async with Database(database_url, max_size=4, timeout=60) as opened:
        yield opened


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours have roll-ups of projects with few rows too."""
    monkeypatch.setattr(rollups, "LEAST_OF_HOUR", 3)


async def progress_of(url: str) -> list[Row]:
    """The row of these roll-ups' progress; other passes over figures have rows there too."""
    return [row for row in await all_rows(url, "stats_progress") if row["name"] == NAME]


async def execute(database: Database, statement: str, **params: object) -> int:
    """Run a statement; return how many rows it wrote."""
    async with database.connection() as connection:
        return (await connection.execute(statement.encode(), params)).rowcount


async def roll_up(database: Database, kept: timedelta = 10 * DAY) -> RolledUp:
    """Passes until there is nothing left to do; what they rolled up."""
    total = RolledUp()
    while True:
        done = await RollUp(database, kept).shot(AT_ONCE)
        assert done is not None
        total.hours += done.hours
        total.days += done.days
        total.late_hours += done.late_hours
        total.late_days += done.late_days
        if done == RolledUp():
            return total


def approximately(found: dict[Outcome, Started], exact: dict[Outcome, Started]) -> None:
    """The counts are equal, and the percentiles within 1 %."""
    assert found.keys() == exact.keys()
    for outcome, started_ in found.items():
        other = exact[outcome]
        assert started_.count == other.count
        pairs = [(started_.latency, other.latency)]
        assert all((one is None) == (two is None) for one, two in pairs)
        for one, two in pairs:
            if one is not None and two is not None:
                for took, expected in ((one.p50, two.p50), (one.p95, two.p95), (one.p99, two.p99)):
                    assert took / MICROSECOND == pytest.approx(
                        expected / MICROSECOND, rel=0.01, abs=1
                    )


def check_pieces(figures: Figures, decisions: list[Row], ends: list[Row]) -> None:
    """As `check`, with percentiles within 1 %."""
    answered = [
        row
        for row in within(decisions, figures.span, "create_time")
        if row["method"] in STARTS
        and row["error"] is None
        and row["outcome"] is not None
        and not row["joined"]
    ]
    exact = started(answered)
    approximately(figures.whole.outcomes, exact)
    figures.whole.outcomes = exact
    for day in figures.days:
        exact = started(row for row in answered if midnight(row["create_time"]) == day.start)
        approximately(day.outcomes, exact)
        day.outcomes = exact
    check(figures, decisions, ends)


def spans(dice: random.Random, now: datetime) -> list[Span]:
    """Spans of all projects and of some, some of them from and to the middle of an hour."""

    def moment() -> datetime:
        return now - timedelta(seconds=dice.randrange(95 * 86_400))

    projects = (None, "nest", "project-3", "unknown")
    whole = [Span("default", project, now - KEPT, now) for project in projects]
    edges = [sorted((moment(), moment())) for _ in range(4)]
    some = [
        Span(dice.choice(("default", "default", "other")), dice.choice(projects), start, end + HOUR)
        for start, end in edges
    ]
    days = [Span("default", None, midnight(now - 9 * DAY), midnight(now - 2 * DAY))]
    return [*whole, *some, *days]


async def compare(database: Database, url: str, dice: random.Random, now: datetime) -> None:
    """Compare spans with a recount."""
    decisions, ends = await all_rows(url, "decisions"), await all_rows(url, "session_ends")
    stats = Stats(database)
    for span in spans(dice, now):
        check_pieces(await stats.figures(span), decisions, ends)


#: What can happen to rows of periods that were rolled up.
CHANGES = (
    # A replay.
    """
    UPDATE decisions SET replay_count = replay_count + 1 WHERE decision_id = (
        SELECT decision_id FROM decisions WHERE create_time > %(at)s ORDER BY create_time LIMIT 1
    )
    """,
    # A transition that ends late.
    """
    UPDATE decisions SET outcome = 'CREATED', finish_time = now(),
        attempts = '[["CREATE", "SUCCEEDED", "CREATED", 9]]'
    WHERE decision_id = (
        SELECT decision_id FROM decisions WHERE create_time > %(at)s AND finish_time IS NULL LIMIT 1
    )
    """,
    # An undelete.
    """
    DELETE FROM session_ends WHERE session_id = (
        SELECT session_id FROM session_ends WHERE end_time > %(at)s ORDER BY end_time LIMIT 1
    )
    """,
    # An import.
    """
    INSERT INTO session_ends (session_id, tenant, project_id, end_time, lifetime, reason)
    VALUES (gen_random_uuid(), 'default', 'nest', %(at)s, interval '1 hour', 'REQUESTED')
    """,
)


async def change(database: Database, dice: random.Random, now: datetime) -> None:
    """Make one of the changes, about a random time."""
    at = now - timedelta(seconds=dice.randrange(3600, 14 * 86_400))
    await execute(database, dice.choice(CHANGES), at=at)


@pytest.mark.usefixtures("few")
async def test_any_history_is_counted_as_from_its_rows(
    database: Database, database_url: str
) -> None:
    """While the roll-ups are being made, after it, with late changes, and after those."""
    # Seeded by pytest-randomly: --randomly-seed=N repeats the run.
    seed = random.getrandbits(32)
    dice, now = random.Random(seed), datetime.now(UTC)
    await filling.fill(database_url, ROWS, seed, now)
    await compare(database, database_url, dice, now)

    await claims.claim(database, NAME, AT_ONCE)
    await rollups.begin(database, 12 * DAY)
    for _ in range(50):
        assert await rollups.roll_up_hour(database)
    assert await rollups.roll_up_day(database)
    await compare(database, database_url, dice, now)

    done = await roll_up(database)
    assert done.hours > 200
    assert done.days >= 10
    await compare(database, database_url, dice, now)

    for _ in range(25):
        await change(database, dice, now)
    await compare(database, database_url, dice, now)
    done = await roll_up(database)
    assert done.late_hours > 5
    await compare(database, database_url, dice, now)
    await execute(database, "UPDATE stats_changes SET create_time = now() - interval '2 hours'")
    done = await roll_up(database)
    assert done.late_days > 5
    assert await all_rows(database_url, "stats_changes") == []
    await compare(database, database_url, dice, now)


async def test_a_pass_rolls_up_what_is_over_for_a_while(
    database: Database, database_url: str
) -> None:
    """Neither the hour that runs, nor one that a transaction may still insert into."""
    await filling.fill(database_url, 100, 1, datetime.now(UTC))
    await roll_up(database)
    (row,) = await progress_of(database_url)
    now = datetime.now(UTC)
    assert row["hours_end"] <= now - timedelta(minutes=5)
    assert row["hours_end"] + HOUR > now - timedelta(minutes=6)
    assert row["days_end"] == midnight(row["hours_end"])


async def test_days_without_rows_are_not_rolled_up_one_by_one(
    database: Database, database_url: str
) -> None:
    """A new database has months of them. What an import inserts there later is counted."""
    assert await RollUp(database, KEPT).shot(AT_ONCE) == RolledUp()
    now = datetime.now(UTC)
    await filling.fill(database_url, 100, 3, now)
    async with database.connection() as connection:
        await connection.execute("DELETE FROM stats_changes")
        await connection.execute("UPDATE stats_progress SET start_time = NULL")
    assert (await roll_up(database, KEPT)).days >= 2
    await compare(database, database_url, random.Random(1), now)


async def test_what_an_import_adds_to_days_without_rows_is_rolled_up(
    database: Database, database_url: str
) -> None:
    """Its ends are older than the first roll-up."""
    await roll_up(database, KEPT)
    now = datetime.now(UTC)
    async with database.connection() as connection:
        await connection.execute(
            """
            INSERT INTO session_ends (session_id, tenant, project_id, reason, end_time)
            SELECT gen_random_uuid(), 'default', 'nest', 'USER', now() - day * interval '1 day'
            FROM generate_series(10, 20) AS day
            """
        )
    assert (await roll_up(database, KEPT)).late_hours == 11
    await compare(database, database_url, random.Random(1), now)


async def test_one_replica_at_a_time_makes_a_pass(database: Database) -> None:
    """The claim of one that died is over after a while."""
    roll_up_ = RollUp(database, DAY)
    first, second = await asyncio.gather(*(roll_up_.shot(HOUR) for _ in range(2)))
    assert (first is None) != (second is None)
    assert await roll_up_.shot() is None
    await execute(database, "UPDATE stats_progress SET due_at = now()")
    assert await roll_up_.shot() is not None


async def test_steps_of_two_replicas_at_once_roll_each_hour_up_once(
    database: Database, database_url: str
) -> None:
    """Each waits for the progress of the other one."""
    now = datetime.now(UTC)
    await filling.fill(database_url, 500, 2, now)
    await claims.claim(database, NAME, AT_ONCE)
    await rollups.begin(database, 3 * DAY)
    while any(await asyncio.gather(*(rollups.roll_up_hour(database) for _ in range(4)))):
        pass
    await compare(database, database_url, random.Random(1), now)


async def test_retention_deletes_what_was_rolled_up_and_keeps_the_days(
    database: Database, database_url: str
) -> None:
    """Rows go when their day was rolled up, roll-ups when all of their day is past retention."""
    now = datetime.now(UTC)
    await filling.fill(database_url, ROWS, 3, now)
    # Until noon of a day: neither it nor the time of the deletions is near a midnight.
    kept = now - midnight(now) + 7 * DAY - 12 * HOUR
    await claims.claim(database, NAME, AT_ONCE)
    await rollups.begin(database, 10 * DAY)
    while await rollups.roll_up_hour(database) and not await rollups.roll_up_day(database):
        pass
    await retention.run_pass(database, DAY, kept)
    (progress,) = await progress_of(database_url)
    left = await all_rows(database_url, "decisions")
    assert min(row["create_time"] for row in left) >= progress["days_end"]
    assert min(row["create_time"] for row in left) < now - kept

    await roll_up(database)
    first = midnight(now - kept)
    whole = Span("default", None, first, first + DAY)
    before = await Stats(database).figures(whole)
    assert before.whole.starts > 0
    await retention.run_pass(database, DAY, kept)
    left = await all_rows(database_url, "decisions")
    assert min(row["create_time"] for row in left) >= now - kept
    after = await Stats(database).figures(whole)
    assert (after.whole, after.ends) == (before.whole, before.ends)

    # A late change of a day that is deleted in part does not count what is left of it.
    await execute(
        database,
        "UPDATE decisions SET replay_count = replay_count + 1 WHERE create_time < %(until)s",
        until=first + DAY,
    )
    await execute(database, "UPDATE stats_changes SET create_time = now() - interval '2 hours'")
    await roll_up(database)
    await execute(database, "UPDATE stats_changes SET create_time = now() - interval '2 hours'")
    await roll_up(database)
    assert (await Stats(database).figures(whole)).whole == before.whole

    await retention.run_pass(database, DAY, kept - 2 * DAY)
    assert (await Stats(database).figures(whole)).whole.starts == 0
    assert min(row["start_time"] for row in await all_rows(database_url, "stats_rollups")) > first


async def test_a_difference_is_corrected_and_logged(
    database: Database, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The recount takes the hours in turn."""
    now = datetime.now(UTC)
    await filling.fill(database_url, 2000, 4, now)
    await claims.claim(database, NAME, AT_ONCE)
    await rollups.begin(database, 2 * DAY)
    while await rollups.roll_up_hour(database) or await rollups.roll_up_day(database):
        pass
    # The ends were inserted with earlier times, as an import inserts them.
    while await rollups.roll_up_late_hour(database):
        pass
    assert [await rollups.recount(database) for _ in range(60)] == [None] * 60
    (progress,) = await progress_of(database_url)
    hour = progress["hours_end"] - 3 * HOUR
    changed = "UPDATE stats_rollups SET figures = '[]' WHERE hours = 1 AND start_time = %(hour)s"
    assert await execute(database, changed, hour=hour) > 0
    hours = (progress["hours_end"] - progress["start_time"]) // HOUR
    assert [await rollups.recount(database) for _ in range(hours)].count(hour) == 1
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    await execute(database, "UPDATE stats_changes SET create_time = now() - interval '2 hours'")
    await roll_up(database)
    await compare(database, database_url, random.Random(2), now)


async def test_choices_are_counted_from_roll_ups(database: Database, database_url: str) -> None:
    """By who decided, and how."""
    insert = """
        INSERT INTO choices (decision_id, tenant, project_id, user_id, slot, session_id, choice,
            offered, asked, create_time)
        SELECT gen_random_uuid(), 'default', 'nest', 'u', 's', gen_random_uuid(),
            CASE WHEN n %% 3 = 0 THEN 'FRESH' ELSE 'CONTINUE' END, '[]', n %% 2 = 0,
            now() - n * interval '1 hour'
        FROM generate_series(1, 96) AS n
    """
    await execute(database, insert)
    now = datetime.now(UTC)
    spans_ = [Span("default", project, now - 5 * DAY, now) for project in (None, "nest", "x")]
    before = [(await Stats(database).figures(span)).preferred for span in spans_]
    await roll_up(database)
    assert await all_rows(database_url, "stats_rollups") != []
    assert [(await Stats(database).figures(span)).preferred for span in spans_] == before
    assert (before[0].asked_continue, before[0].asked_new) == (32, 16)
    assert before[0] == before[1]
