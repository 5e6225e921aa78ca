"""StartSession, ResumeSession and PreviewStart: decide, commit the intent, climb or join."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, assert_never

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import plans
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.deepening import deepens
from session_service.domain.effective import Source
from session_service.domain.fingerprint import fingerprint
from session_service.domain.session import Continuity, Mode, Outcome
from session_service.domain.states import Transition
from session_service.domain.wish import Recreate
from session_service.lifecycle import intents, own_steps, quota
from session_service.lifecycle.case import Case, differing
from session_service.lifecycle.choosing import ANSWER_ERRORS
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
from session_service.lifecycle.replacing import given_back
from session_service.storage import commits, decisions, sessions, transitions
from session_service.storage.decisions import NewDecision
from session_service.storage.quotas import Quota, QuotaReached
from session_service.storage.sessions import Gate
from session_service.storage.transitions import Change
from session_service.vault.lines import candidates

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.evidence import Evidence
    from session_service.domain.fingerprint import Carrier
    from session_service.domain.session import Record, Session
    from session_service.domain.wish import Wish
    from session_service.lifecycle.choosing import Choosing
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.policies import Policies
    from session_service.lifecycle.takeover import Work
    from session_service.lifecycle.turns import Turns
    from session_service.storage.database import Database


@dataclass(slots=True)
class Facts:
    """What is known as a start goes on: read anew each time somebody may have changed it."""

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
        policies: Policies,
        choosing: Choosing,
    ) -> None:
        self._database = database
        self._looker = looker
        self._work = work
        self._joining = joining
        self._defaults = defaults
        self._turns = turns
        self._policies = policies
        self._choosing = choosing

    # --- calls ---------------------------------------------------------------------------------

    async def start(self, start: Start) -> Answer:
        """Open the key: the hot path's one statement, or else what the ladder says."""
        if start.wish.mode in (Mode.CONTINUE, Mode.UNSPECIFIED) and not start.token:
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
        gate = Gate(
            self._policies.base,
            named=start.wish.mode is not Mode.UNSPECIFIED,
            fingerprint=None if start.spec is None else fingerprint(start.spec),
            asked=None if start.asked is None else json.dumps(start.asked.as_json()),
        )
        record = await sessions.reuse_at(
            self._database, start.key, self._defaults.freshness, decision, gate
        )
        if record is None:
            return None
        changed = differing(start, record.session, None)
        return Answer(as_written(decision, record), record, changed)

    async def _until_answered(
        self, start: Start, read: Callable[[], Awaitable[Record | None]]
    ) -> Answer:
        """Decide and act, again and again, until a decision is the call's answer."""
        facts = Facts(read=read)
        case: Case | None = None
        while True:
            replayed = await self._joining.replayed(start.request)
            if replayed is not None:
                return _told(start, replayed, case)
            record = await facts.read()
            evidence, facts.evidence = facts.evidence, None
            if record is None or _about(record) != facts.about:
                evidence = None
            rules = await self._policies.of(start.key)
            saved = await candidates(self._database, None if record is None else record.session)
            case = Case(start, record, evidence, rules, checkpoints=saved)
            answer = await self._consider(case, facts)
            if answer is not None:
                return _told(start, answer, case)

    async def _consider(self, case: Case, facts: Facts) -> Answer | None:
        """Take the user's answer, decide, and act; None where facts must be read again."""
        try:
            case = await self._choosing.answered(case)
        except ANSWER_ERRORS as error:
            plan = plans.Plan(error.reason, "the user's answer was not taken")
            return await self._append(
                case, refused(decided(case.start, plan, case.record), error), made=False
            )
        return await self._act(case, case.decide(self._defaults.freshness), facts)

    async def _act(self, case: Case, plan: plans.Decision, facts: Facts) -> Answer | None:
        """Carry the plan out; None where facts have changed and must be read again."""
        record = case.record
        if isinstance(plan, plans.Open):
            return await self._open(case, plan, None)
        if isinstance(plan, plans.Refuse):
            return await self._refuse(case, plan)
        assert record is not None, "every other plan is about a session that is there"
        match plan:
            case plans.Use():
                return await self._use(case, plan, record)
            case plans.Look():
                facts.about = _about(record)
                facts.evidence = await self._looker.look(record)
                return None
            case plans.Replace():
                return await self._open(case, plan, record)
            case plans.Climb():
                return await self._climb(case, plan, record)
            case plans.Ask():
                raise await self._choosing.ask(case, plan, record)
            case plans.Join():
                return await self._join(case, plan, record)
            case plans.TakeTurn():
                if deepens(record.session):
                    # Somebody is there: whoever puts it to rest deeper lets go of it.
                    await sessions.touch(
                        self._database, record.session.tenant, record.session.session_id
                    )
                await self._joining.settled(record.session.session_id, record.session.epoch)
                return None
            case plans.TakeOver():
                return await self._take_over(case, plan, record)
            case other:
                assert_never(other)

    # --- plans ---------------------------------------------------------------------------------

    async def _use(self, case: Case, plan: plans.Use, record: Record) -> Answer | None:
        decision = decided(case.start, plan, record, case.evidence)
        decision = altered(
            decision,
            outcome=Outcome.REUSED,
            continuity=plan.continuity,
            continuity_verified=plan.verified,
            finished=True,
        )
        session = record.session
        also = case.also(decision.decision_id)
        used = await sessions.reuse(
            self._database, session.session_id, session.epoch, decision, case.policy, also
        )
        if used is None:
            return None
        if case.evidence is not None and case.evidence.first_boot is not None:
            # Only now: an answer has said that nothing is proved of what was before this boot.
            boot = case.evidence.first_boot
            change = intents.first_proof(record, used.session.epoch, boot)
            await transitions.write(self._database, change)
        return Answer(as_written(decision, used), used)

    async def _open(
        self, case: Case, plan: plans.Open | plans.Replace, replaced: Record | None
    ) -> Answer | None:
        """A new session; with `replaced`, in place of that one, which waits for it to stand."""
        start = case.start
        spec, policy = case.opened(replaced)
        if spec is None:
            raise errors.InvalidField.of(
                "spec.image",
                "is needed to create a container: neither the project nor the operator has a "
                "default",
            )
        self._turns.check_room(start.key, creates_in=self._defaults.app)
        decision = decided(start, plan, replaced)
        opening = intents.opening(
            start,
            spec,
            decision.decision_id,
            replaced,
            self._defaults.app,
            policy,
            self._work.terms,
        )
        waits = None if replaced is None else intents.waiting(replaced.session, opening)
        # In place of a live one it makes none more, also for who has too many already.
        most = case.rules.live_quota if replaced is None else None
        held = None if most is None else Quota(start.key.tenant, most.most)
        intent = commits.open_session(
            self._database, opening, decision, waits, held, case.also(decision.decision_id)
        )
        try:
            return await self._carried(intent, decision)
        except QuotaReached:
            assert most is not None, "only a quota is reached"
            return await self._append(case, refused(decision, quota.exceeded(most)), made=False)

    async def _climb(self, case: Case, plan: plans.Climb, record: Record) -> Answer | None:
        creates_in = self._defaults.app if plan.recreate else None
        self._turns.check_room(case.start.key, creates_in=creates_in)
        decision = decided(case.start, plan, record, case.evidence)
        wish = case.start.wish
        if plan.recreate:
            wish = replace(wish, recreate=_recreate(case, record, plan.recreate))
        change = intents.climbing(
            record.session, wish, case.evidence, decision.decision_id, self._work.terms, case.policy
        )
        intent = commits.begin(
            self._database, change, decision, also=case.also(decision.decision_id)
        )
        return await self._carried(intent, decision)

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

    async def _join(self, case: Case, plan: plans.Plan, record: Record) -> Answer | None:
        """Wait for the start in flight; its outcome is ours, in a decision that names it."""
        leader_id = record.session.decision_id
        leader = None if leader_id is None else await decisions.get(self._database, leader_id)
        if leader is None:
            await self._joining.settled(record.session.session_id, record.session.epoch)
            return None
        finished = await self._joining.finished(leader)
        wish = case.start.wish
        same = wishes.load(record.session.wish) == wish
        if finished.finish_time is None or not (same or shareable(finished)):
            return None
        anew = record.session.prior_state is None
        decision = joined(decided(case.start, plan, record), finished, wish, anew=anew)
        answer = await self._append(case, decision)
        if answer is not None and leader.method == own_steps.METHOD:
            # Nobody else hears of what the keeper's own start found lost; this caller does.
            session = answer.record.session
            heard = Change(session.session_id, session.epoch, {"loss_untold": False}, advance=False)
            await transitions.write(self._database, heard)
        return answer

    async def _take_over(self, case: Case, plan: plans.TakeOver, record: Record) -> Answer | None:
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
            return await self._join(case, plan, record)
        if not stood and not intents.asks_for_the_same(start, session):
            await self._discard(record)
            return None
        decision = decided(start, plan, record)
        change = intents.adopted(session, start.wish, decision.decision_id, self._work.terms)
        intent = commits.begin(
            self._database, change, decision, also=case.also(decision.decision_id)
        )
        return await self._carried(intent, decision)

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
        """A session that never stood, of another spec, is in the way: its key is free at once, or
        given back to whom it was to replace, and what it may have created is looked for and
        destroyed.
        """
        change = intents.discarded(record.session, self._work.terms)
        others = await given_back(self._database, record.session)
        await self._work.commit(commits.begin(self._database, change, None, *others))

    async def _refuse(self, case: Case, plan: plans.Refuse) -> Answer | None:
        decision = decided(case.start, plan, case.record, case.evidence)
        return await self._append(case, refused(decision, refusal(plan)), made=False)

    async def _append(
        self, case: Case, decision: NewDecision, *, made: bool = True
    ) -> Answer | None:
        """Append a finished decision and answer with it; None where its request id is taken.
        `made` says whether it carries the user's choice out: a refusal leaves that to be made.
        """
        also = case.also(decision.decision_id) if made and decision.error is None else None
        written = await decisions.append_once(self._database, decision, also)
        if written is None:
            return None
        raise_recorded(written)
        return await self._joining.answer(written)


def _recreate(case: Case, record: Record, by: Carrier) -> Recreate:
    """The container that is there is to go, for one of the wanted spec."""
    wanted = case.wanted(record.session)
    assert wanted is not None, "a change is one between two specs"
    source = Source.REQUEST if case.start.spec is not None else case.rules.spec[1]
    return Recreate(record.session.generation, specs.dump(wanted), source, by)


def _told(start: Start, answer: Answer, case: Case | None) -> Answer:
    """The answer, saying where the container is not what was wanted."""
    return replace(answer, changed=differing(start, answer.record.session, case))


def _rolls_back(start: Start, session: Session) -> bool:
    """Whether a rollback is in flight, or comes after what is: neither joins the other."""
    either = start.wish.checkpoint_id or wishes.load(session.wish).checkpoint_id
    return session.prior_state is not None and either is not None


def _about(record: Record) -> tuple[UUID, int, int]:
    """What evidence gathered of this record is about."""
    row = record.session
    return row.session_id, row.generation, row.epoch
