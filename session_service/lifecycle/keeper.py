"""The keeper: does what is due. One public single shot; a supervised loop is put around it.

`domain.keeping.next_step` says what is next. Everything is done by an intent and its work, as a
call would do it: a keeper that dies leaves what any owner leaves, and the next one takes it over.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, assert_never

from session_service import loops
from session_service.domain import deepening, keeping
from session_service.domain import policy as policies
from session_service.domain.keeping import Action, Habits, Step
from session_service.domain.policy import Stop
from session_service.errors import RoostError
from session_service.lifecycle import own_steps
from session_service.lifecycle.replacing import given_back
from session_service.storage import commits, due, transitions

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from session_service.domain.session import Record, Session
    from session_service.lifecycle.scheduling import Scheduling
    from session_service.lifecycle.takeover import Work
    from session_service.ports import Activities
    from session_service.storage.database import Database
    from session_service.storage.transitions import Change

_log = logging.getLogger(__name__)

#: How long a claimed session is nobody else's; what is begun within says itself when it is due.
CLAIM = timedelta(seconds=30)
#: Where all places for saving are taken, what runs is looked at again so much later, and what
#: rests, which nobody misses: a look costs a claim, and there may be thousands of them.
FULL_PAUSE = timedelta(seconds=10)
FULL_PAUSE_AT_REST = timedelta(minutes=1)
#: Rows that may not be deleted yet are looked at again so much later.
FORGET_PAUSE = timedelta(days=1)


@dataclass(slots=True)
class Kept:
    """What one pass did: how often each action, in how many seconds."""

    actions: Counter[Action] = field(default_factory=Counter)
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return any(action is not Action.NOTHING for action in self.actions)


class Keeper:
    """Carries out what is due, so many sessions at once and no more."""

    def __init__(
        self,
        database: Database,
        work: Work,
        activities: Activities,
        scheduling: Scheduling,
        habits: Habits,
        slots: int = 16,
    ) -> None:
        """`slots` is how many sessions are worked on at once: a pass is bounded in memory by it.
        Half of them are for saving: applications that hang must not keep it from what else is due.
        """
        self._database = database
        self._work = work
        self._activities = activities
        self._scheduling = scheduling
        self._habits = habits
        self._slots = slots
        self._saves_left = max(1, slots // 2)
        self._tasks: set[asyncio.Task[None]] = set()
        self._kept = Kept()

    async def shot(self) -> Kept:
        """One pass: begin all that is due, a slot for each, until nothing more is.

        What takes long is not waited for: the next pass has the other slots. Raises
        StorageUnavailable.
        """
        began = monotonic()
        while True:
            free = self._slots - len(self._tasks)
            records = await due.claim(self._database, free, CLAIM) if free else []
            for record in records:
                self._begin(record)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=1.0, return_when="FIRST_COMPLETED")
            if len(records) < free or not records:
                break
        kept, self._kept = self._kept, Kept()
        kept.seconds = monotonic() - began
        if kept:
            _log.info(
                "kept %d sessions",
                kept.actions.total(),
                extra={
                    "action": "keep",
                    "done": {str(name): count for name, count in sorted(kept.actions.items())},
                    "seconds": round(kept.seconds, 3),
                    "at_work": len(self._tasks),
                },
            )
        return kept

    async def settle(self) -> Kept:
        """A pass, and the end of all that it began."""
        began = monotonic()
        kept = await self.shot()
        while self._tasks:
            await asyncio.wait(self._tasks)
            more = await self.shot()
            kept.actions.update(more.actions)
        kept.actions.update(self._kept.actions)
        self._kept = Kept()
        kept.seconds = monotonic() - began
        return kept

    async def close(self) -> None:
        """Wait for nothing more; what was begun is carried on by whoever owns it."""
        await loops.end(set(self._tasks))

    def _begin(self, record: Record) -> None:
        task = asyncio.create_task(self._keep(record), name="keep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, record: Record) -> None:
        """Do what is due for one session. What goes wrong is logged; it comes due again."""
        told = {"action": "keep", "session_id": str(record.session.session_id)}
        try:
            step = keeping.next_step(record, self._habits)
            if not step.due(record.now):
                await self._defer(record, step)
                return
            told["step"] = step.action
            saves = _saves(record, step)
            if await (self._save(record, step) if saves else self._do(record, step)):
                self._kept.actions[step.action] += 1
        except RoostError as error:
            _log.warning("a session was not kept: %s", error, extra=told)
        except Exception:  # noqa: BLE001  # one fault must not end the keeping of all others
            _log.exception("a session was not kept, by a fault", extra=told)

    async def _defer(self, record: Record, step: Step) -> None:
        await due.defer(self._database, record.session, step.time)

    async def _save(self, record: Record, step: Step) -> bool:
        """Do what saves state, in one of the places for that; False where nothing came of it."""
        if not self._saves_left:
            await self._defer(record, _put_off(record, step, self._habits))
            return False
        self._saves_left -= 1
        try:
            return await self._do(record, step)
        finally:
            self._saves_left += 1

    async def _do(self, record: Record, step: Step) -> bool:
        """Do it; False where nothing came of it."""
        match step.action:
            case Action.NOTHING:
                await self._defer(record, step)
            case Action.WARN | Action.PAUSE if await self._in_use(record):
                await transitions.write(self._database, own_steps.awake(record))
            case Action.WARN:
                await transitions.write(self._database, own_steps.warning(record, self._habits))
            case Action.TAKE_OVER:
                await self._finish(await self._work.take_over(record))
            case Action.CHECKPOINT:
                other = keeping.but_saving(record, self._habits).time
                return await self._scheduling.save(record, other)
            case Action.FORGET:
                await self._forget(record, step)
            case Action.RECOVER:
                change, decision = own_steps.recovery(record, step, self._work.terms)
                await self._carry(commits.begin(self._database, change, decision))
            case Action.PAUSE | Action.DEEPEN | Action.EXPIRE | Action.PURGE:
                await self._change(own_steps.intent(record, step, self._work.terms))
            case Action.DISCARD:
                others = await given_back(self._database, record.session)
                await self._change(own_steps.intent(record, step, self._work.terms), *others)
            case other:
                assert_never(other)
        return True

    async def _in_use(self, record: Record) -> bool:
        """Whether the activity source says that somebody is there after all. Asked before the
        warning as well: who works in there need not hear that nobody does.
        """
        container = record.container
        if container is None:
            return False
        return await self._activities.active(container, record.session.spec)

    async def _change(self, change: Change, *others: Change) -> None:
        await self._carry(commits.begin(self._database, change, None, *others))

    async def _carry(self, intent: Coroutine[Any, Any, Session | None]) -> None:
        """Commit the intent and see it through. Any: what coroutines send and receive, unused."""
        await self._finish(await self._work.commit(intent))

    async def _finish(self, task: asyncio.Task[None] | None) -> None:
        if task is not None:
            await asyncio.wait({task})

    async def _forget(self, record: Record, step: Step) -> None:
        session = record.session
        if not await due.forget(self._database, session.session_id, session.epoch):
            again = Step(step.action, record.now + FORGET_PAUSE)
            await self._defer(record, again)


def _saves(record: Record, step: Step) -> bool:
    """Whether the step has an application hand its state out, and nobody waits for that."""
    if step.action is not Action.DEEPEN:
        return step.action is Action.CHECKPOINT
    policy = policies.load(record.session.policy)
    if policies.what_stop_means(policy) is Stop.CHECKPOINT:
        return True
    return deepening.saves(record.session, record.container, policy)


def _put_off(record: Record, step: Step, habits: Habits) -> Step:
    """The step for later, but no later than what else is next."""
    if step.action is Action.DEEPEN:
        return replace(step, time=record.now + FULL_PAUSE_AT_REST)
    later, other = record.now + FULL_PAUSE, keeping.but_saving(record, habits).time
    return replace(step, time=min(later, other or later))
