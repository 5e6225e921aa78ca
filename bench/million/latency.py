"""The latency of each documented call at two sizes: one call of each database in turn.

Both replicas are processes of their own, and both databases are of one server. The machine's drift
is in both columns alike. Beside them is the CPU time of a call, in its replica and in PostgreSQL:
other programs add to what the clock says, and not to this. A call meets its target by either.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

import grpc.aio
import httpx
import psycopg

from bench.million import seed
from bench.million.calls import CALLS, Call, Rows
from bench.million.cpu import Processes
from bench.million.serve import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

ROUNDS = 41
#: Rounds before those that count: plans, caches, connections.
WARM = 6
#: The most seconds for the rounds of a call, and the least number of rounds that it gets.
SECONDS, LEAST = 8.0, 3
RATIO = 1.2
#: How often figures are rolled up and gauges refreshed between two calls, in s.
PASSES_EVERY = 60.0
#: A difference below this many milliseconds is the machine's, whatever the ratio. So is one within
#: the spread of the small side: half the range of the middle half of its latencies.
NOISE = 1.0
_ACTIVE = """
SELECT session_id::text, project_id, user_id FROM sessions
WHERE state = 'ACTIVE' AND verified_at > now() + interval '1 hour'
ORDER BY session_id DESC LIMIT 200
"""
#: How long PostgreSQL may keep counts of its backends to itself, in s (`pgstat.c`), and some more.
COUNTED_AFTER = 15.0


@dataclass(slots=True)
class Measured:
    """The latencies of a call in ms, at both sizes, and what failed."""

    name: str
    milliseconds: float | None
    small: list[float] = field(default_factory=list)
    large: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    small_cpu: float | None = None
    """The CPU time of a call in ms at the small size; None where it cannot be read."""
    large_cpu: float | None = None
    hot: float | None = None
    """The fraction of heap-only updates at the large size; None if it updates nothing."""
    least_hot: float = 0.0

    @property
    def ratio(self) -> float:
        """The median at the large size as a multiple of that at the small one."""
        return statistics.median(self.large) / statistics.median(self.small)

    @property
    def passes(self) -> bool:
        """Whether the targets hold, by the clock or by CPU time."""
        if self.errors or (self.hot is not None and self.hot < self.least_hot):
            return False
        return self.passes_by_clock or self._passes_by_cpu

    @property
    def passes_by_clock(self) -> bool:
        """Whether the latencies meet the target."""
        large, small = statistics.median(self.large), statistics.median(self.small)
        if self.milliseconds is not None:
            return large <= self.milliseconds
        return large <= RATIO * small or large - small <= max(NOISE, _spread(self.small))

    @property
    def _passes_by_cpu(self) -> bool:
        if self.large_cpu is None or self.small_cpu is None:
            return False
        if self.milliseconds is not None:
            return self.large_cpu <= self.milliseconds
        return self.large_cpu <= RATIO * self.small_cpu


def _spread(values: list[float]) -> float:
    quarters = statistics.quantiles(values, n=4)
    return (quarters[2] - quarters[0]) / 2


@dataclass(slots=True)
class Side:
    """A replica on one of the databases. Any: calls of every type."""

    url: str
    rows: Rows
    channel: grpc.aio.Channel
    metrics: str
    processes: Processes
    stubs: dict[str, Any] = field(default_factory=dict)

    async def call(self, call: Call, round_: int) -> Any:
        """Make the call of this round."""
        if call.name not in self.stubs:
            self.stubs[call.name] = self.channel.unary_unary(
                call.method,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=call.answers.FromString,
            )
        return await self.stubs[call.name](call.request(self.rows, round_), timeout=30)


@asynccontextmanager
async def serving(url: str, count: int) -> AsyncGenerator[Side]:
    """A replica on the database, as a process."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.million.serve"),
        env={**os.environ, **ENVIRONMENT, "ROOST_DATABASE_URL": url},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert child.stdout is not None, "it is piped"
        target, metrics = (await child.stdout.readline()).decode().split()
        async with grpc.aio.insecure_channel(target) as channel:
            await channel.channel_ready()
            yield Side(url, await _rows(url, count), channel, metrics, Processes(url, child.pid))
    finally:
        child.kill()
        await child.wait()


async def _rows(url: str, count: int) -> Rows:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        active = await (await connection.execute(_ACTIVE)).fetchall()
    sparse = [f"a{number}" for number in range(1, count) if number % 10 < 3]
    return Rows(count, [(str(a), str(b), str(c)) for a, b, c in active], sparse)


async def measure(
    small: tuple[str, int], large: tuple[str, int], calls: Iterable[Call] = CALLS,
    *, rounds: int = ROUNDS, seconds: float = SECONDS, tell: Callable[[str], object] = print,
) -> list[Measured]:  # fmt: skip
    """Measure the calls on two databases, each an address and a number of sessions. Tells each line
    of the table as soon as it is measured.
    """
    tell(heading(small[1], large[1]))
    async with AsyncExitStack() as stack:
        sides = [await stack.enter_async_context(serving(*each)) for each in (small, large)]
        found, due = [], 0.0
        for call in calls:
            if perf_counter() > due:
                # What the passes would have done: the replicas run none.
                for side in sides:
                    await seed.figures(side.url)
                due = perf_counter() + PASSES_EVERY
            before = await _updates(sides[1].url, call.table)
            measured = await _measure(call, sides, rounds, seconds)
            if before is not None and not measured.errors:
                made = len(measured.large) + WARM
                measured.hot = await _hot(sides[1].url, call.table, before, made)
                measured.least_hot = call.hot
            found.append(measured)
            tell(line(measured))
        found.append(await _scrape(sides, rounds, seconds))
        tell(line(found[-1]))
    tell(summary(found))
    return found


async def _measure(call: Call, sides: list[Side], rounds: int, seconds: float) -> Measured:
    measured = Measured(call.name, call.milliseconds)
    until = perf_counter() + seconds
    for round_ in range(-WARM, rounds):
        if round_ == 0:
            await _begin(sides)
        if round_ >= LEAST and perf_counter() > until:
            break
        if -1 > round_ > -WARM and perf_counter() > until - seconds / 2:
            # A slow call is warm at once, and would take minutes.
            continue
        for side, took in zip(sides, (measured.small, measured.large), strict=True):
            side.processes.mark()
            began = perf_counter()
            try:
                answer = await side.call(call, round_ + WARM)
            except grpc.aio.AioRpcError as error:
                measured.errors.append(f"{error.code().name}: {error.details()}")
            else:
                if not call.check(answer):
                    measured.errors.append("an unexpected answer")
            if round_ >= 0:
                took.append((perf_counter() - began) * 1000)
    _end(sides, measured)
    return measured


async def _begin(sides: list[Side]) -> None:
    for side in sides:
        await side.processes.begin()


def _end(sides: list[Side], measured: Measured) -> None:
    """Set the CPU times of a call."""
    for side in sides:
        side.processes.mark()
    measured.small_cpu, measured.large_cpu = [side.processes.milliseconds() for side in sides]


async def _scrape(sides: list[Side], rounds: int, seconds: float) -> Measured:
    """A scrape of the metrics, each of which reads the database."""
    measured = Measured("scrape of the metrics", None)
    until = perf_counter() + seconds
    async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
        for round_ in range(-1, rounds):
            if round_ == 0:
                await _begin(sides)
            if round_ >= LEAST and perf_counter() > until:
                break
            for side, took in zip(sides, (measured.small, measured.large), strict=True):
                side.processes.mark()
                began = perf_counter()
                answer = await client.get(f"http://{side.metrics}/metrics")
                if answer.status_code != httpx.codes.OK:
                    measured.errors.append(f"status {answer.status_code}")
                if round_ >= 0:
                    took.append((perf_counter() - began) * 1000)
    _end(sides, measured)
    return measured


async def _updates(url: str, table: str) -> tuple[int, int] | None:
    """The updates of the table so far, and those of them that were heap-only."""
    if not table:
        return None
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s", [table]
        )
        row = await cursor.fetchone()
    return (int(row[0]), int(row[1])) if row else None


async def _hot(url: str, table: str, before: tuple[int, int], made: int) -> float | None:
    """The fraction of heap-only updates, once PostgreSQL has counted all that were made."""
    until = perf_counter() + COUNTED_AFTER
    while True:
        after = await _updates(url, table)
        updates = after[0] - before[0] if after else 0
        if updates >= made or perf_counter() > until:
            break
        await asyncio.sleep(0.5)
    return (after[1] - before[1]) / updates if after and updates else None


def heading(small: int, large: int) -> str:
    """The first line of the table."""
    columns = f"{small:>10}{large:>11}{'ratio':>8}{'CPU':>9}{'CPU':>9}{'target':>9}{'HOT':>7}"
    return f"{'p50 in ms, interleaved':50}{columns}"


def line(each: Measured) -> str:
    """A line of the table, and one for each error."""
    target = f"{each.milliseconds:g} ms" if each.milliseconds else f"{RATIO:g}"
    hot = "" if each.hot is None else f"{each.hot:.2f}"
    cpu = "".join(
        f"{'-' if used is None else f'{used:.2f}':>9}" for used in (each.small_cpu, each.large_cpu)
    )
    mark = "  MISSED" if not each.passes else "" if each.passes_by_clock else "  by CPU only"
    shown = (
        f"{each.name:50}{statistics.median(each.small):10.2f}"
        f"{statistics.median(each.large):11.2f}{each.ratio:8.2f}{cpu}{target:>9}{hot:>7}{mark}"
    )
    errors = (f"    {each.errors.count(error)} times {error}" for error in sorted(set(each.errors)))
    return "\n".join((shown, *errors))


def summary(found: Sequence[Measured]) -> str:
    """How many calls there were, and how many missed their targets."""
    missed = sum(not each.passes for each in found)
    late = sum(not each.passes_by_clock for each in found)
    unavailable = sum(error.startswith("UNAVAILABLE") for each in found for error in each.errors)
    return (
        f"{len(found)} calls, {missed} miss their targets, {late} by the clock alone;"
        f" {unavailable} answers were UNAVAILABLE"
    )
