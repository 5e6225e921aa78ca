"""The leases of all transitions of a replica are kept together, and each is lost by itself."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.lifecycle.renewing import BATCH, ROUNDS, Renewing
from session_service.storage.database import Database
from tests.eventually import eventually
from tests.session.database_front import fronted, rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

LEASE = timedelta(seconds=3)
EVERY = timedelta(seconds=0.4)
#: How late the loop of a busy machine may come to it, in s.
LATE = 0.5
OWNED = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
    transition, spec, fingerprint, policy, lease_until)
SELECT gen_random_uuid(), 't', 'p', 'u' || n, 'default', 'STARTING', 1, 1,
    'START', '{}', 'f', '{}', now() + %s
FROM generate_series(1, %s) AS n RETURNING session_id
"""


class Counting(Database):
    """The real thing, which also counts what it is asked."""

    asked = 0

    async def fetch_all(self, *arguments: Any, **more: Any) -> Any:
        """One more. Any: statements of all kinds."""
        self.asked += 1
        return await super().fetch_all(*arguments, **more)


@asynccontextmanager
async def holding(
    database: Database, url: str, count: int
) -> AsyncGenerator[dict[UUID, asyncio.Task[None]]]:
    """So many sessions that are owned here; each one's task ends when its lease is lost."""
    began = monotonic()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        inserted = await connection.execute(OWNED, [LEASE, count])
        ids = [row[0] for row in await inserted.fetchall()]
    renewing = Renewing(database, LEASE, EVERY)
    held = {each: asyncio.create_task(renewing.until_lost(each, 1, began)) for each in ids}
    try:
        yield held
    finally:
        for task in held.values():
            task.cancel()
        await asyncio.wait(held.values())
        await renewing.close()


async def lasting(url: str, beyond: timedelta) -> set[UUID]:
    """The sessions whose leases last for longer than this from their making on."""
    found = await rows(
        url, f"SELECT session_id FROM sessions WHERE lease_until > create_time + '{beyond}'"
    )
    return {row[0] for row in found}


async def test_many_are_kept_by_few_statements(database_url: str) -> None:
    """More than go into one statement, for longer than a lease lasts."""
    many, database = BATCH + 100, Counting(database_url)
    async with database, holding(database, database_url, many) as held:
        began = monotonic()
        await eventually(lambda: _all(database_url, set(held), 2 * LEASE), timeout=40)
        assert not any(task.done() for task in held.values())
        rounds = (monotonic() - began) / EVERY.total_seconds() * ROUNDS
        print(f"{many} leases kept for {monotonic() - began:.1f} s by {database.asked} statements")
        assert database.asked <= 2 * rounds + 2


async def _all(url: str, ids: set[UUID], beyond: timedelta) -> bool:
    return await lasting(url, beyond) == ids


async def test_a_row_that_is_locked_costs_no_other_its_lease(database_url: str) -> None:
    """Nor its own, where the lock is given back in time. Nobody is waited for, so that whoever
    locks several rows, in whatever order, comes to no deadlock with us.
    """
    async with Database(database_url) as database, holding(database, database_url, 5) as held:
        locked, *others = held
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute(
                "SELECT 1 FROM sessions WHERE session_id = %s FOR UPDATE", [locked]
            )
            longer = LEASE + 3 * EVERY
            await eventually(lambda: _all(database_url, set(others), longer), timeout=LEASE.seconds)
        await eventually(lambda: _all(database_url, set(held), longer), timeout=LEASE.seconds)
        assert not any(task.done() for task in held.values())


async def test_one_that_moved_on_is_lost_and_no_other(database_url: str) -> None:
    async with Database(database_url) as database, holding(database, database_url, 5) as held:
        taken, *others = held
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("UPDATE sessions SET epoch = 2 WHERE session_id = %s", [taken])
        began = monotonic()
        await asyncio.wait_for(held[taken], LEASE.total_seconds())
        assert monotonic() - began < LEASE.total_seconds() / 2, "told so, not by its own clock"
        await eventually(lambda: _all(database_url, set(others), 2 * LEASE), timeout=20)
        assert not any(held[each].done() for each in others)


async def test_all_stop_in_time_where_the_database_hangs(database_url: str) -> None:
    """By the database's clock: before anybody else may take them over, answered or not."""
    async with (
        fronted(database_url) as (fault, through),
        Database(through) as database,
        holding(database, database_url, 5) as held,
    ):
        await eventually(lambda: _all(database_url, set(held), LEASE + EVERY), timeout=20)
        fault.half_open()
        try:
            await asyncio.wait(held.values(), timeout=2 * LEASE.total_seconds())
            left = await rows(
                database_url, "SELECT extract(epoch FROM lease_until - now()) FROM sessions"
            )
        finally:
            fault.clear()
        assert all(task.done() for task in held.values())
        print(f"stopped {float(min(row[0] for row in left)):.2f} s before the leases ran out")
        assert float(min(row[0] for row in left)) > -LATE
