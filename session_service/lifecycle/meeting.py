"""What a start does about a transition that is in flight already: joins it, or takes it over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import plans
from session_service.domain import wish as wishes
from session_service.domain.states import Transition
from session_service.lifecycle import intents, own_steps
from session_service.lifecycle.explaining import decided, joined, shareable
from session_service.lifecycle.replacing import given_back
from session_service.storage import commits, decisions, sessions, transitions
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from session_service.domain.session import Record, Session
    from session_service.lifecycle.answering import Answering
    from session_service.lifecycle.case import Case
    from session_service.lifecycle.intents import Start
    from session_service.lifecycle.joining import Answer, Joining
    from session_service.lifecycle.takeover import Work
    from session_service.storage.database import Database


class Meeting:
    """Meets the starts of others."""

    def __init__(
        self, database: Database, work: Work, joining: Joining, answering: Answering
    ) -> None:
        self._database = database
        self._work = work
        self._joining = joining
        self._answering = answering

    async def join(self, case: Case, plan: plans.Plan, record: Record) -> Answer | None:
        """Wait for the start in flight; its outcome is ours, in a decision that names it."""
        leader_id = record.session.decision_id
        leader = None if leader_id is None else await decisions.get(self._database, leader_id)
        if leader is None:
            await self._joining.settled(record.session.session_id, record.session.epoch)
            return None
        finished = await self._joining.finished(leader)
        wish = case.start.wish
        # What it is made anew of is what both want: they would not join otherwise.
        same = replace(wishes.load(record.session.wish), recreate=None) == wish
        if finished.finish_time is None or not (same or shareable(finished)):
            return None
        anew = record.session.prior_state is None
        decision = joined(decided(case.start, plan, record), finished, wish, anew=anew)
        answer = await self._answering.append(case, decision)
        if answer is not None and leader.method == own_steps.METHOD:
            # Nobody else hears of what the keeper's own start found lost; this caller does.
            session = answer.record.session
            heard = Change(session.session_id, session.epoch, {"loss_untold": False}, advance=False)
            await transitions.write(self._database, heard)
        return answer

    async def take_over(self, case: Case, plan: plans.TakeOver, record: Record) -> Answer | None:
        """The owner is gone. A start that nobody waits for any more is ours; else it is finished
        for whoever does, and we decide again.
        """
        session, start = record.session, case.start
        stood = session.prior_state is not None
        if (
            session.transition is not Transition.START
            or _rolls_back(start, session)
            or (stood and case.anew)
        ):
            await self._settle(record)
            return None
        if session.decision_id is not None:
            await self._work.take_over(record)
            return await self.join(case, plan, record)
        if not stood and not intents.asks_for_the_same(start, session):
            await self._discard(record)
            return None
        decision = decided(start, plan, record)
        change = intents.adopted(session, start.wish, decision.decision_id, self._work.terms)
        intent = commits.begin(
            self._database, change, decision, also=case.also(decision.decision_id)
        )
        return await self._answering.carried(intent, decision)

    async def _settle(self, record: Record) -> None:
        """Take the transition over and see it through, so that there is something to decide on.

        Raises ProviderUnavailable where it could not be finished: whoever tries again at once would
        only meet it again.
        """
        task = await self._work.take_over(record, came=True)
        if task is None:
            return
        await asyncio.wait({task})
        again = await sessions.find(self._database, record.session.session_id)
        if again is not None and again.lapsed:
            raise errors.ProviderUnavailable(
                "an earlier transition of this session could not be finished yet; try again"
            )

    async def _discard(self, record: Record) -> None:
        """A session that never stood, of another spec, is in the way: its key is free at once, or
        given back to whom it was to replace, and what it may have created is looked for and
        destroyed.
        """
        change = intents.discarded(record.session, self._work.terms)
        others = await given_back(self._database, record.session)
        await self._work.commit(commits.begin(self._database, change, None, *others))


def _rolls_back(start: Start, session: Session) -> bool:
    """Whether a rollback is in flight, or comes after what is: neither joins the other."""
    either = start.wish.checkpoint_id or wishes.load(session.wish).checkpoint_id
    return session.prior_state is not None and either is not None
