"""Lease renewal: 500 waiting transitions of one replica, as in a storm of starts.

Measured while nothing else happens: statements, the replica's CPU, and PostgreSQL's.
"""

from __future__ import annotations

import asyncio
import shutil
from datetime import timedelta
from pathlib import Path
from time import monotonic, process_time
from uuid import uuid4

import psutil
import sqlalchemy as sa

from bench.starts import seed
from local.postgres.server import EmbeddedPostgres
from session_service.storage.database import Database, compiled
from session_service.storage.migrate import upgrade
from session_service.storage.session.reads import make_session, session_columns
from session_service.storage.tables import sessions
from session_service.transition.ownership import Ownership, Pace

DATA = Path(".roost/bench-leases")
OWNED = 500
SECONDS = 15.0
#: The defaults of a replica.
PACE = Pace(lease=timedelta(seconds=10), renew_every=timedelta(seconds=3))
IN_FLIGHT = """
UPDATE sessions SET state = 'STARTING', transition = 'START', lease_until = now() + interval '10 s',
    deadline = now() + interval '10 min'
"""
#: In autocommit each statement is a transaction.
STATEMENTS = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
_ALL = compiled(lambda: sa.select(*session_columns()).select_from(sessions), make_session)


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
        tasks.append(ownership.start_work(session, monotonic(), _wait))
        # They begin one after the other, and so do their renewals.
        await asyncio.sleep(PACE.renew_every.total_seconds() / OWNED)
    before = await _statements(database), process_time(), _cpu(server)
    await asyncio.sleep(SECONDS)
    after = await _statements(database), process_time(), _cpu(server)
    lost = sum(task.done() for task in tasks)
    await ownership.drain(0.0)
    asked, replica, database_server = (
        (end - start) / SECONDS for start, end in zip(before, after, strict=True)
    )
    print(f"leases: {len(tasks)} renewed for {SECONDS:g} s, {lost} of them lost")
    print(
        f"  {asked:.1f} statements a second; of a core {replica:.1%} in the replica and "
        f"{database_server:.1%} in PostgreSQL"
    )


async def _wait(until: float) -> None:
    await asyncio.Event().wait()


async def _statements(database: Database) -> float:
    async with database.connection() as connection:
        row = await (await connection.execute(STATEMENTS)).fetchone()
    assert row is not None
    return float(row[0])


def _cpu(server: psutil.Process) -> float:
    """CPU time of the server and its backends, in s."""
    times = [each.cpu_times() for each in (server, *server.children())]
    return sum(each.user + each.system for each in times)
