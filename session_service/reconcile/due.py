"""The due pass: carries out the next action of each session whose `due_at` has passed.

`domain.next_action.next_step` decides which action is next. The functions at the top build what
each action commits; `DuePass` claims the sessions and runs the actions.

Bringing a session up or down is a transition here as it is in a call: its intent is committed
first, and the dispatcher then carries it out under this replica's lease. So the death of a replica
needs no handling of its own. After the commit, the next owner takes the transition over. Before the
commit, the session is due again when its claim expires.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, assert_never

import uuid_utils.compat as uuids

from session_service import loops
from session_service.domain import next_action
from session_service.domain import policy as policies
from session_service.domain.decision import RECOVERY, Decision, Request
from session_service.domain.next_action import Action, Step, Timings
from session_service.domain.policy import Stop
from session_service.domain.session import Cause, EndReason, PauseDepth
from session_service.domain.states import State, Transition, check_move
from session_service.domain.wish import Wish
from session_service.errors import RoostError
from session_service.reconcile.forgetting import FORGET_PAUSE, Forgetting
from session_service.storage.session import change as changes
from session_service.storage.session import due, forgetting
from session_service.storage.session.change import NOW, Change, Now
from session_service.storage.session.commit import Commit
from session_service.transition import changes as transition_changes
from session_service.transition.changes import given_back

if TYPE_CHECKING:
    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.domain.policy import Policy
    from session_service.domain.session import Record, Session
    from session_service.ports import Activities
    from session_service.reconcile.scheduled_checkpoints import ScheduledCheckpoints
    from session_service.storage.database import Database
    from session_service.storage.session.change import Terms


def warning(record: Record, timings: Timings) -> Change:
    """The event that announces the idle pause. The epoch stays, and so does the etag."""
    session = record.session
    lead = next_action.idle_time(session) - next_action.warn_due_time(session, timings)
    when = max(next_action.idle_time(session), record.now + lead)
    return Change(
        session.session_id,
        session.epoch,
        {"warn_time": NOW, "due_at": Now(next_action.span_before_next_checkpoint(record, lead))},
        advance=False,
        event="IDLE_WARNING",
        details={"pause_time": when.isoformat()},
    )


def in_use(record: Record) -> Change:
    """The activity source reports that the session is in use: its idle timeout starts again."""
    session = record.session
    idle = policies.load(session.policy).idle_timeout
    return Change(
        session.session_id,
        session.epoch,
        {
            "last_active_time": NOW,
            "due_at": Now(next_action.span_before_next_checkpoint(record, idle / 2)),
        },
        advance=False,
    )


def recovery(record: Record, step: Step, terms: Terms) -> Commit:
    """A start without a caller: the policy replaces a lost container at once."""
    session = record.session
    request = Request(session.tenant, RECOVERY, b"")
    decision = Decision(
        uuids.uuid7(), request, Cause.LOST, step.because, session_id=session.session_id
    )
    change = transition_changes.starting(session, Wish(), None, decision.decision_id, terms)
    columns = {**change.session, "cause": Cause.LOST}
    start = Change(session.session_id, session.epoch, columns, details=_details(Cause.LOST, step))
    return Commit((start,), decision, begins=session.session_id)


def bring_down(record: Record, step: Step, terms: Terms, *others: Change) -> Commit:
    """The intent of a step that pauses or destroys the container.

    `others` are changes of other sessions that belong into the same commit.
    """
    session = record.session
    state, transition, cause, more = _target(session, step)
    check_move(session.state, state)
    prior = session.prior_state if record.abandoned else session.state
    idle = policies.load(session.policy).idle_timeout if step.action is Action.PAUSE else None
    change = Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "state": state,
            "transition": transition,
            "prior_state": prior,
            "decision_id": None,
            "wish": None,
            "cause": cause,
            **more,
        },
        details=_details(cause, step),
        idle_for=idle,
    )
    return Commit((change, *others), begins=session.session_id)


def _details(cause: Cause, step: Step) -> dict[str, str]:
    return {"cause": cause, "because": step.because}


def _target(session: Session, step: Step) -> tuple[State, Transition, Cause, dict[str, object]]:
    """The state, transition, cause and further columns that a step sets."""
    match step.action:
        case Action.PAUSE if ends_when_idle(policies.load(session.policy)):
            more: dict[str, object] = {"end_reason": EndReason.EPHEMERAL}
            return State.ENDING, Transition.END, Cause.IDLE, more
        case Action.PAUSE:
            more = {"pause_depth": _depth(session, PauseDepth.SUSPENDED)}
            return State.PAUSING, Transition.PAUSE, Cause.IDLE, more
        case Action.DEEPEN:
            more = {"pause_depth": _depth(session, step.depth or PauseDepth.STOPPED)}
            return State.PAUSING, Transition.PAUSE, Cause.DEEPEN, more
        case Action.EXPIRE:
            more = {"end_reason": EndReason.EXPIRED}
            return State.ENDING, Transition.END, Cause.EXPIRE, more
        case Action.PURGE:
            return State.ENDING, Transition.PURGE, Cause.GRACE_OVER, {}
        case Action.DISCARD:
            more = {"end_reason": EndReason.CREATE_FAILED}
            return State.ENDING, Transition.PURGE, Cause.ABANDONED, more
        case _:
            raise AssertionError(f"{step.action} does not bring a container down")


def _depth(session: Session, otherwise: PauseDepth) -> PauseDepth:
    """The depth of the pause: CHECKPOINT if the policy saves the state at a stop."""
    saves = policies.what_stop_means(policies.load(session.policy)) is Stop.CHECKPOINT
    return PauseDepth.CHECKPOINT if saves else otherwise


def ends_when_idle(policy: Policy) -> bool:
    """Whether the policy ends an idle session instead of pausing it."""
    return policies.what_stop_means(policy) is Stop.END


_log = logging.getLogger(__name__)

#: The duration of a claim: no other replica claims the session during that time. A transition that
#: begins within that time sets `due_at` itself.
CLAIM = timedelta(seconds=30)
#: The delay of a save when all slots for saves are taken: of a running session, and of a paused
#: one. Each new attempt costs a claim, thousands of paused sessions may be waiting, and no user
#: waits for them, so their delay is the longer one.
FULL_PAUSE = timedelta(seconds=10)
FULL_PAUSE_PAUSED = timedelta(minutes=1)
#: While sessions are forgotten, the pass claims others at least this often, in s.
CLAIM_EVERY = 0.5


@dataclass(slots=True)
class DueCounts:
    """How often a pass carried out each action, and how many seconds the pass took."""

    actions: Counter[Action] = field(default_factory=Counter)
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return any(action is not Action.NOTHING for action in self.actions)


class DuePass:
    """Carries out due actions, in a limited number of slots."""

    def __init__(
        self,
        database: Database,
        work: Dispatcher,
        activities: Activities,
        scheduled_checkpoints: ScheduledCheckpoints,
        timings: Timings,
        slots: int = 16,
    ) -> None:
        """`slots` is the number of sessions that are worked on at once; it bounds the memory too.

        At most half of the slots are for saves. An application that hangs while it is saved holds
        its slot for minutes, and must not delay the other due actions.
        """
        self._database = database
        self._work = work
        self._activities = activities
        self._scheduled_checkpoints = scheduled_checkpoints
        self._timings = timings
        self._forgetting = Forgetting(database, timings)
        self._slots = slots
        self._saves_left = max(1, slots // 2)
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts = DueCounts()

    async def shot(self) -> DueCounts:
        """One pass: claim due sessions and begin their actions, until none is due or no slot free.

        The pass does not wait for actions that take long. They keep their slots, and the next pass
        uses the others. The counts are those of the actions that ended since the last pass. Raises
        StorageUnavailable.
        """
        began = monotonic()
        # Beside the slots: sessions that users wait for must not queue behind these.
        batches = asyncio.create_task(self._forgetting.go_on(), name="forget")
        try:
            while True:
                forgot = batches.done()
                full = await self._fill_slots()
                if waited := self._tasks or (set() if forgot else {batches}):
                    pause = 1.0 if forgot else CLAIM_EVERY
                    await asyncio.wait(waited, timeout=pause, return_when="FIRST_COMPLETED")
                if forgot and not full:
                    break
        finally:
            await loops.end({batches})
        if forgotten := self._forgetting.take_count():
            self._counts.actions[Action.FORGET] += forgotten
        counts, self._counts = self._counts, DueCounts()
        counts.seconds = monotonic() - began
        if counts:
            _log.info(
                "carried out the due actions of %d sessions",
                counts.actions.total(),
                extra={
                    "action": "reconcile",
                    "done": {str(name): count for name, count in sorted(counts.actions.items())},
                    "seconds": round(counts.seconds, 3),
                    "at_work": len(self._tasks),
                },
            )
        return counts

    async def _fill_slots(self) -> bool:
        """Claim due sessions for the free slots, purges last, and begin their actions.

        Returns whether more may be due now.
        """
        free = self._slots - len(self._tasks)
        records = await due.claim(self._database, free, CLAIM) if free else []
        left, purges = free - len(records), self._forgetting.to_purge
        if left and purges:
            records += await due.claim_these(self._database, purges, left, CLAIM)
            claimed = {record.session.session_id for record in records}
            # If fewer came than there were slots, the others have been claimed elsewhere.
            full = len(records) == free
            purges[:] = [each for each in purges if full and each not in claimed]
        for record in records:
            self._begin(record)
        return bool(records) and len(records) == free

    async def settle(self) -> DueCounts:
        """Run passes until no action is due or running. Raises StorageUnavailable."""
        began = monotonic()
        counts = await self.shot()
        while self._tasks:
            await asyncio.wait(self._tasks)
            more = await self.shot()
            counts.actions.update(more.actions)
        counts.actions.update(self._counts.actions)
        self._counts = DueCounts()
        counts.seconds = monotonic() - began
        return counts

    async def close(self) -> None:
        """Cancel the running actions. Transitions that they began go on in the dispatcher."""
        await loops.end(set(self._tasks))

    def _begin(self, record: Record) -> None:
        task = asyncio.create_task(self._reconcile(record), name="due")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reconcile(self, record: Record) -> None:
        """Carry out one session's due action. Errors are logged; the session comes due again."""
        fields = {"action": "reconcile", "session_id": str(record.session.session_id)}
        try:
            step = next_action.next_step(record, self._timings)
            if not step.due(record.now):
                await self._defer(record, step)
                return
            fields["step"] = step.action
            saves = _saves(record, step)
            if await (self._save(record, step) if saves else self._execute(record, step)):
                self._counts.actions[step.action] += 1
        except RoostError as error:
            _log.warning("the due action of a session failed: %s", error, extra=fields)
        except Exception:  # noqa: BLE001  # a bug in one action must not end the task unlogged
            _log.exception("the due action of a session failed because of a bug", extra=fields)

    async def _defer(self, record: Record, step: Step) -> None:
        await due.defer(self._database, record.session, step.time)

    async def _save(self, record: Record, step: Step) -> bool:
        """Execute a step that saves state, in a slot for saves. Returns as `_execute` does, and
        False if no such slot is free: then the step is deferred.
        """
        if not self._saves_left:
            await self._defer(record, _deferred(record, step, self._timings))
            return False
        self._saves_left -= 1
        try:
            return await self._execute(record, step)
        finally:
            self._saves_left += 1

    async def _execute(self, record: Record, step: Step) -> bool:
        """Execute the step. Returns False if a scheduled checkpoint was not saved, else True."""
        match step.action:
            case Action.NOTHING:
                await self._defer(record, step)
            case Action.WARN | Action.PAUSE if await self._in_use(record):
                await changes.write(self._database, in_use(record))
            case Action.WARN:
                await changes.write(self._database, warning(record, self._timings))
            case Action.TAKE_OVER:
                await _wait_for(await self._work.take_over(record))
            case Action.CHECKPOINT:
                other = next_action.step_without_schedule(record, self._timings).time
                return await self._scheduled_checkpoints.save(record, other)
            case Action.FORGET:
                await self._forget(record, step)
            case Action.RECOVER:
                await self._commit(recovery(record, step, self._work.terms))
            case Action.PAUSE | Action.DEEPEN | Action.EXPIRE | Action.PURGE:
                await self._commit(bring_down(record, step, self._work.terms))
            case Action.DISCARD:
                others = await given_back(self._database, record.session)
                await self._commit(bring_down(record, step, self._work.terms, *others))
            case other:
                assert_never(other)
        return True

    async def _in_use(self, record: Record) -> bool:
        """Whether the activity source reports that the session is in use. It is asked before the
        warning too, so that a user who works in the session is not warned of a pause.
        """
        container = record.container
        if container is None:
            return False
        return await self._activities.active(container, record.session.spec)

    async def _commit(self, wanted: Commit) -> None:
        """Commit the transition, and wait for its work. Does nothing if the row has changed."""
        _, task = await self._work.commit(wanted)
        await _wait_for(task)

    async def _forget(self, record: Record, step: Step) -> None:
        session = record.session
        if not await forgetting.forget(self._database, {session.session_id: session.epoch}):
            again = Step(step.action, record.now + FORGET_PAUSE)
            await self._defer(record, again)


async def _wait_for(task: asyncio.Task[None] | None) -> None:
    """Wait for a transition's work. A cancellation ends only the wait; the work goes on."""
    if task is not None:
        await asyncio.wait({task})


def _saves(record: Record, step: Step) -> bool:
    """Whether the step may save state, which takes as long as the application needs for it."""
    if step.action is not Action.DEEPEN:
        return step.action is Action.CHECKPOINT
    policy = policies.load(record.session.policy)
    if policies.what_stop_means(policy) is Stop.CHECKPOINT:
        return True
    return next_action.saves(record.session, record.container, policy)


def _deferred(record: Record, step: Step, timings: Timings) -> Step:
    """The step at a later time. For a scheduled checkpoint, that is at most the time of the
    session's next action of another kind.
    """
    if step.action is Action.DEEPEN:
        return replace(step, time=record.now + FULL_PAUSE_PAUSED)
    later, other = record.now + FULL_PAUSE, next_action.step_without_schedule(record, timings).time
    return replace(step, time=min(later, other or later))
