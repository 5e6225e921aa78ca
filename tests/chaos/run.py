"""One run of chaos: callers and nemesis at once, then quiet, then judgement."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

from local.fly.faults import KINDS
from tests.chaos import audit, projects
from tests.chaos.audit import Audit
from tests.chaos.deeds import FIRED_AT_LEAST
from tests.chaos.history import History
from tests.chaos.ledger import Ledger
from tests.chaos.leftovers import half_saved
from tests.chaos.model import Violation, judge
from tests.chaos.nemesis import OVERTIME, Nemesis
from tests.chaos.quiet import look, until_quiet
from tests.chaos.rig import CONTAINERS, REPLICAS, Rig
from tests.chaos.savers import Savers
from tests.chaos.wire import Wire

if TYPE_CHECKING:
    from collections import Counter
    from pathlib import Path

    from tests.chaos.quiet import Picture

CALLERS = 6
#: How many keys there are whose state is in memory alone, saved, and saved when they rest.
KEYS = (14, 3, 3)
#: The longest that everything may take to come to rest after the last fault, in s: what a keeper
#: claimed that died, and then its longest pause between two tries.
QUIET_SECONDS = 75.0

#: How long what is being written of checkpoints may take to be over, in s: a dead writer's lease.
HALF_SECONDS = 10.0


@dataclass
class Result:
    """What a run saw."""

    seed: int
    history: History
    zero: float
    violations: list[Violation] = field(default_factory=list)
    fired: Counter[str] | None = None
    nemesis: Nemesis | None = None
    quiet_after: float = 0.0
    seconds: float = 0.0
    settings: dict[str, str] = field(default_factory=dict)
    audit: Audit = field(default_factory=Audit)


async def run(
    seed: int,
    seconds: float,
    data: Path,
    *,
    every_fault: bool = True,
    patience: float = QUIET_SECONDS,
) -> Result:
    """Run one seed. `every_fault` also demands that each kind of provider fault fired; `patience`
    is how long everything may take to come to rest (s).

    The logs of the parts stay in `data`.
    """
    began = monotonic()
    result = Result(seed, History(), time.time())
    async with Rig(data, seed) as rig, Wire(rig.targets, result.history) as wire:
        result.zero = time.time()
        result.settings = dict(rig.settings.environment)
        await projects.set_policies(wire.channel, seed)
        await audit.install(rig.database_url)
        callers = Savers(wire, seed, projects.keys(*KEYS))
        nemesis = result.nemesis = Nemesis(
            rig, seed, seconds, overtime=OVERTIME if every_fault else 0.0
        )
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(callers.work(number, over), name=f"caller-{number}")
            await nemesis.run()
            over.set()
        result.fired = nemesis.deeds.fired
        result.violations += _fired(nemesis, every_fault=every_fault)
        result.violations += _up(rig)
        picture, result.quiet_after = await until_quiet(rig, patience)
        result.violations += _not_quiet(picture, "after the faults")
        # Nobody is locked out: every key opens, and what is claimed of it is there.
        answers = await asyncio.gather(*map(callers.settle, callers.keys))
        for answer in answers:
            if not answer.ok:
                text = f"it does not open after all is well: {answer.status} {answer.reason}"
                result.violations.append(Violation(answer.key, "LOCKED_OUT", text, answer))
        picture, _ = await until_quiet(rig, patience)
        result.violations += _not_quiet(picture, "after the last starts")
        for key, line in await half_saved(rig.database_url, HALF_SECONDS):
            result.violations.append(Violation(key, "HALF_SAVED", line))
        result.violations += await _judge(rig, result, nemesis)
    result.seconds = monotonic() - began
    return result


async def _judge(rig: Rig, result: Result, nemesis: Nemesis) -> list[Violation]:
    """Hold the callers' histories and the provider's log to the rules."""
    rows = (await look(rig)).rows()
    keys = {session: row.key for session, row in rows.items()}
    ledger = Ledger(await rig.stack.admin.actions(), nemesis.deeds.emulator_deaths)
    result.audit = await audit.collect(rig.database_url)
    histories = result.history.by_key()
    return [
        *judge(histories, ledger.boots(), result.audit),
        *ledger.twins(keys),
        *ledger.overlaps(keys, histories, rows),
    ]


def _fired(nemesis: Nemesis, *, every_fault: bool) -> list[Violation]:
    return [
        Violation("", "FAULT_NOT_FIRED", f"{kind} fired {nemesis.deeds.fired[kind]} times")
        for kind in KINDS
        if every_fault and nemesis.deeds.fired[kind] < FIRED_AT_LEAST
    ]


def _up(rig: Rig) -> list[Violation]:
    """Whoever does not run now ended by itself."""
    return [
        Violation("", "DIED_BY_ITSELF", f"{name} does not run; its log is in {rig.stack.logs}")
        for name in (*REPLICAS, CONTAINERS, "emulator", "postgres")
        if not rig.stack.runs(name)
    ]


def _not_quiet(picture: Picture, when: str) -> list[Violation]:
    """What did not come to rest, with the key where the line names its session."""
    found = []
    for line in picture.unsettled():
        rows = (row for row in picture.sessions.values() if row["session_id"] in line)
        key = next((row["user_id"] for row in rows), "")
        found.append(Violation(key, "NOT_QUIET", f"{when}: {line}"))
    return found
