"""A due pass of the reconciler: 10,000 sessions, 500 of them idle at once, with starts in parallel.

One replica with real machines of the emulator, without rate limits. It measures the time until all
due sessions are paused, pauses per second, the replica's memory, and the latency of REUSED starts
during the pass against that without a pass.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import uuid
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import grpc.aio
import psutil
import psycopg

from bench import running_machines
from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.session.v1 import session_pb2, session_service_pb2
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = Path(".roost/bench-reconcile")
SESSIONS = 10_000
DUE = 500
#: Starts per second, and how long they are measured without a pass, in s.
RATE = 40.0
BASELINE_SECONDS = 8.0
PATIENCE = 300.0
#: Highest ratio of a start's latency during a pass to that without one.
TARGET = 2.0
MAKE_DUE = """
UPDATE sessions SET last_active_time = now() - interval '1 hour', warn_time = now() -
    interval '10 minutes', due_at = now() WHERE session_id = ANY(
    SELECT session_id FROM sessions ORDER BY session_id LIMIT %s)
"""
PAUSED = "SELECT count(*) FROM sessions WHERE state = 'PAUSED'"


async def run() -> None:
    """Measure and print."""
    shutil.rmtree(DATA, ignore_errors=True)
    settings = replace(
        StackSettings.on_free_ports(DATA),
        emulator_options=("--no-limits",),
        environment={"ROOST_LOG_LEVEL": "ERROR", "ROOST_SWEEP_INTERVAL": "3600"},
    )
    async with Stack(settings) as stack:
        began = monotonic()
        made = await running_machines.make_machines(stack, DUE)
        print(f"{DUE} machines in {monotonic() - began:.1f} s")
        app = stack.settings.app
        await running_machines.seed(stack.database_url, app, 1, made)
        others = [f"none-{number}" for number in range(SESSIONS - DUE)]
        await running_machines.seed(stack.database_url, app, DUE + 1, others)
        await _measure(stack)


async def _measure(stack: Stack) -> None:
    process = psutil.Process(stack.pid("session_service"))
    async with grpc.aio.insecure_channel(stack.session_targets[0]) as channel:
        stub = SessionServiceStub(channel)
        quiet = await _starts(stub, until=_after(BASELINE_SECONDS))
        before = process.memory_info().rss
        pausing = asyncio.create_task(_all_paused(stack.database_url, process))
        during = await _starts(stub, until=pausing.done)
        seconds, peak = await pausing
    _report(quiet, during, seconds, before, peak)


def _report(
    quiet: list[float], during: list[float], seconds: float, before: int, peak: int
) -> None:
    print(f"{SESSIONS} sessions, {DUE} due at once: all paused after {seconds:.1f} s,")
    print(f"  {DUE / seconds:.0f} a second; memory {before / 1e6:.0f} MB, at most {peak / 1e6:.0f}")
    for name, part in (("p50", 50), ("p95", 95)):
        calm, busy = _percentile(quiet, part), _percentile(during, part)
        print(
            f"  start REUSED {name}: alone {calm * 1e3:.2f} ms, in a pass {busy * 1e3:.2f} ms, "
            f"ratio {busy / calm:.2f} (target {TARGET:.0f})"
        )


def _percentile(values: list[float], part: int) -> float:
    return statistics.quantiles(values, n=100)[part - 1]


def _after(seconds: float) -> Callable[[], bool]:
    end = monotonic() + seconds
    return lambda: monotonic() > end


async def _starts(stub: SessionServiceStub, until: Callable[[], bool]) -> list[float]:
    """Latencies (s) of starts of sessions that are not due, sent at a fixed rate (open loop)."""
    took: list[float] = []
    calls: set[asyncio.Task[None]] = set()

    async def call(number: int) -> None:
        user = DUE + 1 + number % (SESSIONS - DUE)
        key = session_pb2.SessionKey(
            project_id=f"project-{(user - DUE - 1) % 10}", user_id=f"u{user}"
        )
        request = session_service_pb2.StartSessionRequest(key=key, request_id=str(uuid.uuid4()))
        began = monotonic()
        answer = await stub.StartSession(request, timeout=30)
        assert answer.outcome == session_pb2.START_OUTCOME_REUSED, answer
        took.append(monotonic() - began)

    number, next_at = 0, monotonic()
    while not until():
        task = asyncio.create_task(call(number))
        calls.add(task)
        task.add_done_callback(calls.discard)
        number, next_at = number + 1, next_at + 1 / RATE
        await asyncio.sleep(max(0.0, next_at - monotonic()))
    await asyncio.gather(*calls)
    return took


async def _all_paused(url: str, process: psutil.Process) -> tuple[float, int]:
    """Make them due; the seconds until all are paused, and the peak memory in bytes."""
    peak, began = 0, monotonic()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(MAKE_DUE, [DUE])
        while True:
            peak = max(peak, process.memory_info().rss)
            row = await (await connection.execute(PAUSED)).fetchone()
            if row is not None and row[0] >= DUE:
                return monotonic() - began, peak
            if monotonic() - began > PATIENCE:
                raise TimeoutError(f"only {row} of {DUE} are paused after {PATIENCE:.0f} s")
            await asyncio.sleep(0.1)
