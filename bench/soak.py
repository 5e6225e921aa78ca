"""A steady load for ten minutes: memory, connections and queues of the services must stay flat.

`ROOST_SOAK_SECONDS=60 python -m bench soak` for a short one. Two replicas, one container_service,
the emulator: starts, pauses, touches and ends of a few dozen keys at a fixed rate.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import statistics
import uuid
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import grpc.aio
import psutil
import psycopg

from local.stack.stack import Stack
from local.stack.stack_settings import StackSettings
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub

if TYPE_CHECKING:
    from collections.abc import Sequence

DATA = Path(".roost/bench-soak")
SECONDS = float(os.environ.get("ROOST_SOAK_SECONDS", "600"))
KEYS = 30
#: Calls per second over all keys.
RATE = 12.0
SAMPLE_EVERY = 10.0
PARTS = ("session_service", "session_service_2", "container_service", "emulator")
QUERY = """
SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()),
    (SELECT count(*) FROM sessions WHERE due_at <= now()),
    (SELECT count(*) FROM sessions WHERE transition IS NOT NULL)
"""


@dataclass(frozen=True)
class Sample:
    """A sample of the processes at one moment."""

    megabytes: dict[str, float]
    files: dict[str, int]
    connections: int
    due: int
    in_flight: int


async def run() -> None:
    """Run the load, take samples, and print the first and the last third of the run."""
    shutil.rmtree(DATA, ignore_errors=True)
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"seed {seed}, {SECONDS:.0f} s, {RATE:.0f} calls/s")
    settings = replace(
        StackSettings.on_free_ports(DATA, replicas=2),
        environment={
            "ROOST_LOG_LEVEL": "ERROR",
            "ROOST_IDLE_TIMEOUT": "20",
            "ROOST_DEEPEN_AFTER": "40",
            "ROOST_GRACE_PERIOD": "10",
            "ROOST_SESSION_RETENTION": "30",
            "ROOST_EVENT_RETENTION": "60",
            "ROOST_RETENTION_INTERVAL": "10",
            "ROOST_SWEEP_INTERVAL": "5",
        },
    )
    async with Stack(settings) as stack:
        samples: list[Sample] = []
        sampling = asyncio.create_task(_sample(stack, samples))
        tally = await _load(stack, random.Random(seed))
        sampling.cancel()
        await asyncio.wait({sampling})
    _report(samples, tally)


async def _load(stack: Stack, chance: random.Random) -> Counter[str]:
    tally: Counter[str] = Counter()
    sessions: dict[int, str] = {}
    end, next_at = monotonic() + SECONDS, monotonic()
    calls: set[asyncio.Task[None]] = set()
    channels = [grpc.aio.insecure_channel(target) for target in stack.session_targets]
    stubs = [SessionServiceStub(channel) for channel in channels]
    while monotonic() < end:
        work = _call(chance.choice(stubs), chance.randrange(KEYS), chance.random(), sessions, tally)
        task = asyncio.create_task(work)
        calls.add(task)
        task.add_done_callback(calls.discard)
        next_at += 1 / RATE
        await asyncio.sleep(max(0.0, next_at - monotonic()))
    await asyncio.gather(*calls)
    for channel in channels:
        await channel.close()
    return tally


async def _call(
    stub: SessionServiceStub, user: int, dice: float, sessions: dict[int, str], tally: Counter[str]
) -> None:
    """One call: mostly starts, else something about the user's last session."""
    session_id = sessions.get(user)
    try:
        if session_id is None or dice < 0.7:
            key = pb.SessionKey(project_id="soak", user_id=f"u{user}")
            request = rpc_pb.StartSessionRequest(key=key, request_id=str(uuid.uuid4()))
            answer = await stub.StartSession(request, timeout=60)
            sessions[user] = answer.session.session_id
            tally[pb.StartOutcome.Name(answer.outcome)] += 1
        elif dice < 0.85:
            await stub.TouchSession(rpc_pb.TouchSessionRequest(session_id=session_id), timeout=60)
            tally["touch"] += 1
        elif dice < 0.99:
            await stub.PauseSession(rpc_pb.PauseSessionRequest(session_id=session_id), timeout=60)
            tally["pause"] += 1
        else:
            await stub.EndSession(rpc_pb.EndSessionRequest(session_id=session_id), timeout=60)
            del sessions[user]
            tally["end"] += 1
    except grpc.aio.AioRpcError as error:
        tally[f"error {error.code().name}"] += 1


async def _sample(stack: Stack, samples: list[Sample]) -> None:
    processes = {name: psutil.Process(stack.pid(name)) for name in PARTS}
    async with await psycopg.AsyncConnection.connect(
        stack.database_url, autocommit=True
    ) as connection:
        while True:
            await asyncio.sleep(min(SAMPLE_EVERY, SECONDS / 12))
            row = await (await connection.execute(QUERY)).fetchone()
            assert row is not None, "a SELECT of counts has a row"
            samples.append(
                Sample(
                    {name: each.memory_info().rss / 1e6 for name, each in processes.items()},
                    {name: each.num_fds() for name, each in processes.items()},
                    *row,
                )
            )


def _report(samples: Sequence[Sample], tally: Counter[str]) -> None:
    print(", ".join(f"{count} {name}" for name, count in tally.most_common()))
    third = len(samples) // 3
    parts = (samples[:third], samples[third : 2 * third], samples[-third:])
    print(f"{'mean of each third':<34}{'first':>9}{'second':>9}{'last':>9}")
    for name in PARTS:
        _row(f"{name}, MB", [[s.megabytes[name] for s in part] for part in parts])
        _row(f"{name}, open files", [[s.files[name] for s in part] for part in parts])
    _row("database connections", [[s.connections for s in part] for part in parts])
    _row("sessions due", [[s.due for s in part] for part in parts])
    _row("transitions in flight", [[s.in_flight for s in part] for part in parts])


def _row(name: str, thirds: Sequence[Sequence[float]]) -> None:
    print(f"{name:<34}" + "".join(f"{statistics.fmean(values):>9.1f}" for values in thirds))
