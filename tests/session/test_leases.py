"""A replica renews the leases of all its transitions together; each can be lost on its own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import psycopg

from session_service.storage.database import Database
from session_service.transition.ownership import BATCH, ROUNDS, LeaseRenewal
from tests.eventually import eventually
from tests.session.database_faults import fronted, rows

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable
    from uuid import UUID

LEASE = timedelta(seconds=10)
EVERY = timedelta(seconds=0.4)
#: How often the event loop is asked how late it is, in s, and how late it may always be.
TICK, LATE = 0.05, 0.1
OWNED = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
    transition, spec, fingerprint, policy, lease_until)
SELECT gen_random_uuid(), 't', 'p', 'u' || n, 'default', 'STARTING', 1, 1,
    'START', '{}', 'f', '{}', now() + %s
FROM generate_series(1, %s) AS n RETURNING session_id
"""


class CountingDatabase(Database):
    """A database that also counts its statements."""

    statements = 0

    async def fetch_all(self, *arguments: Any, **more: Any) -> Any:
        """Count, then run it. Any: statements of all kinds."""
        self.statements += 1
        return await super().fetch_all(*arguments, **more)


@asynccontextmanager
async def owning(
    database: Database, url: str, count: int
) -> AsyncGenerator[dict[UUID, asyncio.Task[None]]]:
    """Insert `count` owned sessions and renew their leases; each task ends with its lease."""
    began = monotonic()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        inserted = await connection.execute(OWNED, [LEASE, count])
        ids = [row[0] for row in await inserted.fetchall()]
    renewal = LeaseRenewal(database, LEASE, EVERY)
    held = {each: asyncio.create_task(renewal.until_lost(each, 1, began)) for each in ids}
    try:
        yield held
    finally:
        for task in held.values():
            task.cancel()
        await asyncio.wait(held.values())
        await renewal.close()


async def lasting_beyond(url: str, beyond: timedelta) -> set[UUID]:
    """The sessions whose leases end later than `beyond` after their creation."""
    found = await rows(
        url, f"SELECT session_id FROM sessions WHERE lease_until > create_time + '{beyond}'"
    )
    return {row[0] for row in found}


async def test_many_leases_are_renewed_by_few_statements(database_url: str) -> None:
    """More leases than fit into one statement, for longer than a lease lasts."""
    many, database = BATCH + 100, CountingDatabase(database_url)
    async with database, owning(database, database_url, many) as held:
        began = monotonic()
        await eventually(lambda: _all(database_url, set(held), 2 * LEASE))
        assert not any(task.done() for task in held.values())
        rounds = (monotonic() - began) / EVERY.total_seconds() * ROUNDS
        print(f"{many} leases kept for {2 * LEASE} and more by {database.statements} statements")
        assert database.statements <= 2 * rounds + 2


async def _all(url: str, ids: set[UUID], beyond: timedelta) -> bool:
    return await lasting_beyond(url, beyond) == ids


async def test_a_locked_row_delays_no_other_lease(database_url: str) -> None:
    """Its own lease survives too, if the lock is released in time. The renewal skips locked rows
    and never waits for a lock, so it cannot deadlock with a transaction that locks several rows.
    """
    async with Database(database_url) as database, owning(database, database_url, 5) as held:
        locked, *others = held
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute(
                "SELECT 1 FROM sessions WHERE session_id = %s FOR UPDATE", [locked]
            )
            longer = LEASE + 3 * EVERY
            await eventually(lambda: _all(database_url, set(others), longer))
        await eventually(lambda: _all(database_url, set(held), longer))
        assert not any(task.done() for task in held.values())


async def test_a_lease_whose_epoch_moved_on_is_lost_and_no_other(database_url: str) -> None:
    async with Database(database_url) as database, owning(database, database_url, 5) as held:
        taken, *others = held
        async with await psycopg.AsyncConnection.connect(database_url) as connection:
            await connection.execute("UPDATE sessions SET epoch = 2 WHERE session_id = %s", [taken])
        began = monotonic()
        await asyncio.wait_for(held[taken], 30)
        assert monotonic() - began < LEASE.total_seconds() / 2, (
            "the renewal found it lost, not the clock"
        )
        await eventually(lambda: _all(database_url, set(others), 2 * LEASE))
        assert not any(held[each].done() for each in others)


async def test_all_tasks_stop_before_their_leases_expire_if_the_database_hangs(
    database_url: str,
) -> None:
    """By the database's clock: before another replica may take the sessions over."""
    async with (
        fronted(database_url) as (fault, through),
        Database(through) as database,
        owning(database, database_url, 5) as held,
    ):
        await eventually(lambda: _all(database_url, set(held), LEASE + EVERY))
        ended: dict[UUID, float] = {}
        for each, task in held.items():
            task.add_done_callback(partial(_note_end, ended, each))
        fault.half_open()
        try:
            late = await _lateness_until(held.values(), 3 * LEASE.total_seconds())
            left = await rows(
                database_url,
                "SELECT session_id, extract(epoch FROM lease_until - now()) FROM sessions",
            )
            answered = monotonic()
        finally:
            fault.clear()
        assert ended.keys() == held.keys()
        before = [answered + float(seconds) - ended[each] for each, seconds in left]
        print(f"stopped {min(before):.2f} s before the leases ran out; {late:.2f} s late")
        assert min(before) > -late


def _note_end(ended: dict[UUID, float], each: UUID, _: object) -> None:
    ended[each] = monotonic()


async def _lateness_until(tasks: Iterable[asyncio.Task[None]], timeout: float) -> float:
    """Wait for the tasks; return how late the event loop was at most meanwhile, in s."""
    late, until = LATE, monotonic() + timeout
    waited = asyncio.ensure_future(asyncio.wait(list(tasks)))
    while not waited.done() and monotonic() < until:
        began = monotonic()
        await asyncio.wait({waited}, timeout=TICK)
        late = max(late, monotonic() - began - TICK + LATE)
    waited.cancel()
    return late
