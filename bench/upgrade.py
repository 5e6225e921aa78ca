"""A migration of a filled database while callers use it: the longest wait of each statement.

Needs a database of an earlier revision, with rows, that it may change:

    ROOST_BENCH_DATABASE=postgresql://… python -m bench upgrade

It migrates to the newest revision. Beside it run the statements that calls are made of: a reuse, a
touch, a creation, an append to an agent session, each again and again on a connection of its own.
They are of the earlier revision, as those of the replicas that run on meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import sys
import uuid
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import psycopg

from session_service.storage.migrate import upgrade
from session_service.storage.revision import read

VARIABLE = "ROOST_BENCH_DATABASE"
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


async def run() -> None:
    """Measure and print."""
    url = os.environ.get(VARIABLE, "")
    if not url:
        sys.exit(f"{VARIABLE} must be the address of a database that may be migrated")
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
    await asyncio.to_thread(upgrade, url)
    seconds = monotonic() - began
    load.stopping = True
    await asyncio.gather(*tasks)
    after = await asyncio.to_thread(read, url)
    print(f"migrated from {before} to {after} in {seconds:.1f} s")
    for name, waits in load.waits.items():
        print(
            f"  {name}: longest {waits.longest * 1e3:.0f} ms of {waits.count} "
            f"(target {TARGET * 1e3:.0f}), {quiet[name].longest * 1e3:.0f} ms before; "
            f"{len(waits.failed)} failed {waits.failed[:1] or ''}"
        )
