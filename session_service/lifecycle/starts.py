"""StartSession, ResumeSession and PreviewStart: decide, commit the intent, climb or join."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import ladder
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.session import Continuity, Mode, Outcome
from session_service.domain.states import Transition
from session_service.lifecycle import intents, quota
from session_service.lifecycle.explaining import (
    altered,
    as_written,
    decided,
    joined,
    refusal,
    refused,
    shareable,
)
from session_service.lifecycle.intents import Defaults, Start
from session_service.lifecycle.joining import Answer, raise_recorded
from session_service.lifecycle.reading import check_etag, require
from session_service.storage import decisions, sessions, transitions
from session_service.storage.decisions import NewDecision
from session_service.storage.quotas import Quota, QuotaReached

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.ladder import Evidence
    from session_service.domain.session import Record, Session
    from session_service.domain.wish import Wish
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.takeover import Work
    from session_service.lifecycle.turns import Turns
    from session_service.storage.database import Database


@dataclass(slots=True)
class Facts:
    """What is known as a start goes on: read anew each time somebody may have changed it."""

    record: Record | None = None
    evidence: Evidence | None = None
    about: tuple[UUID, int, int] | None = None
    """Which session, generation and epoch the evidence is about: of another it says nothing."""
    read: Callable[[], Awaitable[Record | None]] = field(kw_only=True)


class Starts:
    """Opens projects for users."""

    def __init__(
        self,
        database: Database,
        looker: Looker,
        work: Work,
        joining: Joining,
        defaults: Defaults,
        turns: Turns,
    ) -> None:
        self._database = database
        self._looker = looker
        self._work = work
        self._joining = joining
        self._defaults = defaults
        self._turns = turns

    # --- calls ---------------------------------------------------------------------------------

    async def start(self, start: Start) -> Answer:
        """Open the key: the hot path's one statement, or else what the ladder says."""
        mode = ladder.mode_of(start.wish, self._defaults.policy)
        if mode is Mode.CONTINUE:
            hot = await self._hot(start)
            if hot is not None:
                return hot
        return await self._until_answered(
            start, lambda: sessions.live_at(self._database, start.key)
        )

    async def resume(
        self, session_id: UUID, request: Request, wish: Wish, etag: str | None
    ) -> Answer:
        """Bring one session back by its id; it must be live, and `etag`, if given, its own.

        The etag is compared at each look, so that it fences the caller's own race to the end.
        """

        async def read() -> Record:
            record = await require(self._database, request.tenant, session_id)
            if etag:
                check_etag(record, etag)
            return record

        key = (await require(self._database, request.tenant, session_id)).session.key
        return await self._until_answered(Start(request, key, wish), read)

    async def preview(self, start: Start) -> tuple[Record | None, ladder.Decision]:
        """What a start would do now. Looks, where it would look; changes no session."""
        record = await sessions.live_at(self._database, start.key)
        plan = self._decide(start, record, None)
        if isinstance(plan, ladder.Look) and record is not None:
            evidence = await self._looker.glance(record)
            plan = self._decide(start, record, evidence)
        return record, plan

    # --- the loop ------------------------------------------------------------------------------

    async def _hot(self, start: Start) -> Answer | None:
        decision = NewDecision(
            uuids.uuid7(),
            start.request,
            "SEEN_LATELY",
            "it was seen running within the window",
            mode=start.wish.mode,
            outcome=Outcome.REUSED,
            continuity=Continuity.MEMORY,
            continuity_verified=True,
            finished=True,
        )
        record = await sessions.reuse_at(
            self._database, start.key, self._defaults.freshness, decision
        )
        return None if record is None else Answer(as_written(decision, record), record)

    async def _until_answered(
        self, start: Start, read: Callable[[], Awaitable[Record | None]]
    ) -> Answer:
        """Decide and act, again and again, until a decision is the call's answer."""
        facts = Facts(read=read)
        while True:
            replayed = await self._joining.replayed(start.request)
            if replayed is not None:
                return replayed
            facts.record = await facts.read()
            evidence, facts.evidence = facts.evidence, None
            if facts.record is None or _about(facts.record) != facts.about:
                evidence = None
            plan = self._decide(start, facts.record, evidence)
            answer = await self._act(start, plan, facts, evidence)
            if answer is not None:
                return answer

    def _decide(
        self, start: Start, record: Record | None, evidence: Evidence | None
    ) -> ladder.Decision:
        policy = self._defaults.policy
        if record is not None:
            policy = policies.load(record.session.policy)
        return ladder.decide(start.wish, policy, record, evidence, self._defaults.freshness)

    async def _act(
        self, start: Start, plan: ladder.Decision, facts: Facts, evidence: Evidence | None
    ) -> Answer | None:
        """Carry the plan out; None where facts have changed and must be read again."""
        record = facts.record
        if isinstance(plan, ladder.Open):
            return await self._open(start, plan, None)
        if isinstance(plan, ladder.Refuse):
            return await self._refuse(start, plan, record, evidence)
        assert record is not None, "every other plan is about a session that is there"
        match plan:
            case ladder.Use():
                return await self._use(start, plan, record, evidence)
            case ladder.Look():
                facts.about = _about(record)
                facts.evidence = await self._looker.look(record)
                return None
            case ladder.Replace():
                return await self._open(start, plan, record)
            case ladder.Climb():
                return await self._climb(start, plan, record, evidence)
            case ladder.Join():
                return await self._join(start, plan, record)
            case ladder.TakeTurn():
                await self._joining.settled(record.session.session_id, record.session.epoch)
                return None
            case ladder.TakeOver():
                return await self._take_over(start, plan, record)
            case other:
                assert_never(other)

    # --- plans ---------------------------------------------------------------------------------

    async def _use(
        self, start: Start, plan: ladder.Use, record: Record, evidence: Evidence | None
    ) -> Answer | None:
        decision = decided(start, plan, record, evidence)
        decision = altered(
            decision,
            outcome=Outcome.REUSED,
            continuity=plan.continuity,
            continuity_verified=plan.verified,
            finished=True,
        )
        session = record.session
        used = await sessions.reuse(self._database, session.session_id, session.epoch, decision)
        if used is None:
            return None
        if evidence is not None and evidence.first_boot is not None:
            # Only now: an answer has said that nothing is proved of what was before this boot.
            change = intents.first_proof(record, evidence.first_boot)
            await transitions.write(self._database, change)
        return Answer(as_written(decision, used), used)

    async def _open(
        self, start: Start, plan: ladder.Open | ladder.Replace, replaced: Record | None
    ) -> Answer | None:
        """A new session; with `replaced`, in place of that one, which waits for it to stand."""
        spec = start.spec or self._defaults.spec
        if spec is None and replaced is not None:
            spec = specs.load(replaced.session.spec)
        if spec is None:
            raise errors.InvalidField.of(
                "spec.image", "is needed to create a container: no default image is configured"
            )
        self._turns.check_room(start.key, creates_in=self._defaults.app)
        decision = decided(start, plan, replaced)
        opening = intents.opening(
            start, spec, decision.decision_id, replaced, self._defaults, self._work.terms
        )
        waits = None if replaced is None else intents.waiting(replaced.session, opening)
        # In place of a live one it makes none more, also for who has too many already.
        most = self._defaults.live_quota if replaced is None else 0
        held = Quota(start.key.tenant, most) if most else None
        intent = transitions.open_session(self._database, opening, decision, waits, held)
        try:
            return await self._carried(intent, decision)
        except QuotaReached:
            return await self._append(refused(decision, quota.exceeded(most)))

    async def _climb(
        self, start: Start, plan: ladder.Climb, record: Record, evidence: Evidence | None
    ) -> Answer | None:
        self._turns.check_room(start.key)
        decision = decided(start, plan, record, evidence)
        change = intents.climbing(
            record.session, start.wish, evidence, decision.decision_id, self._work.terms
        )
        return await self._carried(transitions.begin(self._database, change, decision), decision)

    async def _carried(
        self, intent: Coroutine[Any, Any, Session | None], decision: NewDecision
    ) -> Answer | None:
        """Commit the intent, do the work in a task that outlives this call, wait for its answer.

        None where somebody else was first. Any: what coroutines send and receive, unused.
        """
        task = await self._work.commit(intent)
        if task is None:
            return None
        await asyncio.wait({task})
        written = await decisions.get(self._database, decision.decision_id)
        if written is None:
            raise errors.ProviderUnavailable("the start's decision is no longer kept; try again")
        finished = await self._joining.finished(written)
        raise_recorded(finished)
        return await self._joining.answer(finished)

    async def _join(self, start: Start, plan: ladder.Plan, record: Record) -> Answer | None:
        """Wait for the start in flight; its outcome is ours, in a decision that names it."""
        leader_id = record.session.decision_id
        leader = None if leader_id is None else await decisions.get(self._database, leader_id)
        if leader is None:
            await self._joining.settled(record.session.session_id, record.session.epoch)
            return None
        finished = await self._joining.finished(leader)
        same = wishes.load(record.session.wish) == start.wish
        if finished.finish_time is None or not (same or shareable(finished)):
            return None
        decision = joined(decided(start, plan, record), finished, start.wish)
        return await self._append(decision)

    async def _take_over(
        self, start: Start, plan: ladder.TakeOver, record: Record
    ) -> Answer | None:
        """The owner is gone. A start that nobody waits for any more is ours; else it is finished
        for whoever does, and we decide again.
        """
        session = record.session
        if session.transition is not Transition.START:
            await self._settle(record)
            return None
        if session.decision_id is not None:
            await self._work.take_over(record)
            return await self._join(start, plan, record)
        if session.prior_state is None and not intents.asks_for_the_same(start, session):
            await self._discard(record)
            return None
        decision = decided(start, plan, record)
        change = intents.adopted(session, start.wish, decision.decision_id, self._work.terms)
        return await self._carried(transitions.begin(self._database, change, decision), decision)

    async def _settle(self, record: Record) -> None:
        """Take the transition over and see it through, so that there is something to decide on.

        Raises ProviderUnavailable where it could not be finished: whoever tries again at once would
        only meet it again.
        """
        task = await self._work.take_over(record)
        if task is None:
            return
        await asyncio.wait({task})
        again = await sessions.find(self._database, record.session.session_id)
        if again is not None and again.lapsed:
            raise errors.ProviderUnavailable(
                "an earlier transition of this session could not be finished yet; try again"
            )

    async def _discard(self, record: Record) -> None:
        """A session that never stood, of another spec, is in the way: its key is free at once, and
        what it may have created is looked for and destroyed.
        """
        change = intents.discarded(record.session, self._work.terms)
        await self._work.commit(transitions.begin(self._database, change, None))

    async def _refuse(
        self,
        start: Start,
        plan: ladder.Refuse,
        record: Record | None,
        evidence: Evidence | None,
    ) -> Answer | None:
        decision = refused(decided(start, plan, record, evidence), refusal(plan))
        return await self._append(decision)

    async def _append(self, decision: NewDecision) -> Answer | None:
        """Append a finished decision and answer with it; None where its request id is taken."""
        written = await decisions.append_once(self._database, decision)
        if written is None:
            return None
        raise_recorded(written)
        return await self._joining.answer(written)


def _about(record: Record) -> tuple[UUID, int, int]:
    """What evidence gathered of this record is about."""
    row = record.session
    return row.session_id, row.generation, row.epoch
