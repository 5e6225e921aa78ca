"""A period that takes too long to be counted at once is rolled up in parts: retention goes on.

What takes too long is a statement that counts more than a few rows: a trigger ends it with the
error of `statement_timeout`.
"""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from bench import stats as filling
from session_service.domain.stats import Span
from session_service.stats.service import Stats
from session_service.storage import claims
from session_service.storage.session import rollups
from session_service.storage.session.retained import NAME
from tests.session.test_rollups import (
    AT_ONCE,
    DAY,
    change,
    compare,
    database,
    execute,
    few,
    roll_up,
)
from tests.session.test_stats import all_rows, midnight

if TYPE_CHECKING:
    from session_service.storage.database import Database

__all__ = ["database", "few"]
pytestmark = pytest.mark.timeout(600)
ROWS = 1000
#: The statement that counts is ended if a roll-up of it has more rows than this.
MOST = 5
SLOW = (
    f"""
    CREATE FUNCTION end_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF current_query() LIKE '%%FROM decisions%%' AND {MOST} < (
            SELECT sum((each ->> 3)::bigint) FROM jsonb_array_elements(NEW.figures) AS each
            WHERE each ->> 0 IN ('REUSED', 'OUTCOME', 'JOIN', 'REFUSAL')
        ) THEN
            RAISE EXCEPTION 'canceling statement due to statement timeout' USING ERRCODE = '57014';
        END IF; RETURN NEW; END $$
    """,
    """
    CREATE TRIGGER end_slow BEFORE INSERT ON stats_rollups FOR EACH ROW EXECUTE FUNCTION end_slow()
    """,
)


@pytest.mark.usefixtures("few")
async def test_what_takes_too_long_is_counted_in_parts(
    database: Database,  # the fixture
    database_url: str,
) -> None:
    """The figures are those of the rows at every moment: before, between two parts, after late
    changes, some of them in the middle of the parts; and the recount finds no difference.
    """
    seed = random.getrandbits(32)
    dice, now = random.Random(seed), datetime.now(UTC)
    await filling.fill(database_url, ROWS, seed, now)
    for statement in SLOW:
        await execute(database, statement)
    await claims.claim(database, NAME, AT_ONCE)
    await rollups.begin(database, 3 * DAY)
    while await rollups.roll_up_hour(database):
        pass
    assert await rollups.roll_up_day(database)
    first = [row for row in await all_rows(database_url, "stats_rollups") if row["hours"] < 0]
    assert [row["hours"] for row in first] == [-24], (
        "the first day is begun, and nothing of it done"
    )
    assert await rollups.roll_up_day(database)
    await compare(database, database_url, dice, now)
    await roll_up(database)
    await compare(database, database_url, dice, now)

    for _ in range(5):
        await change(database, dice, now)
    await execute(
        database,
        "UPDATE decisions SET replay_count = replay_count + 1 WHERE create_time < %(until)s",
        until=midnight(now) - DAY,
    )
    while await rollups.roll_up_late_hour(database):
        pass
    await execute(database, "UPDATE stats_changes SET create_time = now() - interval '2 hours'")
    for _ in range(3):
        assert await rollups.roll_up_late_day(database)
    await compare(database, database_url, dice, now)
    day = Span("default", None, midnight(now) - 2 * DAY, midnight(now) - DAY)
    assert (await Stats(database).figures(day)).whole.starts > MOST
    await change(database, dice, now)
    for _ in range(2):
        await roll_up(database)
        await execute(database, "UPDATE stats_changes SET create_time = now() - interval '2 hours'")
    await roll_up(database)
    assert await all_rows(database_url, "stats_changes") == []
    assert all(row["hours"] > 0 for row in await all_rows(database_url, "stats_rollups"))
    await compare(database, database_url, dice, now)
    assert await rollups.recount(database) is None


async def test_parts_of_a_period_that_is_past_the_retention_go(
    database: Database,  # the fixture
    database_url: str,
) -> None:
    """Nobody would go on with them."""
    now = datetime.now(UTC)
    await filling.fill(database_url, ROWS, 5, now)
    for statement in SLOW:
        await execute(database, statement)
    await claims.claim(database, NAME, AT_ONCE)
    await rollups.begin(database, 3 * DAY)
    while await rollups.roll_up_hour(database):
        pass
    assert await rollups.roll_up_day(database)
    await rollups.note_trim(database, timedelta(days=1))
    while await rollups.trim(database, 1000):
        pass
    assert all(row["hours"] > 0 for row in await all_rows(database_url, "stats_rollups"))
