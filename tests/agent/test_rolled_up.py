"""GetAgentStats with roll-ups: equal to a count of the rows, whatever happens to the sessions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from session_service.agents import rollup
from session_service.storage import activity
from session_service.storage.agent import rollups, stats
from session_service.storage.agent.activity import SUBJECT, WALK
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

DAY = timedelta(days=1)
AT_ONCE = timedelta(0)
_FILL = """
    WITH b AS (
        INSERT INTO llm_branches (tenant, session_id)
        SELECT CASE WHEN n %% 7 = 0 THEN 'other' ELSE 't' END, 's' || n
        FROM generate_series(1, %(count)s) AS n RETURNING branch_id, tenant, session_id
    )
    INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
        head_branch, turn_count, total_tokens, created_at, last_query_at, seen_at)
    SELECT tenant, session_id, 'role' || n %% 3, '', 'ACTIVE', '{}', branch_id, n %% 4, n,
        at, at + n * interval '1 second', at
    FROM (
        SELECT *, substr(session_id, 2)::int AS n,
            now() - substr(session_id, 2)::int * interval '1 hour' AS at FROM b
    ) AS each
"""
#: What can happen to sessions of earlier days: what an append, a rewind, an import of turns, and a
#: purge set. An append writes no indexed column.
CHANGES = {
    "append": "UPDATE llm_sessions SET turn_count = turn_count + 1, total_tokens = total_tokens + 9"
    ", last_query_at = now() WHERE session_id = 's100'",
    "rewind": "UPDATE llm_sessions SET turn_count = 0, head_branch = head_branch"
    " WHERE session_id = 's50'",
    "import": "UPDATE llm_sessions SET turn_count = 77, idle_from = now() WHERE session_id = 's60'",
    "purge": "DELETE FROM llm_sessions WHERE session_id IN ('s70', 's90', 's110')",
}


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool on the test's database, with sessions of two tenants, one an hour."""
    async with Database(database_url, max_size=4, timeout=60, answer=30) as opened:
        await execute(opened, _FILL, count=200)
        yield opened


async def execute(database: Database, statement: str, **params: object) -> int:
    """Run a statement; return how many rows it read or wrote."""
    async with database.connection() as connection:
        cursor = await connection.execute(statement.encode(), params)
        return cursor.rowcount


async def counted(database: Database, start: datetime, end: datetime) -> list[stats.RoleStats]:
    """The figures of a span as its rows have them, by one statement."""
    params = {"tenant": "t", "start": start, "end": end}
    rows = await database.fetch_all(stats._FROM_ROWS[False], params)
    return sorted(rows, key=lambda row: row.agent_role)


async def compare(database: Database) -> bool:
    """Whether spans have the figures of their rows."""
    now = datetime.now(UTC)
    spans = [(now - 90 * DAY, now), (now - 5 * DAY, now - 2 * DAY), (now - DAY, now)]
    equal = True
    for start, end in spans:
        found = await stats.stats(database, "t", None, start, end)
        exact = await counted(database, start, end)
        one = await stats.stats(database, "t", "role1", start, end)
        assert one == [row for row in found if row.agent_role == "role1"]
        equal &= found == exact
    return equal


async def rolled_up(database: Database) -> int:
    """The number of roll-ups."""
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM llm_stats_rollups")
        row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_the_figures_are_those_of_the_rows(database: Database) -> None:
    """Before the first pass, and after it."""
    assert await compare(database)
    assert await rollup.run_pass(database, AT_ONCE)
    assert await rolled_up(database) > 20
    assert await compare(database)


@pytest.mark.parametrize("kind", CHANGES)
async def test_a_change_of_an_earlier_day_is_counted(database: Database, kind: str) -> None:
    """At once, but for an append, which the next pass counts."""
    await rollup.run_pass(database, AT_ONCE)
    await execute(database, CHANGES[kind])
    assert await compare(database) == (kind != "append")
    # Whatever comes first, and however often: an append shows after a walk.
    await rollup.run_pass(database, AT_ONCE)
    assert await compare(database) == (kind != "append")
    assert await activity.walk_if_due(database, SUBJECT, WALK) is not None
    await rollup.run_pass(database, AT_ONCE)
    assert await execute(database, "SELECT FROM llm_stats_changes") == 0
    assert await compare(database)


async def test_many_sessions_with_an_append_are_read_in_chunks(database: Database) -> None:
    """Of both tenants, and with more days than are remembered at once."""
    await rollup.run_pass(database, AT_ONCE)
    appended = "UPDATE llm_sessions SET turn_count = turn_count + 2, last_query_at = now()"
    assert await execute(database, appended) == 200
    assert await activity.walk_if_due(database, SUBJECT, WALK) is not None
    assert not await compare(database)
    assert await rollups.roll_up_seen(database, most=7, days=2) >= 16
    assert await compare(database)
    # Some minutes are read again, whatever has happened; the days of before are not.
    assert await execute(database, "UPDATE llm_sessions SET seen_at = now() - interval '1 day'")
    assert await rollups.roll_up_seen(database, most=7, days=2) == 0


async def test_one_replica_at_a_time_makes_a_pass(database: Database) -> None:
    assert await rollup.run_pass(database)
    assert not await rollup.run_pass(database)


async def test_a_day_that_takes_too_long_is_counted_in_halves(database: Database) -> None:
    """A trigger ends a statement that counts more than some sessions, as the server's limit does;
    otherwise the day would be tried at each pass, and none after it.
    """
    for statement in (
        """
        CREATE FUNCTION end_slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.session_count > 2 AND TG_OP = 'INSERT' THEN
                RAISE EXCEPTION 'canceling statement due to statement timeout'
                    USING ERRCODE = '57014';
            END IF; RETURN NEW; END $$
        """,
        """
        CREATE TRIGGER end_slow BEFORE INSERT ON llm_stats_rollups
            FOR EACH ROW EXECUTE FUNCTION end_slow()
        """,
    ):
        await execute(database, statement)
    assert await rollup.run_pass(database, AT_ONCE)
    assert await compare(database)
    await execute(database, CHANGES["rewind"])
    assert await rollups.roll_up_late(database)
    assert await execute(database, "SELECT FROM llm_stats_changes") == 0
    assert await compare(database)
