"""The write paths of this build against those of an earlier one: CPU and WAL for each call.

    ROOST_BENCH_REF=7d70ddd~1 python -m bench against

checks the earlier build out in a worktree, `.roost/against/build`. Its processes run there, with
this build's interpreter and installed packages: the folder that `-m` starts in comes first in the
search path, then `gen/`. So the earlier build must get along with the packages of this one.

Each build has a database of its own, that it migrates and seeds itself, on one server. Each round
starts the one build and then the other, in turn first. What the calls write is the same. Passes
over figures and activity are put off, and no turn is indexed before all calls are made. The CPU of
the service and of all processes of PostgreSQL is counted, and the bytes of the write-ahead log,
without images of whole pages. A median of this build that is above all rounds of the earlier one
is worse than chance.
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
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import psutil
import psycopg

from bench.cpu import cpu, cpu_of_server, grown
from local.ports import free_port
from local.postgres.server import EmbeddedPostgres

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

REF = os.environ.get("ROOST_BENCH_REF", "7d70ddd~1")
ROUNDS = int(os.environ.get("ROOST_BENCH_ROUNDS", "7"))
DATA = Path(".roost/against").absolute()
HERE = Path(__file__).resolve().parent.parent
#: Calls of a kind in a round, and how many of them are in flight.
CALLS, WINDOW = 800, 8
#: Sessions, and calls before the measured ones.
KEYS, WARM = 1000, 60
CALLED = ("REUSED", "touch", "decision", "append")
#: With what the index job does for each turn that was appended.
KINDS = (*CALLED, "index", "idle")
#: How long a service is left alone, in s: what it uses then is taken off what the calls use. `idle`
#: is that, for each second.
IDLE_SECONDS = 8.0
FIGURES = ("service us", "server us", "WAL bytes")
#: Run by each build: its own migration, and rows by its own benchmarks.
PREPARE = """
import asyncio, sys
from bench import agents, starts
from session_service.storage.migrate import upgrade
upgrade(sys.argv[1])
asyncio.run(starts.seed(sys.argv[1], int(sys.argv[2])))
asyncio.run(agents.seed(sys.argv[1]))
"""
#: Passes at times of their own would count for the calls beside them.
NO_PASSES = """
DO $$ BEGIN IF to_regclass('stats_progress') IS NOT NULL THEN
    INSERT INTO stats_progress (name, due_at)
    SELECT name, now() + interval '1 day' FROM unnest(ARRAY['sessions', 'agent sessions']) AS name;
    UPDATE activity_passes SET due_at = now() + interval '1 day';
END IF; END $$
"""
BEHIND = """
SELECT s.indexed_through < t.newest FROM llm_search_state s,
    (SELECT max(turn_id) AS newest FROM llm_turns) t
"""


@dataclass(frozen=True)
class Build:
    """A build: its name, its folder, and the address of its database."""

    name: str
    folder: Path
    url: str

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its processes."""
        return {
            **os.environ,
            "PYTHONPATH": f"{self.folder}:{self.folder / 'gen'}",
            "ROOST_DATABASE_URL": self.url,
            "ROOST_CONTAINER_TARGET": "127.0.0.1:9",
            "ROOST_URL_TEMPLATE": "http://{container_id}.{app}.localhost:4281/",
            "ROOST_LOG_LEVEL": "ERROR",
        }


@dataclass(frozen=True)
class Used:
    """What has been used up to a time: CPU in s, of the service and of each
    process of PostgreSQL; bytes of WAL.
    """

    time: float
    service: float
    server: dict[int, float]
    wal: int

    def since(self, before: Used) -> Spent:
        """The difference."""
        return Spent(
            self.time - before.time,
            self.service - before.service,
            grown(before.server, self.server),
            self.wal - before.wal,
        )


@dataclass(frozen=True)
class Spent:
    """What was used in `time` s."""

    time: float
    service: float
    server: float
    wal: float

    def per_call(self, idle: Spent, calls: int) -> tuple[float, float, float]:
        """The figures of each of so many calls, as FIGURES, without what is used while idle."""
        part = self.time / idle.time
        return (
            (self.service - part * idle.service) / calls * 1e6,
            (self.server - part * idle.server) / calls * 1e6,
            (self.wal - part * idle.wal) / calls,
        )


async def command(*words: str, folder: Path, environment: dict[str, str] | None = None) -> str:
    """Run a command to its end; its output. Raises SystemExit if it fails."""
    child = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    if child.returncode:
        raise SystemExit(f"{words[:3]} failed with status {child.returncode}")
    return out.decode()


@asynccontextmanager
async def earlier(ref: str) -> AsyncGenerator[Path]:
    """The folder of the earlier build, a worktree that is removed at the end."""
    folder = DATA / "build"
    await command("git", "worktree", "add", "--detach", "--force", str(folder), ref, folder=HERE)
    try:
        yield folder
    finally:
        await command("git", "worktree", "remove", "--force", str(folder), folder=HERE)


@asynccontextmanager
async def serving(build: Build) -> AsyncGenerator[tuple[psutil.Process, str]]:
    """The build's service, and its address."""
    target = f"127.0.0.1:{free_port()}"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "session_service"),
        cwd=build.folder,
        env={**build.environment, "ROOST_SESSION_LISTEN": target},
    )
    try:
        yield psutil.Process(child.pid), target
    finally:
        child.kill()
        await child.wait()


@asynccontextmanager
async def calling(target: str) -> AsyncGenerator[Callable[[str, int], Awaitable[None]]]:
    """A process that makes so many calls of a kind. Raises SystemExit if one fails."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.against_load", target),
        cwd=HERE,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    orders, answers = child.stdin, child.stdout

    async def load(kind: str, calls: int) -> None:
        orders.write(f"{kind} {calls} {WINDOW} {KEYS}\n".encode())
        await orders.drain()
        if errors := json.loads(await answers.readline())["errors"]:
            raise SystemExit(f"{kind}: {len(errors)} calls failed: {errors[0]}")

    try:
        yield load
    finally:
        child.kill()
        await child.wait()


@asynccontextmanager
async def unindexed(url: str) -> AsyncGenerator[None]:
    """Let no job index turns meanwhile: it passes over a row that is locked."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("SELECT 1 FROM llm_search_state FOR UPDATE")
        yield
        await connection.rollback()


async def indexed(url: str) -> None:
    """Wait until all turns are in the index."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            cursor = await connection.execute(BEHIND)
            row = await cursor.fetchone()
            if row is not None and not row[0]:
                return
            await asyncio.sleep(0.05)


async def used(service: psutil.Process, postmaster: psutil.Process, url: str) -> Used:
    """What has been used up to now."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (
            await connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
        ).fetchone()
        assert row is not None
    return Used(perf_counter(), cpu(service), cpu_of_server(postmaster), int(row[0]))


async def measure(
    build: Build, postmaster: psutil.Process
) -> dict[str, tuple[float, float, float]]:
    """A round of one build: the figures of each kind."""
    found = {}
    async with serving(build) as (service, target), calling(target) as load:

        async def now() -> Used:
            return await used(service, postmaster, build.url)

        await load(CALLED[0], WARM)
        before = await now()
        await asyncio.sleep(IDLE_SECONDS)
        idle = (await now()).since(before)
        found["idle"] = idle.per_call(Spent(idle.time, 0.0, 0.0, 0.0), round(idle.time))
        for kind in CALLED:
            async with unindexed(build.url):
                await load(kind, WARM)
                before = await now()
                await load(kind, CALLS)
                after = await now()
            found[kind] = after.since(before).per_call(idle, CALLS)
        before = await now()
        await indexed(build.url)
        found["index"] = (await now()).since(before).per_call(idle, CALLS + WARM)
    return found


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    await command("git", "worktree", "prune", folder=HERE)
    async with earlier(REF) as folder, EmbeddedPostgres(DATA / "postgres", durable=False) as server:
        builds = []
        for name, place in (("earlier", folder), ("this", HERE)):
            await server.ensure_database(name)
            builds.append(Build(name, place, server.url(name)))
        for build in builds:
            words = (sys.executable, "-c", PREPARE, build.url, str(KEYS))
            await command(*words, folder=build.folder, environment=build.environment)
            await _quiet(build.url)
        print(f"{REF} against this build, {ROUNDS} rounds of {CALLS} calls, {WINDOW} in flight")
        rounds: dict[str, list[dict[str, tuple[float, float, float]]]] = {"earlier": [], "this": []}
        for number in range(ROUNDS):
            for build in builds if number % 2 == 0 else reversed(builds):
                rounds[build.name].append(await measure(build, psutil.Process(server.child.pid)))
            shown = ", ".join(f"{each:.1f}" for each in os.getloadavg())
            print(f"round {number + 1}: load {shown}", flush=True)
    report(rounds["earlier"], rounds["this"])


async def _quiet(url: str) -> None:
    """Neither a vacuum nor a pass at times of its own."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("ALTER SYSTEM SET autovacuum = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute(NO_PASSES)


def report(
    earlier: Iterable[dict[str, tuple[float, float, float]]],
    this: Iterable[dict[str, tuple[float, float, float]]],
) -> None:
    """Print the medians, and the lowest and highest round of the earlier build."""
    earlier, this = list(earlier), list(this)
    print(f"{'':10}{'':12}{'earlier':>10}{'its rounds':>18}{'this':>10}{'its rounds':>18}")
    for kind in KINDS:
        for place, figure in enumerate(FIGURES):
            old = sorted(each[kind][place] for each in earlier)
            new = sorted(each[kind][place] for each in this)
            before, now = statistics.median(old), statistics.median(new)
            print(
                f"{kind:10}{figure:12}{before:10.0f}{_span(old):>18}{now:10.0f}{_span(new):>18}"
                f"  {now / before if before else 1:.2f}{'  worse' if now > old[-1] else ''}"
            )


def _span(values: list[float]) -> str:
    return f"{values[0]:.0f} to {values[-1]:.0f}"
