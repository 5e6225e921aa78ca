"""Keeping leases: 500 transitions that one replica owns and that wait, as in a storm of starts.

Measured while nothing else happens: statements, the replica's CPU, and PostgreSQL's.
"""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path
from time import monotonic, process_time
from typing import TYPE_CHECKING
from uuid import uuid4

import psutil
import sqlalchemy as sa

from bench.starts import seed
from local.postgres import EmbeddedPostgres
from session_service.lifecycle.ownership import Ownership, Pace
from session_service.storage.database import Database, compiled
from session_service.storage.migrate import upgrade
from session_service.storage.rows import make_session, session_columns
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from session_service.lifecycle.ownership import Held

DATA = Path(".roost/bench-leases")
OWNED = 500
SECONDS = 15.0
#: As a replica has them by default.
PACE = Pace(lease=timedelta(seconds=10), renew_every=timedelta(seconds=3))
IN_FLIGHT = """
UPDATE sessions SET state = 'STARTING', transition = 'START', lease_until = now() + interval '10 s',
    deadline = now() + interval '10 min'
"""
#: In autocommit each statement is a transaction.
STATEMENTS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
_ALL = compiled(sa.select(*session_columns()).select_from(sessions), make_session)


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    async with EmbeddedPostgres(DATA / "postgres", durable=True) as postgres:
        await postgres.ensure_database("roost")
        url = postgres.url("roost")
        await asyncio.to_thread(upgrade, url)
        await seed(url, OWNED)
        async with Database(url) as database:
            await _measure(database, psutil.Process(postgres.child.pid))
    shutil.rmtree(DATA, ignore_errors=True)


async def _measure(database: Database, server: psutil.Process) -> None:
    async with database.connection() as connection:
        await connection.execute(IN_FLIGHT)
    ownership = Ownership(database, uuid4(), PACE)
    tasks = []
    for session in await database.fetch_all(_ALL, {}):
        tasks.append(ownership.carry(session, monotonic(), _wait))
        # They come one after the other, so that their renewals do as well.
        await asyncio.sleep(PACE.renew_every.total_seconds() / OWNED)
    before = await _statements(database), process_time(), _cpu(server)
    await asyncio.sleep(SECONDS)
    after = await _statements(database), process_time(), _cpu(server)
    lost = sum(task.done() for task in tasks)
    await ownership.drain(0.0)
    asked, replica, database_server = (
        (end - start) / SECONDS for start, end in zip(before, after, strict=True)
    )
    print(f"leases: {len(tasks)} kept for {SECONDS:g} s, {lost} of them lost")
    print(
        f"  {asked:.1f} statements a second; of a core {replica:.1%} in the replica and "
        f"{database_server:.1%} in PostgreSQL"
    )


async def _wait(held: Held) -> None:
    await asyncio.Event().wait()


async def _statements(database: Database) -> float:
    async with database.connection() as connection:
        row = await (await connection.execute(STATEMENTS)).fetchone()
    assert row is not None
    return float(row[0])


def _cpu(server: psutil.Process) -> float:
    """Of the server and its backends, in s."""
    times = [each.cpu_times() for each in (server, *server.children())]
    return sum(each.user + each.system for each in times)
