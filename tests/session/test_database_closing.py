"""Closing the pool leaves no connection open, also if calls are cancelled at that moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa

from session_service.storage.database import Database, compiled, scalar
from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.database import Databases

SLEEP = compiled(lambda: sa.text("SELECT 1 FROM pg_sleep(30)"), scalar(int))


async def sleeps(url: str) -> bool:
    """Whether the server executes SLEEP."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        found = await connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE query = %s AND state = 'active'"
            " AND datname = current_database()",
            [SLEEP.sql],
        )
        return await found.fetchone() == (1,)


async def test_closing_waits_for_a_cancelled_statement(
    database_url: str, databases: Databases
) -> None:
    """Its task ends only after the server has answered that it cancelled the statement."""
    async with Database(database_url, answer=60) as database:
        call = asyncio.create_task(database.fetch_one(SLEEP, {}))
        assert await eventually(lambda: sleeps(database_url))
        call.cancel()
    assert call.cancelled()
    assert databases.connections(database_url) == []


async def test_closing_shuts_down_the_connection_of_a_call_that_does_not_end(
    database_url: str, databases: Databases
) -> None:
    held, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with database.connection():
            held.set()
            await release.wait()

    async with Database(database_url, closing=0.1) as database:
        call = asyncio.create_task(hold())
        await held.wait()
    assert not call.done()
    assert databases.connections(database_url) == []
    release.set()
    await call


async def test_closing_closes_a_connection_that_never_came_back(
    database_url: str, databases: Databases
) -> None:
    """The pool loses one if it has closed before the cancelled call that it was given to runs."""
    async with Database(database_url) as database:
        lost = await database.pool.getconn()
    assert lost.closed
    assert databases.connections(database_url) == []
