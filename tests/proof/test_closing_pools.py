"""Many pools that close while their calls are cancelled: no connection is left open."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from session_service.storage.database import Database, compiled, scalar

if TYPE_CHECKING:
    from tests.database import Databases

NAP = compiled(lambda: sa.text("SELECT 1 FROM pg_sleep(0.005)"), scalar(int))
ROUNDS, CALLS = 500, 20


@pytest.mark.proof
@pytest.mark.timeout(1200)
async def test_pools_that_close_among_cancelled_calls_leave_no_connection(
    database_url: str, databases: Databases
) -> None:
    """The calls are cancelled at a random moment: while they wait for a connection, while they use
    one, or while the pool opens one.
    """
    for _ in range(ROUNDS):
        async with Database(database_url, max_size=4) as database:
            calls = [asyncio.create_task(database.fetch_one(NAP, {})) for _ in range(CALLS)]
            for _ in range(random.randrange(200)):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
        assert databases.connections(database_url) == []
        await asyncio.wait(calls)
