"""Seeds a database by SQL, with so many sessions and as many agent sessions: a million in minutes.

The rows depend on the seed and on the time of the seeding only. `seed_sessions` and `seed_agents`
have the statements. A migration that adds a column which a background pass fills adds a step here,
so that the database stands as it would after the pass.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from time import perf_counter, time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from bench.million import seed_agents, seed_sessions
from bench.starts import in_force
from session_service.config import Config
from session_service.storage import claims
from session_service.storage.agent import rollups as agent_rollups
from session_service.storage.agent import stats as agent_stats
from session_service.storage.database import Database
from session_service.storage.migrate import upgrade
from session_service.storage.session import gauges, retained, rollups

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from bench.million.steps import Step

SEED = 7
#: The tables of `figures`.
_VACUUM = """VACUUM ANALYZE stats_rollups, stats_progress, stats_changes, stats_gauges,
    llm_stats_rollups, llm_stats_changes"""
#: A database is used again for so many seconds. Later its rows would become due, one by one.
KEPT = 20 * 3600.0
_SETTINGS = (
    "SET synchronous_commit = off",
    "SET maintenance_work_mem = '512MB'",
    "SET work_mem = '256MB'",
    # A parallel plan may read rows in another order, and the order is that of the table.
    "SET max_parallel_workers_per_gather = 0",
    "SET timezone = 'UTC'",
)


@dataclass(frozen=True, slots=True)
class Seeded:
    """What a database was seeded with. It is the comment of the database."""

    count: int
    seed: int
    revision: str
    time: float
    """When, in seconds since 1970."""


def address(server: str, name: str) -> str:
    """The address of a database of the server."""
    return urlsplit(server)._replace(path=f"/{name}").geturl()


def database_name(url: str) -> str:
    """The name of the database of an address."""
    return urlsplit(url).path.removeprefix("/")


def seeded(url: str) -> Seeded | None:
    """What the database was seeded with; None if there is none, if its seeding broke off, or if it
    is of another revision or too old.
    """
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database"
                " WHERE datname = current_database()"
            ).fetchone()
            revision = _revision(connection)
    except (psycopg.OperationalError, psycopg.errors.UndefinedTable):
        return None
    found = json.loads(row[0]) if row and row[0] else {}
    made = Seeded(**found) if set(found) == set(Seeded.__slots__) else None
    return made if made and made.revision == revision and time() - made.time < KEPT else None


def create(server: str, name: str, count: int, seed: int = SEED) -> str:
    """Create and fill a database; one that was filled likewise is kept. Returns its address."""
    url = address(server, name)
    found = seeded(url)
    if found and (found.count, found.seed) == (count, seed):
        print(f"{name}: is there, {count} sessions, seed {seed}, revision {found.revision}")
        return url
    with psycopg.connect(address(server, "postgres"), autocommit=True) as connection:
        for command in ("DROP DATABASE IF EXISTS {} WITH (FORCE)", "CREATE DATABASE {}"):
            connection.execute(sql.SQL(command).format(sql.Identifier(name)))
    upgrade(url)
    fill(url, count, seed)
    return url


def fill(url: str, count: int, seed: int = SEED) -> None:
    """Fill an empty database; prints the time of each step."""
    began, name = perf_counter(), database_name(url)
    print(f"{name}: {count} sessions and as many agent sessions, seed {seed}", flush=True)
    failures: list[BaseException] = []
    # Sessions and agent sessions share no table: two connections use two cores.
    threads = [
        threading.Thread(target=_run, args=(url, count, seed, steps, failures))
        for steps in (seed_sessions.STEPS, seed_agents.STEPS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    began_figures = perf_counter()
    asyncio.run(figures(url))
    print(f"{name}: {'figures':34}{perf_counter() - began_figures:7.1f} s", flush=True)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_VACUUM)
        connection.execute("CHECKPOINT")
        made = Seeded(count, seed, _revision(connection), time())
        connection.execute(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(
                sql.Identifier(name), json.dumps(asdict(made))
            )
        )
    print(f"{name}: seeded in {perf_counter() - began:.0f} s", flush=True)


async def figures(url: str) -> None:
    """Make what the background passes would have made by now: roll-ups, and gauges."""
    at_once = timedelta(0)
    async with Database(url, max_size=2) as database:
        await claims.claim(database, retained.NAME, at_once)
        await rollups.begin(database, Config(url).decision_retention)
        while await rollups.roll_up_day(database) or await rollups.roll_up_hour(database):
            pass
        await claims.claim(database, agent_stats.NAME, at_once)
        await agent_rollups.begin(database)
        while await agent_rollups.roll_up_day(database):
            pass
        await gauges.refresh(database, at_once)


def _revision(connection: psycopg.Connection[tuple[object, ...]]) -> str:
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else ""


def _run(
    url: str, count: int, seed: int, steps: Sequence[Step], failures: list[BaseException]
) -> None:
    try:
        params = {
            "count": count,
            "seed": seed,
            "policy": in_force(url),
            "language": Config(url).search_language,
        }
        with psycopg.connect(url, autocommit=True) as connection:
            for setting in _SETTINGS:
                connection.execute(setting)
            for step in steps:
                began = perf_counter()
                with _rebuilt(connection, step.rebuilt):
                    _execute(connection, step, params)
                took = perf_counter() - began
                print(f"{database_name(url)}: {step.name:34}{took:7.1f} s", flush=True)
    except BaseException as error:  # noqa: BLE001  # it is raised again by the thread that waits
        failures.append(error)


def _execute(
    connection: psycopg.Connection[tuple[object, ...]], step: Step, params: dict[str, object]
) -> None:
    role = "replica" if step.unchecked else "origin"
    connection.execute(f"SET session_replication_role = {role}".encode())
    # Simple protocol: VACUUM takes no parameters, and the types of others are in the statements.
    cursor = psycopg.ClientCursor(connection)
    cursor.execute(step.sql.encode(), params)


@contextmanager
def _rebuilt(connection: psycopg.Connection[tuple[object, ...]], table: str) -> Generator[None]:
    """Drop the table's indexes, and build them again at the end; keys of constraints stay."""
    rows = connection.execute(
        "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i"
        " LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid"
        " WHERE i.indrelid = to_regclass(%s) AND c.oid IS NULL",
        [table or None],
    ).fetchall()
    for name, _ in rows:
        connection.execute(f"DROP INDEX {name}".encode())
    yield
    for _, definition in rows:
        connection.execute(str(definition).encode())
