"""`AppendTurn` and `GetContext` as a conversation grows, beside the floor and the reference design.

The servers are on the first core, the load and PostgreSQL on the others. The ratio of p50 at 5,000
turns to p50 at 0 is the one that counts: its calls were made in turn, on one machine's drift.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import psutil
import psycopg

from bench.agent_baselines import CONTENT, FLOOR, TABLES
from bench.starts import DATA, OTHERS, SERVER, on_cores, settings
from local.ports import free_port
from local.postgres.server import EmbeddedPostgres
from session_service.domain.agent import Append, Message, NewTurn
from session_service.domain.decision import Request
from session_service.storage.agent import appends
from session_service.storage.database import Database
from session_service.storage.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

SIZES = (0, 100, 1000, 5000)
#: Sessions of each size. The appends make each of them only a few turns longer.
COPIES = {0: 60, 100: 10, 1000: 4, 5000: 2}
ROUNDS = 300
REFERENCE_ROUNDS = 15
WRITERS = 32
SECONDS = 4.0
WAL_APPENDS = 500
#: The content of a turn of 1 kB.
PAYLOAD = len(CONTENT)

SEED = """
WITH branch AS (
    INSERT INTO llm_branches (tenant, session_id) VALUES ('default', %(id)s) RETURNING branch_id
), session AS (
    INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
        head_branch, turn_count, total_tokens, total_bytes, idle_timeout, due_at)
    SELECT 'default', %(id)s, 'ceo', 'You are the CEO.', 'ACTIVE', '{}', branch_id, %(turns)s,
        %(turns)s * 250, %(turns)s * 1060, '1 h', now() + interval '1 h' FROM branch
)
INSERT INTO llm_turns (branch_id, turn_number, tokens, estimated_tokens, size_bytes, tokens_after,
    estimated_after, bytes_after, create_time, request_id, request_hash, tenant, roles, contents,
    token_counts)
SELECT branch_id, n, 250, 0, 1060, n * 250, 0, n * 1060, now(), gen_random_uuid(),
    decode(repeat('00', 32), 'hex'), 'default', '{user}', ARRAY[%(content)s], '{250}'
FROM branch, generate_series(1, %(turns)s) AS n
"""
SEED_BASELINES = """
INSERT INTO bench_floor SELECT * FROM llm_sessions;
"""
SEED_REFERENCE = """
INSERT INTO bench_reference (session_id, agent_role, conversation_history)
SELECT %(id)s, 'ceo', coalesce((SELECT jsonb_agg(jsonb_build_object(
    'role', 'user', 'content', %(content)s::text, 'tokens', 250))
    FROM generate_series(1, %(turns)s)), '[]')
"""


def names(size: int) -> list[str]:
    """The sessions of a size."""
    return [f"s{size}_{copy}" for copy in range(COPIES[size])]


WRITING = [f"w{number}" for number in range(WRITERS)]


async def seed(url: str) -> None:
    """Conversations of every size, here and in the baselines' tables."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(TABLES)
        wanted = [(name, size) for size in SIZES for name in names(size)]
        for name, size in [*wanted, *((name, 0) for name in WRITING)]:
            params = {"id": name, "turns": size, "content": CONTENT}
            await connection.execute(SEED, params)
            if not name.startswith("w") and name.endswith("_0"):
                await connection.execute(SEED_REFERENCE, params)
        await connection.execute(SEED_BASELINES)
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")


@asynccontextmanager
async def serving(module: str, url: str) -> AsyncGenerator[tuple[psutil.Process, str]]:
    """A server as a process on the first core, and its address."""
    target = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "ROOST_DATABASE_URL": url,
        "ROOST_SESSION_LISTEN": target,
        "ROOST_CONTAINER_TARGET": "127.0.0.1:9",
        "ROOST_LOG_LEVEL": "ERROR",
    }
    on_cores(SERVER)
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", module, env=environment)
    on_cores(OTHERS)
    try:
        yield psutil.Process(child.pid), target
    finally:
        child.kill()
        await child.wait()


async def load(mode: str, **given: Any) -> dict[str, Any]:
    """Run the load; return its measurements. Any: JSON."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.agent_load", mode),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate(json.dumps(given).encode())
    if child.returncode:
        raise SystemExit("the load failed: its figures mean nothing")
    found: dict[str, Any] = json.loads(out)
    return found


def milliseconds(latencies: list[float]) -> tuple[float, float]:
    """Their p50 and p99."""
    ordered = sorted(latencies)
    return ordered[len(ordered) // 2] * 1000, ordered[len(ordered) * 99 // 100] * 1000


async def latencies(targets: dict[str, str]) -> None:
    """p50 and p99 of each call, one at a time."""
    kinds = {"memory": names(0), "floor": names(0)}
    kinds |= {f"{what}@{size}": names(size) for what in ("append", "context") for size in SIZES}
    found = await load("latency", **targets, kinds=kinds, rounds=ROUNDS)
    slow = {f"reference@{size}": names(size)[:1] for size in SIZES}
    found |= await load("latency", **targets, kinds=slow, rounds=REFERENCE_ROUNDS)
    floor, _ = milliseconds(found["floor"])
    memory, _ = milliseconds(found["memory"])
    print(f"\n{'one at a time':18}{'p50 ms':>9}{'p99 ms':>9}{'of floor':>10}{'of @0':>8}")
    for name, values in found.items():
        p50, p99 = milliseconds(values)
        what, _, size = name.partition("@")
        first = found.get(f"{what}@0")
        of_first = f"{p50 / milliseconds(first)[0]:8.2f}" if first and size != "0" else f"{'':8}"
        print(f"{name:18}{p50:9.2f}{p99:9.2f}{p50 / floor:10.2f}{of_first}")
    append = milliseconds(found["append@5000"])[0]
    print(f"append@5000 over memory: {append - memory:.2f} ms (target: at most 5)")


@dataclass(frozen=True)
class Rate:
    """One load on one server."""

    calls: float
    cpu_us: float
    busy: float


async def rate(name: str, process: psutil.Process, targets: dict[str, str]) -> Rate:
    """Calls a second of one kind, 32 sessions and as many in flight."""
    given = {**targets, "kinds": {name: WRITING}, "window": WRITERS}
    await load("rate", **given, seconds=0.5)
    before, began = process.cpu_times(), perf_counter()
    tally = await load("rate", **given, seconds=SECONDS)
    after, spent = process.cpu_times(), perf_counter() - began
    if tally["errors"]:
        raise SystemExit(f"{name}: {tally['errors']} calls failed: the figures mean nothing")
    used = after.user + after.system - before.user - before.system
    count = len(tally["latencies"])
    return Rate(count / SECONDS, used / count * 1e6, used / spent)


async def rates(
    service: psutil.Process, baselines: psutil.Process, targets: dict[str, str], rounds: int
) -> None:
    """Appends a second beside the floor and the reference, round by round."""
    processes = {"floor": baselines, "append": service, "reference": baselines}
    found: dict[str, list[Rate]] = {name: [] for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            found[name].append(await rate(name, process, targets))
    print(f"\n{'32 sessions':18}{'calls/s':>9}{'of floor':>10}{'CPU us':>9}{'busy':>7}")
    for name, mine in found.items():
        ratio = statistics.median(
            a.calls / b.calls for a, b in zip(mine, found["floor"], strict=True)
        )
        calls = statistics.median(each.calls for each in mine)
        cpu = statistics.median(each.cpu_us for each in mine)
        busy = statistics.median(each.busy for each in mine)
        print(f"{name:18}{calls:9.0f}{ratio:10.2f}{cpu:9.0f}{busy:7.2f}")


def an_append(session_id: str) -> Append:
    """A turn of 1 kB, under an id of its own."""
    message = Message("user", CONTENT, 250)
    request = Request("default", "AppendTurn", b"\0" * 32, uuid4())
    return Append(request, session_id, NewTurn((message,), PAYLOAD + 36), None, False)


async def in_process(url: str) -> None:
    """The same statement without any RPC, as the other systems were measured; and its WAL."""
    async with Database(url, max_size=16) as database:
        print(f"\n{'in process':18}{'p50 ms':>9}{'p99 ms':>9}{'WAL B':>9}{'over payload':>14}")
        for size in SIZES:
            values = await _appends(database, names(size), 200)
            async with database.connection() as connection:
                before = await _wal(connection)
                values += await _appends(database, names(size), WAL_APPENDS)
                after = await _wal(connection)
            images = after[1] - before[1]
            wal = (after[0] - before[0]) / WAL_APPENDS
            p50, p99 = milliseconds(values)
            full_pages = f"  ({images} full-page images within)" if images else ""
            print(
                f"append@{size:<11}{p50:9.2f}{p99:9.2f}{wal:9.0f}{wal - PAYLOAD:14.0f}{full_pages}"
            )
        floors = await _floors(database, names(0), WAL_APPENDS)
        p50, p99 = milliseconds(floors)
        print(f"{'floor':18}{p50:9.2f}{p99:9.2f}")
        for name, work in (("floor", _floors), ("append", _appends)):
            began = perf_counter()
            await asyncio.gather(*(work(database, [each], 200) for each in WRITING))
            spent = perf_counter() - began
            print(f"32 sessions, {name}: {WRITERS * 200 / spent:.0f}/s")


async def _appends(database: Database, sessions: list[str], count: int) -> list[float]:
    values = []
    for number in range(count):
        wanted = an_append(sessions[number % len(sessions)])
        began = perf_counter()
        done = await appends.append(database, wanted)
        values.append(perf_counter() - began)
        if done is None:
            raise SystemExit("an append failed: the figures mean nothing")
    return values


async def _floors(database: Database, sessions: list[str], count: int) -> list[float]:
    values = []
    for number in range(count):
        began = perf_counter()
        await database.fetch_one(FLOOR, {"id": sessions[number % len(sessions)]})
        values.append(perf_counter() - began)
    return values


async def _wal(connection: Any) -> tuple[int, int]:
    """Bytes of WAL so far, and full-page images. Any: psycopg's connection."""
    await connection.execute("SELECT pg_stat_force_next_flush()")
    row = await (
        await connection.execute(
            "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, wal_fpi FROM pg_stat_wal"
        )
    ).fetchone()
    return int(row[0]), int(row[1])


async def run(rounds: int = 3) -> None:
    """Measure and print."""
    on_cores(OTHERS)
    data = DATA.with_name("bench-agents")
    await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)
    await asyncio.to_thread(data.mkdir, parents=True)
    async with EmbeddedPostgres(data / "postgres", durable=True) as server:
        await server.ensure_database("roost")
        url = server.url("roost")
        await asyncio.to_thread(upgrade, url)
        await seed(url)
        print(f"agents: turns of {PAYLOAD} bytes, {ROUNDS} calls of each; {await settings(url)}")
        async with (
            serving("session_service", url) as (service, agents),
            serving("bench.agent_baselines", url) as (baselines, bare),
        ):
            targets = {"service": agents, "baselines": bare}
            await latencies(targets)
            await rates(service, baselines, targets, rounds)
        # The other systems had both cores to themselves, too.
        on_cores(SERVER | OTHERS)
        await in_process(url)
    await asyncio.to_thread(shutil.rmtree, data, ignore_errors=True)


if __name__ == "__main__":
    asyncio.run(run())
