"""PauseSession, StopSession, EndSession and UndeleteSession: commit the intent, then the work."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import effective
from session_service.domain.keeping import purged
from session_service.domain.policy import Stop, what_stop_means
from session_service.domain.session import ContainerState, EndReason, PauseDepth
from session_service.domain.states import State, Transition, check_move
from session_service.lifecycle import outcomes, quota
from session_service.lifecycle.explaining import refused
from session_service.lifecycle.joining import Answer, raise_recorded
from session_service.lifecycle.reading import check_etag, require
from session_service.lifecycle.replacing import given_back
from session_service.storage import commits, decisions, sessions
from session_service.storage.assignments import NOW
from session_service.storage.commits import LiveKeyTaken
from session_service.storage.decisions import NewDecision
from session_service.storage.quotas import Quota, QuotaReached
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.effective import InForce
    from session_service.domain.session import Record, Session
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.policies import Policies
    from session_service.lifecycle.takeover import Work
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Named:
    """A call about one session: who calls, which session, and as of which etag (None: any)."""

    request: Request
    session_id: UUID
    etag: str | None = None


class Rests:
    """Puts sessions to rest, ends them, and brings ended ones back."""

    def __init__(
        self,
        database: Database,
        work: Work,
        joining: Joining,
        policies: Policies,
    ) -> None:
        self._database = database
        self._work = work
        self._joining = joining
        self._policies = policies

    # --- calls ---------------------------------------------------------------------------------

    async def pause(self, named: Named, depth: PauseDepth) -> Answer:
        """Put the session to rest, at least this deep. Refused where nothing is kept over that."""

        async def step(record: Record) -> Answer | None:
            if record.session.state is State.ACTIVE:
                in_force = await self._in_force(record)
                if what_stop_means(in_force.policy) is Stop.END:
                    raise errors.PolicyForbids(
                        f"the policy in force, {in_force.policy.persistence}, keeps nothing over a "
                        "pause: stop or end the session, or set another policy"
                    )
            return await self._pause(named, record, depth)

        return await self._until_answered(named, step)

    async def stop(self, named: Named) -> Answer:
        """Do what the policy in force says stop means, and have the session's row follow it."""

        async def step(record: Record) -> Answer | None:
            session = record.session
            if session.state is State.ENDED and session.end_reason is EndReason.EPHEMERAL:
                return await self._already(named, record, "ALREADY_ENDED")
            in_force = await self._in_force(record)
            follows = {"policy": effective.dump(in_force)}
            match what_stop_means(in_force.policy):
                case Stop.END if session.live:
                    return await self._begin(
                        named,
                        record,
                        State.ENDING,
                        Transition.END,
                        end_reason=EndReason.EPHEMERAL,
                        **follows,
                    )
                case Stop.CHECKPOINT:
                    return await self._pause(named, record, PauseDepth.CHECKPOINT, **follows)
                case Stop.END | Stop.PAUSE:
                    return await self._pause(named, record, PauseDepth.SUSPENDED, **follows)
                case other:
                    assert_never(other)

        return await self._until_answered(named, step)

    async def _in_force(self, record: Record) -> InForce:
        """The policy in force for the session now; its row may say what was in force before."""
        rules = await self._policies.of(record.session.key)
        return rules.for_session(effective.load(record.session.policy), None)

    async def _pause(
        self, named: Named, record: Record, depth: PauseDepth, **columns: object
    ) -> Answer | None:
        session = record.session
        if session.state is State.PAUSED and _deep_enough(record, depth):
            return await self._already(named, record, "ALREADY_PAUSED")
        if session.state not in (State.ACTIVE, State.PAUSED):
            raise errors.SessionStateConflict(
                f"the session is {session.state}; only a live session can be paused"
            )
        return await self._begin(
            named, record, State.PAUSING, Transition.PAUSE, pause_depth=depth, **columns
        )

    async def end(self, named: Named, *, now: bool) -> Answer:
        """End the session; `now` destroys its container, also that of one that is over already."""

        async def step(record: Record) -> Answer | None:
            session = record.session
            if session.state is State.ENDED and (not now or purged(record)):
                return await self._already(named, record, "ALREADY_ENDED")
            if _starting(record) and not record.abandoned:
                return await self._cut_off(named, record)
            # What never stood has nothing to come back to.
            kind = Transition.PURGE if now or record.abandoned else Transition.END
            reason = session.end_reason or EndReason.REQUESTED
            return await self._begin(named, record, State.ENDING, kind, end_reason=reason)

        def free(record: Record) -> bool:
            return record.abandoned or (now and _starting(record))

        return await self._until_answered(named, step, free)

    async def undelete(self, named: Named) -> Answer:
        """Bring an ended session back as PAUSED, while its container is kept."""

        async def step(record: Record) -> Answer | None:
            if record.session.live:
                return await self._already(named, record, "ALREADY_LIVE")
            over = record.session.purge_time
            if purged(record) or (over is not None and over <= record.now):
                raise errors.SessionStateConflict(
                    "the session's grace period is over; start anew with StartSession"
                )
            return await self._undelete(named, record)

        return await self._until_answered(named, step)

    # --- the loop ------------------------------------------------------------------------------

    async def _until_answered(
        self,
        named: Named,
        step: Callable[[Record], Awaitable[Answer | None]],
        free: Callable[[Record], bool] = lambda record: False,
    ) -> Answer:
        """Replay, wait for one's turn, then act; again while somebody else was first.

        The etag is compared at each look, so that it fences the caller's own race to the end.
        `free` says which transitions in flight need not be finished first.
        """
        while True:
            replayed = await self._joining.replayed(named.request)
            if replayed is not None:
                return replayed
            record = await require(self._database, named.request.tenant, named.session_id)
            if named.etag:
                check_etag(record, named.etag)
            if record.session.transition is not None and not free(record):
                await self._turn(record)
                continue
            try:
                answer = await step(record)
            except (
                errors.SessionStateConflict,
                errors.LiveSessionExists,
                errors.QuotaExceeded,
                errors.PolicyForbids,
            ) as error:
                answer = await self._refuse(named, record, error)
            if answer is not None:
                return answer

    async def _turn(self, record: Record) -> None:
        """Until the transition in flight has settled; that of an owner who is gone is taken over.

        Raises ProviderUnavailable where it was taken over and could not be finished.
        """
        session = record.session
        if session.transition is Transition.REPLACE and session.successor_id is not None:
            await self._joining.replaced(session, session.successor_id)
            return
        task = await self._work.take_over(record)
        if task is None:
            await self._joining.settled(session.session_id, session.epoch)
            return
        await asyncio.wait({task})
        again = await sessions.find(self._database, session.session_id)
        if again is not None and again.lapsed:
            raise errors.ProviderUnavailable(
                "an earlier transition of this session could not be finished yet; try again"
            )

    async def _begin(
        self,
        named: Named,
        record: Record,
        state: State,
        transition: Transition,
        **columns: object,
    ) -> Answer | None:
        """Commit the intent, do the work in a task that outlives this call, wait for its answer."""
        session = record.session
        check_move(session.state, state)
        decision = self._new(named, session, transition, f"the session was {session.state}")
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **self._work.terms.values(),
                "state": state,
                "transition": transition,
                "prior_state": session.prior_state if record.abandoned else session.state,
                "decision_id": decision.decision_id,
                "wish": None,
                **columns,
            },
        )
        # What never stood may have been to replace another.
        others = await given_back(self._database, session) if record.abandoned else []
        intent = commits.begin(self._database, change, decision, *others)
        return await self._carried(intent, decision)

    async def _carried(
        self, intent: Coroutine[Any, Any, Session | None], decision: NewDecision
    ) -> Answer | None:
        """Commit, work, and answer; None where somebody else was first. Any: unused."""
        task = await self._work.commit(intent)
        if task is None:
            return None
        await asyncio.wait({task})
        written = await decisions.get(self._database, decision.decision_id)
        if written is None:
            raise errors.SessionNotFound("the session is no longer kept")
        finished = await self._joining.finished(written)
        raise_recorded(finished)
        return await self._joining.answer(finished)

    async def _cut_off(self, named: Named, record: Record) -> Answer | None:
        """End a session in the middle of its start: whoever waits for that is told, the epoch
        fences its owner off, and a session that was to be replaced is what it was.
        """
        session = record.session
        decision = self._new(named, session, Transition.PURGE, "it was ended while it started")
        told = errors.SessionStateConflict("the session was ended while it was starting")
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **self._work.terms.values(),
                "state": State.ENDING,
                "transition": Transition.PURGE,
                "decision_id": decision.decision_id,
                "wish": None,
                "end_reason": EndReason.REQUESTED,
            },
            decision=outcomes.refused(told),
            decision_id=session.decision_id,
        )
        others = await given_back(self._database, session)
        intent = commits.begin(self._database, change, decision, *others)
        return await self._carried(intent, decision)

    async def _undelete(self, named: Named, record: Record) -> Answer | None:
        session = record.session
        check_move(session.state, State.PAUSED)
        decision = self._new(
            named, session, "UNDELETE", "its container is still kept", finished=True
        )
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **outcomes.paused(session, session.pause_depth),
                "end_time": None,
                "purge_time": None,
                "end_reason": None,
                "pause_time": session.pause_time or NOW,
            },
        )
        most = (await self._policies.of(session.key)).live_quota
        held = None if most is None else Quota(session.tenant, most.most)
        try:
            begun = await commits.begin(self._database, change, decision, quota=held)
        except QuotaReached:
            assert most is not None, "only a quota is reached"
            raise quota.exceeded(most) from None
        except LiveKeyTaken:
            raise errors.LiveSessionExists(
                "another live session stands at this session's key; end it first"
            ) from None
        if begun is None:
            return None
        written = await decisions.get(self._database, decision.decision_id)
        return None if written is None else await self._joining.answer(written)

    # --- finished at once ----------------------------------------------------------------------

    async def _already(self, named: Named, record: Record, rule: str) -> Answer | None:
        """Nothing to do: the session is as it was asked to be."""
        decision = self._new(
            named, record.session, rule, f"the session is {record.session.state}", finished=True
        )
        written = await decisions.append_once(self._database, decision)
        return None if written is None else await self._joining.answer(written)

    async def _refuse(
        self, named: Named, record: Record, error: errors.RoostError
    ) -> Answer | None:
        decision = refused(self._new(named, record.session, error.reason, error.message), error)
        written = await decisions.append_once(self._database, decision)
        if written is not None:
            raise_recorded(written)
        return None

    def _new(
        self,
        named: Named,
        session: Session,
        rule: str,
        because: str,
        *,
        finished: bool = False,
    ) -> NewDecision:
        return NewDecision(
            uuids.uuid7(),
            named.request,
            rule,
            because,
            session_id=session.session_id,
            finished=finished,
        )


def _starting(record: Record) -> bool:
    """Whether it is in the middle of a start."""
    return record.session.transition is Transition.START


def _deep_enough(record: Record, depth: PauseDepth) -> bool:
    """Whether a session at rest is known to rest as deep as is asked, or deeper."""
    container = record.container
    if container is None or container.destroy_time is not None:
        return True
    if depth is PauseDepth.CHECKPOINT:
        return False
    stopped = container.state in (ContainerState.STOPPED, ContainerState.FAILED)
    return stopped or (
        container.state is ContainerState.SUSPENDED and depth is PauseDepth.SUSPENDED
    )
