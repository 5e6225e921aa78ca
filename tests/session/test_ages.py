"""The figures that an operator watches: right, and read without a look at every session."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from session_service import janitor
from session_service.storage import ages, due
from session_service.storage.ages import Ages
from session_service.storage.database import Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Enough that a plan which reads them all is another one than a plan which does not.
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
    """A pool on the test's own database."""
    async with Database(database_url, max_size=2) as opened:
        yield opened


async def fill(database: Database, count: int) -> None:
    """Sessions, one a second; a quarter of them live, half of these with a lifetime of 1,000 s."""
    async with database.connection() as connection:
        await connection.execute(_FILL, [count])
        await connection.execute("ANALYZE sessions")


async def test_the_figures_are_right(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    assert await ages.look(database) == Ages(None, 0, 0, 0)
    await fill(database, 2000)
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE sessions SET due_at = now() WHERE user_id IN ('user 4', 'user 5', 'user 6')"
        )
        await connection.execute(
            "INSERT INTO orphans (app, container_id, pass_number) VALUES ('a', 'one', 1)"
        )
    with caplog.at_level(logging.INFO):
        seen = await janitor.watch(database)
    assert seen.oldest is not None
    assert timedelta(seconds=2000) <= seen.oldest < timedelta(seconds=2060)
    # Of 8, 16, … 2000 those from 1,000 on: 126, and the one or so that got there meanwhile.
    assert 125 <= seen.overaged <= 130
    assert (seen.due, seen.orphans) == (3, 1)
    (line,) = [record for record in caplog.records if record.name == "session_service.janitor"]
    assert line.levelno == logging.INFO
    assert "3 due" in line.getMessage()


async def test_no_figure_reads_every_session(database: Database) -> None:
    """The oldest come by an index of the live ones, what is due by its own."""
    await fill(database, SESSIONS)
    for statement, index in (
        (ages._LIVE_AGES, "sessions_live_created"),
        (due._BACKLOG, "sessions_due"),
    ):
        async with database.connection() as connection:
            params = {**statement.constants, "most": 100}
            cursor = await connection.execute(f"EXPLAIN {statement.sql}".encode(), params)
            plan = "\n".join(str(row[0]) for row in await cursor.fetchall())
        assert index in plan
        assert "Seq Scan on sessions" not in plan
