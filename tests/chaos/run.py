"""One chaos run: callers and nemesis at once, then convergence, then the checks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from local.fly.faults import KINDS
from tests.chaos import checkpoint_audit, projects, wakes
from tests.chaos.checkpoint_audit import Audit
from tests.chaos.checkpoint_callers import CheckpointCallers
from tests.chaos.convergence import take_snapshot, unfinished_checkpoints, until_converged
from tests.chaos.history import History
from tests.chaos.model import Violation, judge
from tests.chaos.nemesis import OVERTIME, Nemesis
from tests.chaos.provider_log import ProviderLog
from tests.chaos.recording_client import RecordingClient
from tests.chaos.rig import CONTAINERS, REPLICAS, Rig
from tests.chaos.stack_faults import FIRED_AT_LEAST

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from tests.chaos.convergence import StateSnapshot

CALLERS = 6
#: Numbers of keys: state in memory only, under CHECKPOINT, and under HIBERNATE with checkpoints.
KEYS = (14, 3, 3)
#: Longest time to converge after the last fault, in s: the lease of a dead replica's reconciler,
#: then the longest pause between two attempts.
CONVERGE_SECONDS = 75.0

#: Longest time, in s, until partly written checkpoints are removed: the lease of a dead writer.
UNFINISHED_SECONDS = 10.0


@dataclass
class Result:
    """The result of a run."""

    seed: int
    history: History
    zero: float
    violations: list[Violation] = field(default_factory=list)
    fired: Counter[str] | None = None
    nemesis: Nemesis | None = None
    converged_after: float = 0.0
    seconds: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    audit: Audit = field(default_factory=Audit)


async def run(
    seed: int,
    seconds: float,
    data: Path,
    *,
    every_fault: bool = True,
    patience: float = CONVERGE_SECONDS,
) -> Result:
    """Run one seed; the logs of the programs stay in `data`.

    `every_fault` requires that each kind of provider fault fired. `patience` is the longest time to
    converge, in s.
    """
    began = monotonic()
    result = Result(seed, History(), time.time())
    async with Rig(data, seed) as rig, RecordingClient(rig.targets, result.history) as client:
        result.zero = time.time()
        result.settings = dict(rig.settings.environment)
        await projects.set_policies(client.channel, seed)
        await checkpoint_audit.install(rig.database_url)
        callers = CheckpointCallers(client, seed, projects.keys(*KEYS))
        nemesis = result.nemesis = Nemesis(
            rig, seed, seconds, overtime=OVERTIME if every_fault else 0.0
        )
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(callers.work(number, over), name=f"caller-{number}")
            await nemesis.run()
            over.set()
        result.fired = nemesis.stack_faults.fired
        result.violations += _fired(nemesis, every_fault=every_fault)
        result.violations += _up(rig)
        snapshot, result.converged_after = await until_converged(rig, patience)
        result.violations += _not_converged(snapshot, "after the faults")
        # Every key can be started, and the claimed state exists.
        answers = await asyncio.gather(*map(callers.settle, callers.keys))
        for answer in answers:
            if not answer.ok:
                text = f"it does not start after the last fault: {answer.status} {answer.reason}"
                result.violations.append(Violation(answer.key, "LOCKED_OUT", text, answer))
        snapshot, _ = await until_converged(rig, patience)
        result.violations += _not_converged(snapshot, "after the last starts")
        for key, line in await unfinished_checkpoints(rig.database_url, UNFINISHED_SECONDS):
            result.violations.append(Violation(key, "UNFINISHED_CHECKPOINT", line))
        result.violations += await _judge(rig, result, nemesis)
    result.seconds = monotonic() - began
    return result


async def _judge(rig: Rig, result: Result, nemesis: Nemesis) -> list[Violation]:
    """Check the histories and the provider's log against the rules."""
    rows = (await take_snapshot(rig)).rows()
    keys = {session: row.key for session, row in rows.items()}
    provider_log = ProviderLog(
        await rig.stack.admin.actions(), nemesis.stack_faults.emulator_deaths
    )
    result.audit = await checkpoint_audit.collect(rig.database_url)
    woken = provider_log.wakes(await wakes.collect(rig.database_url))
    histories = result.history.by_key()
    return [
        *judge(histories, provider_log.boots(), result.audit, woken),
        *provider_log.duplicate_creates(keys),
        *provider_log.overlaps(keys, histories, rows),
    ]


def _fired(nemesis: Nemesis, *, every_fault: bool) -> list[Violation]:
    return [
        Violation("", "FAULT_NOT_FIRED", f"{kind} fired {nemesis.stack_faults.fired[kind]} times")
        for kind in KINDS
        if every_fault and nemesis.stack_faults.fired[kind] < FIRED_AT_LEAST
    ]


def _up(rig: Rig) -> list[Violation]:
    """Violations: a program that does not run now ended by itself."""
    return [
        Violation("", "PROGRAM_ENDED", f"{name} does not run; its log is in {rig.stack.logs}")
        for name in (*REPLICAS, CONTAINERS, "emulator", "postgres")
        if not rig.stack.runs(name)
    ]


def _not_converged(snapshot: StateSnapshot, when: str) -> list[Violation]:
    """Violations: problems that remain, with the key if the line names its session."""
    found = []
    for line in snapshot.problems():
        rows = (row for row in snapshot.sessions.values() if row["session_id"] in line)
        key = next((row["user_id"] for row in rows), "")
        found.append(Violation(key, "NOT_CONVERGED", f"{when}: {line}"))
    return found
