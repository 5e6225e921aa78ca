"""`GetSessionStats` of one project's week among a million decisions, and of all projects together.

What is counted is made of a seed: starts of every outcome with what was tried, joins, refusals,
pauses, in many projects, in the order in which they would have come. The tests count the same rows
by themselves.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg

from bench.starts import DATA, settings
from local.postgres.server import EmbeddedPostgres
from session_service.domain.stats import Span
from session_service.stats.service import Stats
from session_service.storage.database import Database
from session_service.storage.migrate import upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = 1_000_000
ROUNDS = 9
SEED = 7
TENANT = "default"
#: The project of the query: it has a tenth of all rows, in the last week.
PROJECT = "nest"
PROJECTS = 40
WEEK = timedelta(days=7)
#: Rows go back as far as the retention of decisions.
KEPT = timedelta(days=90)
#: One of this many rows has an end.
ENDED = 20


@dataclass(frozen=True)
class Kind:
    """A kind of decision; `share` is its fraction of all rows."""

    share: float
    method: str
    outcome: str | None = None
    attempts: tuple[tuple[str, str, str], ...] = ()
    error: str | None = None
    joined: bool = False
    finished: bool = True


_RESUME = (("RESUME", "SUCCEEDED", "BOOT_ID_EQUAL"),)
_LOST = (("RESUME", "DEGRADED", "BOOT_ID_CHANGED"),)
_CREATE = (("CREATE", "SUCCEEDED", "CREATED"),)
KINDS = (
    Kind(0.70, "StartSession", "REUSED"),
    Kind(0.03, "ResumeSession", "REUSED"),
    Kind(0.08, "StartSession", "RESUMED", _RESUME),
    Kind(0.01, "ResumeSession", "RESUMED", _RESUME),
    Kind(0.02, "StartSession", "RESTARTED", _LOST),
    Kind(0.01, "StartSession", "RESTARTED", (("RESTART", "SUCCEEDED", "BOOT_ID_CHANGED"),)),
    Kind(0.01, "StartSession", "RESTORED", (
        ("RESUME", "FAILED", "CONTAINER_LOST"), ("RESTORE", "SUCCEEDED", "RESTORED"),
    )),
    Kind(0.03, "StartSession", "CREATED", _CREATE),
    Kind(0.01, "StartSession", "CREATED", (("RESTORE", "FAILED", "CHECKPOINT_CORRUPT"), *_CREATE)),
    Kind(0.01, "Keeper", "CREATED", _CREATE),
    Kind(0.01, "ForkSession", "RESTORED", (("RESTORE", "DEGRADED", "RESTORED"),)),
    Kind(0.02, "StartSession", "RESUMED", _RESUME, joined=True),
    Kind(0.005, "StartSession", "RESTARTED", _LOST, "CONTINUITY_UNAVAILABLE", joined=True),
    Kind(0.005, "StartSession", None, (), "PROVIDER_UNAVAILABLE", joined=True),
    Kind(0.01, "StartSession", None, (("CREATE", "FAILED", "NO_CAPACITY"),), "PROVIDER_CAPACITY"),
    Kind(0.01, "StartSession", None, (), "CHOICE_REQUIRED"),
    Kind(0.01, "PauseSession"),
    Kind(0.01, "EndSession"),
    Kind(0.005, "PauseSession", None, (), "SUSPEND_FAILED_STILL_RUNNING"),
    Kind(0.001, "StartSession", finished=False),
)  # fmt: skip
DECISION = (
    *("decision_id", "tenant", "session_id", "method", "mode", "rule", "explanation", "outcome"),
    *("continuity", "continuity_verified", "joined", "attempts", "error", "request_id"),
    *("request_hash", "inputs", "create_time", "finish_time", "project_id", "replay_count"),
)
END = ("session_id", "tenant", "project_id", "end_time", "lifetime", "reason")
REASONS = ("REQUESTED", "REQUESTED", "EXPIRED", "REPLACED", "CREATE_FAILED")


def moments(count: int, now: datetime) -> Iterator[datetime]:
    """The times of the rows, in order; half of them in the last week."""
    old = count // 2
    for number in range(old):
        yield now - WEEK - (KEPT - WEEK) * ((old - number) / old)
    for number in range(count - old):
        yield now - WEEK * ((count - old - number) / (count - old))


# Any: columns of every type.
def decision_rows(count: int, seed: int, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Generate `count` decisions, oldest first."""
    dice = random.Random(seed)
    shares = [kind.share for kind in KINDS]
    kinds = iter(dice.choices(KINDS, shares, k=count))
    for number, (at, kind) in enumerate(zip(moments(count, now), kinds, strict=True)):
        recent = at >= now - WEEK
        others = f"project-{dice.randrange(PROJECTS)}"
        project = PROJECT if dice.random() < (0.2 if recent else 0.05) else others
        # Ordered by time, like a UUIDv7.
        milliseconds = int(at.timestamp() * 1000)
        row_id = UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | number)
        took = timedelta(0)
        if kind.outcome != "REUSED":
            took = timedelta(microseconds=int(dice.lognormvariate(12, 1)))
        attempts = json.dumps([[*attempt, dice.randrange(2000)] for attempt in kind.attempts])
        error = None
        if kind.error is not None:
            error = json.dumps({"reason": kind.error, "message": "x", "metadata": {}})
        yield (
            row_id, TENANT if dice.random() < 0.99 else "other", UUID(int=dice.getrandbits(128)),
            kind.method, "CONTINUE", "SEEN_LATELY", "it was seen running within the window",
            kind.outcome, 4, True, kind.joined, attempts, error, UUID(int=dice.getrandbits(128)),
            dice.randbytes(32), "{}", at, at + took if kind.finished else None,
            project if dice.random() < 0.999 else None, 0 if dice.random() < 0.99 else 2,
        )  # fmt: skip


def end_rows(count: int, seed: int, now: datetime) -> Iterator[tuple[Any, ...]]:
    """Generate `count` ends, oldest first. Any: columns of every type."""
    dice = random.Random(seed)
    for at in moments(count, now):
        reason = dice.choice(REASONS)
        lifetime = timedelta(seconds=dice.lognormvariate(9, 2))
        project = PROJECT if dice.random() < 0.2 else f"project-{dice.randrange(PROJECTS)}"
        came_up = reason != "CREATE_FAILED"
        session_id = UUID(int=dice.getrandbits(128))
        yield session_id, TENANT, project, at, lifetime if came_up else None, reason


async def fill(url: str, count: int, seed: int, now: datetime) -> None:
    """Fill the database with this many decisions and their ends, and vacuum it."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        # Vacuum skips pages whose commit is not on disk yet.
        await connection.execute("SET synchronous_commit = on")
        for table, columns, rows in (
            ("decisions", DECISION, decision_rows(count, seed, now)),
            ("session_ends", END, end_rows(count // ENDED, seed, now)),
        ):
            copy = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
            async with connection.cursor() as cursor, cursor.copy(copy.encode()) as sink:
                for row in rows:
                    await sink.write_row(row)
            await connection.execute(f"VACUUM ANALYZE {table}".encode())


async def measure(stats: Stats, span: Span, rounds: int = ROUNDS) -> list[float]:
    """The milliseconds of each query of the span."""
    took = []
    for _ in range(rounds):
        began = perf_counter()
        await stats.figures(span)
        took.append((perf_counter() - began) * 1000)
    return took


def spans(now: datetime) -> dict[str, Span]:
    """The queries, by name."""
    return {
        "one project, the week": Span(TENANT, PROJECT, now - WEEK, now),
        "one project, 90 days": Span(TENANT, PROJECT, now - KEPT, now),
        "all projects, the week": Span(TENANT, None, now - WEEK, now),
    }


async def run(rows: int = ROWS) -> None:
    """Measure and print."""
    now = datetime.now(UTC)
    await asyncio.to_thread(shutil.rmtree, DATA, ignore_errors=True)
    await asyncio.to_thread(DATA.mkdir, parents=True)
    async with EmbeddedPostgres(DATA / "postgres", durable=True) as server:
        await server.ensure_database("roost")
        url = server.url("roost")
        await asyncio.to_thread(upgrade, url)
        await fill(url, rows, SEED, now)
        print(f"stats: {rows} decisions, {rows // ENDED} ends; {await settings(url)}")
        async with Database(url) as database:
            stats = Stats(database)
            for name, span in spans(now).items():
                figures = await stats.figures(span)
                took = await measure(stats, span)
                counted = figures.whole.starts + figures.joins + sum(figures.refusals.values())
                median = statistics.median(took)
                print(
                    f"{name:24}{counted:8} starts, median {median:5.0f} ms, longest "
                    f"{max(took):5.0f} ms"
                )


if __name__ == "__main__":
    asyncio.run(run())
