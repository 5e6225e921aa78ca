"""A migration of a filled database while callers use it: the longest wait of each statement.

    python -m bench upgrade

fills a database of revision ROOST_BENCH_FROM (0012) with ROOST_BENCH_SESSIONS (200,000) sessions,
as many agent sessions, and twice as many decisions and turns. ROOST_BENCH_DATABASE names another
one, of an earlier revision, with rows, that may be changed.

It migrates to the newest revision, and watches which locks on tables with rows keep writers out,
and for how long. Beside it run the statements that calls are made of: a reuse, a
touch, a creation, an append to an agent session, each again and again on a connection of its own.
They are of the earlier revision, as those of the replicas that run on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Self

import psycopg

from bench.passes import SEED_TURNS
from bench.starts import SEED, SEED_CONTAINERS, in_force
from local.postgres.server import EmbeddedPostgres
from session_service.storage.migrate import upgrade
from session_service.storage.revision import read

VARIABLE = "ROOST_BENCH_DATABASE"
DATA = Path(".roost/bench-upgrade")
FROM = os.environ.get("ROOST_BENCH_FROM", "0012")
SESSIONS_FILLED = int(os.environ.get("ROOST_BENCH_SESSIONS", "200000"))
#: Longest wait of a call, in s.
TARGET = 1.0
#: How long the statements run before the migration, for comparison, in s.
QUIET_SECONDS = 5.0
SESSIONS = "SELECT session_id FROM sessions WHERE state = 'ACTIVE' LIMIT 500"
AGENTS = "SELECT tenant, session_id FROM llm_sessions WHERE state = 'ACTIVE' LIMIT 500"
REUSE = """
WITH touched AS (
    UPDATE sessions SET last_active_time = now(), start_count = start_count + 1
    WHERE session_id = %(session_id)s AND state = 'ACTIVE'
    RETURNING session_id, tenant, project_id
)
INSERT INTO decisions (decision_id, tenant, request_id, method, rule, explanation, session_id,
    project_id, outcome, finish_time)
SELECT gen_random_uuid(), tenant, %(request_id)s, 'StartSession', 'REUSE', '', session_id,
    project_id, 'REUSED', now() FROM touched
"""
TOUCH = "UPDATE sessions SET last_active_time = now() WHERE session_id = %(session_id)s"
CREATE = """
WITH made AS (
    INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
        spec, fingerprint, policy, due_at)
    VALUES (gen_random_uuid(), 'default', 'bench', %(request_id)s, 'default', 'ACTIVE', 1, 1, '{}',
        '', '{}', now() + interval '1 day')
    RETURNING session_id
), container AS (
    INSERT INTO containers (session_id, generation, name, app, container_id, state)
    SELECT session_id, 1, 'roost-' || session_id, 'bench', 'm' || session_id, 'STARTED' FROM made
)
INSERT INTO session_events (session_id, sequence, type, state, generation)
SELECT session_id, 1, 'CREATED', 'ACTIVE', 1 FROM made
"""
APPEND = """
UPDATE llm_sessions SET last_query_at = now() WHERE tenant = %(tenant)s
    AND session_id = %(session_id)s
"""


#: Tables with rows, and the locks on them that a writer waits for.
TABLES = "SELECT relid FROM pg_stat_user_tables WHERE n_live_tup > 0"
HELD = """
SELECT l.relation::regclass::text, l.mode FROM pg_locks l
WHERE l.granted AND l.locktype = 'relation' AND l.relation = ANY(%s)
  AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
"""
ENDED = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch, spec,
    fingerprint, policy, start_time, end_time, purge_time, end_reason, due_at)
SELECT gen_random_uuid(), 'default', 'project-' || mod(n, 100), 'u' || n, 'default', 'ENDED', 1, 3,
    '{"image": "roost/counter"}', md5('x') || md5('y'), %(policy)s::jsonb,
    now() - interval '9 days', now() - interval '8 days', now() - interval '7 days', 'EXPIRED',
    now() + interval '20 days'
FROM generate_series(1, %(count)s * 4 / 5) AS n
"""
DECISIONS = """
INSERT INTO decisions (decision_id, tenant, request_id, method, rule, explanation, session_id,
    project_id, outcome, create_time, finish_time)
SELECT gen_random_uuid(), tenant, gen_random_uuid(), 'StartSession', 'REUSE', '', session_id,
    project_id, 'REUSED', at, at
FROM sessions, LATERAL (SELECT now() - random() * interval '80 days' AS at
    FROM generate_series(1, 2 + 0 * generation)) AS made
"""
SESSION_ENDS = """
INSERT INTO session_ends (session_id, tenant, project_id, end_time, lifetime, reason)
SELECT session_id, tenant, project_id, end_time, interval '1 day', 'EXPIRED' FROM sessions
WHERE state = 'ENDED'
"""
AGENT_SESSIONS = """
WITH branch AS (
    INSERT INTO llm_branches (tenant, session_id)
    SELECT 'default', 's' || n FROM generate_series(1, %(count)s) AS n
    RETURNING branch_id, session_id
)
INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
    head_branch, turn_count, total_tokens, total_bytes, due_at)
SELECT 'default', session_id, 'role-' || mod(branch_id, 20), 'You are the CEO.', 'ACTIVE',
    jsonb_build_object('team', 't' || mod(branch_id, 500)), branch_id, %(turns)s, %(turns)s * 250,
    %(turns)s * 200, now() + interval '1 day' FROM branch
"""
SEARCH_ENTRIES = """
INSERT INTO llm_search (branch_id, turn_number, message_index, turn_id, create_time, tenant, role,
    document)
SELECT branch_id, turn_number, 0, turn_id, create_time, tenant, 'user',
    to_tsvector('english', contents[1]) FROM llm_turns
"""
SEARCHED = "UPDATE llm_search_state SET indexed_through = (SELECT max(turn_id) FROM llm_turns)"
FILL = (
    SEED.replace("%(count)s", "%(count)s / 5"),
    ENDED,
    SEED_CONTAINERS,
    DECISIONS,
    SESSION_ENDS,
    AGENT_SESSIONS,
    SEED_TURNS,
    SEARCH_ENTRIES,
    SEARCHED,
)


@dataclass
class Waits:
    """How long the statements of one kind took, in s."""

    longest: float = 0.0
    count: int = 0
    failed: list[str] = field(default_factory=list)

    def note(self, seconds: float) -> None:
        """Count one."""
        self.longest, self.count = max(self.longest, seconds), self.count + 1


class Load:
    """Runs statements again and again, until it is stopped."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.waits: dict[str, Waits] = {}
        self.stopping = False

    def begin(self) -> None:
        """Measure from now on."""
        self.waits = {name: Waits() for name in self.waits}

    async def run(self, name: str, statement: str, rows: list[dict[str, Any]]) -> None:
        """Repeat the statement with these parameters in turn. Any: columns of every type."""
        self.waits[name] = Waits()
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            await connection.execute("SET lock_timeout = '3s'")
            number = 0
            while not self.stopping:
                params = {**rows[number % len(rows)], "request_id": str(uuid.uuid4())}
                number += 1
                began = monotonic()
                try:
                    await connection.execute(statement.encode(), params)
                except psycopg.OperationalError as error:
                    self.waits[name].failed.append(str(error).strip())
                self.waits[name].note(monotonic() - began)
                await asyncio.sleep(0.002)


class Locks:
    """How long locks that keep writers out were held on tables that were there before."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest: dict[tuple[str, str], float] = {}
        """By table and mode, in s."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        held: dict[tuple[str, str], float] = {}
        with psycopg.connect(self._url, autocommit=True) as connection:
            tables = [row[0] for row in connection.execute(TABLES.encode()).fetchall()]
            while not self._stopping.is_set():
                began = monotonic()
                found = connection.execute(HELD.encode(), [tables]).fetchall()
                now = monotonic()
                held = {(row[0], row[1]): held.get((row[0], row[1]), began) for row in found}
                for key, since in held.items():
                    self.longest[key] = max(self.longest.get(key, 0.0), now - since)
                self._stopping.wait(0.003)


async def fill(url: str) -> None:
    """Migrate an empty database to the earlier revision, and fill it."""
    await asyncio.to_thread(upgrade, url, FROM)
    params = {"count": SESSIONS_FILLED, "policy": in_force(url), "turns": 2}
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in FILL:
            await connection.execute(statement.encode(), params)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")


async def run() -> None:
    """Measure and print."""
    if url := os.environ.get(VARIABLE, ""):
        await measure(url)
        return
    shutil.rmtree(DATA, ignore_errors=True)
    async with EmbeddedPostgres(DATA, 0) as server:
        await server.ensure_database("upgrade")
        url = server.url("upgrade")
        began = monotonic()
        await fill(url)
        print(f"{SESSIONS_FILLED} sessions and agent sessions in {monotonic() - began:.0f} s")
        await measure(url)


async def measure(url: str) -> None:
    """Migrate the database with callers beside it, and print."""
    before = await asyncio.to_thread(read, url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        sessions = [
            {"session_id": row[0]} for row in await (await connection.execute(SESSIONS)).fetchall()
        ]
        agents = [
            {"tenant": row[0], "session_id": row[1]}
            for row in await (await connection.execute(AGENTS)).fetchall()
        ]
    load = Load(url)
    nothing: dict[str, Any] = {}
    tasks = [
        asyncio.create_task(load.run(name, statement, rows))
        for name, statement, rows in (
            ("reuse", REUSE, sessions),
            ("touch", TOUCH, sessions),
            ("create", CREATE, [nothing]),
            ("append", APPEND, agents),
        )
    ]
    await asyncio.sleep(QUIET_SECONDS)
    quiet = load.waits
    load.begin()
    began = monotonic()
    with Locks(url) as locks:
        await asyncio.to_thread(upgrade, url)
    seconds = monotonic() - began
    load.stopping = True
    await asyncio.gather(*tasks)
    after = await asyncio.to_thread(read, url)
    shown = os.getloadavg()[0]
    print(f"migrated from {before} to {after} in {seconds:.1f} s, load {shown:.1f}")
    for name, waits in load.waits.items():
        print(
            f"  {name}: longest {waits.longest * 1e3:.0f} ms of {waits.count} "
            f"(target {TARGET * 1e3:.0f}), {quiet[name].longest * 1e3:.0f} ms before; "
            f"{len(waits.failed)} failed {waits.failed[:1] or ''}"
        )
    ordered = sorted(locks.longest.items(), key=lambda item: -item[1])
    print(f"longest locks that keep writers out (target {TARGET * 1e3:.0f} ms):")
    for (table, mode), held in ordered[:5]:
        print(f"  {table}: {mode}, {held * 1e3:.0f} ms")
