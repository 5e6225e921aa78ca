"""The price of a pooler of transactions: statements that are not prepared, and one hop more.

Two statements of every start, in turn on three pools: with prepared statements, without them, and
through PgBouncer, if this machine has it.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from bench.floor import STATEMENT
from bench.starts import seed
from local.postgres.server import EmbeddedPostgres
from session_service.domain.session import Key
from session_service.storage.database import Database
from session_service.storage.migrate import upgrade
from session_service.storage.session import reads
from tests.session.poolers import pgbouncer
from tools.fetch import TOOLS, find

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DATA = Path(".roost/bench-poolers")
SESSIONS = 1000
ROUNDS, CALLS = 20, 50


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    async with AsyncExitStack() as stack:
        postgres = await stack.enter_async_context(EmbeddedPostgres(DATA / "postgres"))
        await postgres.ensure_database("roost")
        url = postgres.url("roost")
        await asyncio.to_thread(upgrade, url)
        await seed(url, SESSIONS)
        pools = {"prepared": Database(url), "not prepared": Database(url, pooled=True)}
        if find(TOOLS["pgbouncer"]):
            through = await stack.enter_async_context(pgbouncer(url, "transaction"))
            pools["through PgBouncer"] = Database(through, pooled=True)
        for pool in pools.values():
            await stack.enter_async_context(pool)
        await _measure(pools)
    shutil.rmtree(DATA, ignore_errors=True)


async def _measure(pools: dict[str, Database]) -> None:
    some = next(iter(pools.values()))
    async with some.connection() as connection:
        query = b"SELECT session_id, tenant, project_id, user_id, slot FROM sessions LIMIT 1"
        row = await (await connection.execute(query)).fetchone()
    assert row is not None
    session_id, *names = row
    key = Key(*names)
    statements: dict[str, Callable[[Database], Awaitable[object]]] = {
        "UPDATE of a reuse": lambda pool: pool.fetch_one(STATEMENT, {"id": session_id}),
        "SELECT of a start": lambda pool: reads.live_at(pool, key),
    }
    for name, execute in statements.items():
        took: dict[str, list[float]] = {each: [] for each in pools}
        for _ in range(ROUNDS):
            for each, pool in pools.items():
                began = perf_counter()
                for _ in range(CALLS):
                    await execute(pool)
                took[each].append((perf_counter() - began) / CALLS)
        medians = {each: statistics.median(times) for each, times in took.items()}
        base = medians["prepared"]
        told = ", ".join(
            f"{each} {median * 1000:.2f} ms ({median / base:.2f})"
            for each, median in medians.items()
        )
        print(f"poolers: {name}: {told}")
