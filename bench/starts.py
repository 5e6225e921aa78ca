"""`StartSession` answered REUSED, and `GetSession`, beside the floor: RPC/s, latency, CPU per call.

Each server is alone on the first core, and the load and PostgreSQL on the others. Where the server
kept its core busy, the ratio of RPC/s is the ratio of the servers. Where it did not (on two cores
PostgreSQL and the load fill theirs first), the ratio of CPU per call is: it is what a busy server's
RPC/s would show.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg

from local.ports import free_port
from local.postgres.server import EmbeddedPostgres
from session_service.config import Config
from session_service.domain.policy import NOTHING, dump_in_force, effective, tier_of
from session_service.policy.service import Operator
from session_service.server import composition
from session_service.storage.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DATA = Path(".roost/bench")
KEYS = 1000
WINDOW = 32
SECONDS = 4.0
ROUNDS = 5
#: A server that used less of its core than this was waiting for something else.
BUSY = 0.85
ORDER = ("floor", "start", "get")
TARGET = {"start": 0.6}


@dataclass(frozen=True)
class Round:
    """One load on one server."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    busy: float


SEED = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch, spec,
    fingerprint, policy, verified_at, start_time, due_at)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'default', 'project-' || mod(n - 1, 10), 'u' || (n - 1),
    'default', 'ACTIVE', 1, 3, '{"image": "roost/counter"}', md5('x') || md5('y'),
    %(policy)s::jsonb, now() + interval '1 hour', now(), now() + interval '1 hour'
FROM generate_series(1, %(count)s) AS n
"""
SEED_CONTAINERS = """
INSERT INTO containers (session_id, generation, name, app, container_id, state, region, boot_id,
    start_time)
SELECT session_id, 1, 'roost-' || session_id || '-1', 'roost-local', '1857156b526dd8', 'STARTED',
    'iad', gen_random_uuid(), now()
FROM sessions
"""


async def seed(url: str, count: int) -> None:
    """Fill an empty database with this many running sessions, and ANALYZE it."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        params = {"count": count, "policy": in_force(url)}
        await connection.execute("TRUNCATE sessions, containers, decisions CASCADE")
        await connection.execute(SEED, params)
        await connection.execute(SEED_CONTAINERS)
        await connection.execute("VACUUM ANALYZE sessions, containers, decisions")


def in_force(url: str) -> str:
    """The policy in a row written by a server with the default configuration."""
    config = Config(url)
    operator = Operator(composition.default_policy(config), config.tier, None)
    made = effective(operator.policy, tier_of(config.tier), NOTHING, NOTHING)
    return dump_in_force(replace(made, base=operator.base, version=f"{config.tier}.0"))


async def settings(url: str) -> str:
    """The settings that decide whether a commit is durable."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        shown = []
        for name in ("server_version", "fsync", "synchronous_commit"):
            row = await (await connection.execute(f"SHOW {name}")).fetchone()
            shown.append(f"{name} {row[0] if row else '?'}")
    return ", ".join(shown)


async def decisions(url: str) -> int:
    """The number of decisions."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute("SELECT count(*) FROM decisions")).fetchone()
    return int(row[0]) if row else 0


def cores() -> tuple[set[int], set[int]]:
    """The core of the server and the cores of everything else; equal on a one-core machine."""
    everything = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return {everything[0]}, set(everything[1:]) or {everything[0]}


def on_cores(chosen: set[int]) -> None:
    """Restrict this process, and its future children, to these cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)


SERVER, OTHERS = cores()


@asynccontextmanager
async def serving(kind: str, url: str) -> AsyncGenerator[tuple[psutil.Process, str]]:
    """The server under test as a process on the first core, and its address."""
    target = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "ROOST_DATABASE_URL": url,
        "ROOST_SESSION_LISTEN": target,
        "ROOST_CONTAINER_TARGET": "127.0.0.1:9",
        "ROOST_URL_TEMPLATE": "http://{container_id}.{app}.localhost:4281/",
        "ROOST_LOG_LEVEL": "ERROR",
    }
    module = "bench.floor" if kind == "floor" else "session_service"
    child = await asyncio.create_subprocess_exec(*(sys.executable, "-m", module), env=environment)
    try:
        process = psutil.Process(child.pid)
        await load(target, kind, 0.5)
        yield process, target
    finally:
        child.kill()
        await child.wait()


async def load(target: str, kind: str, seconds: float) -> dict[str, float]:
    """Run the load; return its results."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load", target, kind),
        *("--keys", str(KEYS), "--window", str(WINDOW), "--seconds", str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await child.communicate()
    tallied: dict[str, float] = json.loads(out)
    return tallied


async def measure(kind: str, url: str) -> Round:
    """One round of one kind, on a server started for it."""
    async with serving(kind, url) as (process, target):
        before, counted = process.cpu_times(), await decisions(url)
        tally = await load(target, kind, SECONDS)
        after = process.cpu_times()
        used = after.user + after.system - before.user - before.system
        if tally["errors"]:
            raise SystemExit(f"{kind}: {tally['errors']} calls failed: the figures mean nothing")
        made = await decisions(url) - counted
        if kind == "start" and made != tally["calls"]:
            raise SystemExit(f"{made} decisions for {tally['calls']} starts: not every call counts")
    return Round(
        tally["calls"] / tally["seconds"],
        tally["p50"] * 1000,
        tally["p99"] * 1000,
        used / tally["calls"] * 1e6,
        used / tally["seconds"],
    )


def median(rounds: list[Round], name: str) -> float:
    """The median of one of the rounds' figures."""
    figures: list[float] = [getattr(item, name) for item in rounds]
    return statistics.median(figures)


def report(found: dict[str, list[Round]]) -> None:
    """Print the table: medians over the rounds, and ratios to the floor."""
    print(
        f"{'':10}{'RPC/s':>8}{'of floor':>10}{'p50 ms':>9}{'p99 ms':>9}"
        f"{'CPU us':>9}{'of floor':>10}{'busy':>7}"
    )
    floor = found["floor"]
    for kind in ORDER:
        rounds = found[kind]
        # Kind by kind within each round, because the speed of a busy machine drifts.
        ratios = [mine.rate / base.rate for mine, base in zip(rounds, floor, strict=True)]
        ratio = statistics.median(ratios)
        by_cpu = statistics.median(
            [base.cpu_us / mine.cpu_us for mine, base in zip(rounds, floor, strict=True)]
        )
        target = f"  target {TARGET[kind]}" if kind in TARGET else ""
        print(
            f"{kind:10}{median(rounds, 'rate'):8.0f}{ratio:10.2f}{median(rounds, 'p50_ms'):9.2f}"
            f"{median(rounds, 'p99_ms'):9.2f}{median(rounds, 'cpu_us'):9.0f}{by_cpu:10.2f}"
            f"{median(rounds, 'busy'):7.2f}{target}"
        )
    idle = [kind for kind in ORDER if median(found[kind], "busy") < BUSY]
    if idle:
        print(f"Not busy: {', '.join(idle)}. There the ratio by CPU per call counts.")


async def run(rounds: int = ROUNDS) -> None:
    """Measure and print."""
    on_cores(OTHERS)
    await asyncio.to_thread(shutil.rmtree, DATA, ignore_errors=True)
    await asyncio.to_thread(DATA.mkdir, parents=True)
    async with EmbeddedPostgres(DATA / "postgres", durable=True) as server:
        await server.ensure_database("roost")
        url = server.url("roost")
        await asyncio.to_thread(upgrade, url)
        await seed(url, KEYS)
        print(
            f"starts: {KEYS} keys, {WINDOW} in flight, {rounds} rounds of {SECONDS:g} s each; "
            f"{await settings(url)}"
        )
        found: dict[str, list[Round]] = {kind: [] for kind in ORDER}
        for _ in range(rounds):
            for kind in ORDER:
                found[kind].append(await measure(kind, url))
        report(found)


if __name__ == "__main__":
    asyncio.run(run())
