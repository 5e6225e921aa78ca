"""The installation's gauges: their values, and the query plans that read them."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from session_service.domain.states import LIVE, State
from session_service.reconcile import retention
from session_service.storage.database import Database
from session_service.storage.session import gauges
from session_service.storage.session.gauges import Gauges
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Enough rows that the planner prefers an index to a sequential scan.
SESSIONS = 20_000
_FILL = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
    spec, fingerprint, policy, create_time, due_at)
SELECT gen_random_uuid(), 't', 'p', 'user ' || n, 's',
    CASE WHEN n %% 4 = 0 THEN 'ACTIVE' ELSE 'ENDED' END, 1, 1, '{}', '',
    jsonb_build_object('max_lifetime', CASE WHEN n %% 8 = 0 THEN 1000 END),
    now() - n * interval '1 second', now() + interval '1 hour'
FROM generate_series(1, %s) AS n
"""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A pool of connections to the test's database."""
    async with Database(database_url, max_size=2) as opened:
        yield opened


async def fill(database: Database, count: int) -> None:
    """Insert sessions, created 1 s apart. A quarter is live; half of those may live for 1,000 s."""
    async with database.connection(FILL_SECONDS) as connection:
        await connection.execute(_FILL, [count])
        await connection.execute("ANALYZE sessions")


async def test_the_gauges_count_the_rows(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    none = dict.fromkeys((state for state in State if state in LIVE), 0)
    assert await gauges.read(database) == Gauges(None, 0, 0, 0, live=none)
    await fill(database, 2000)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE sessions SET due_at = now() WHERE user_id IN ('user 4', 'user 5', 'user 6')"
        )
        await connection.execute(
            "INSERT INTO orphans (app, container_id, pass_number) VALUES ('a', 'one', 1)"
        )
    with caplog.at_level(logging.INFO):
        seen = await retention.log_gauges(database)
    assert seen.oldest is not None
    assert timedelta(seconds=2000) <= seen.oldest < timedelta(seconds=2060)
    # Of 8, 16, … 2000 those from 1,000 on: 126. One more may have become overaged meanwhile.
    assert 125 <= seen.overaged <= 130
    assert (seen.due, seen.orphans) == (3, 1)
    assert (seen.live[State.ACTIVE], sum(seen.live.values())) == (500, 500)
    (line,) = [
        record for record in caplog.records if record.name == "session_service.reconcile.retention"
    ]
    assert line.levelno == logging.INFO
    assert "3 due" in line.getMessage()


async def test_no_gauge_reads_every_session(database: Database) -> None:
    """Live sessions are read by their partial index, due sessions by theirs."""
    await fill(database, SESSIONS)
    for statement, index in (
        (gauges._LIVE_AGES, "sessions_live_created"),
        (gauges._NOW, "sessions_due"),
        (gauges._NOW, "sessions_live_created"),
    ):
        async with database.connection() as connection:
            params = {**statement.constants, "most": 100}
            cursor = await connection.execute(f"EXPLAIN {statement.sql}".encode(), params)
            plan = "\n".join(str(row[0]) for row in await cursor.fetchall())
        assert index in plan
        assert "Seq Scan on sessions" not in plan
