"""Carrying out what a start decided where nobody else is at work: use, open, climb, refuse."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import plans
from session_service.domain import spec as specs
from session_service.domain.effective import Source
from session_service.domain.session import Outcome
from session_service.domain.wish import Recreate
from session_service.lifecycle import intents, quota
from session_service.lifecycle.explaining import altered, as_written, decided, refusal, refused
from session_service.lifecycle.joining import Answer
from session_service.storage import commits, sessions, transitions
from session_service.storage.quotas import Quota, QuotaReached

if TYPE_CHECKING:
    from session_service.domain.fingerprint import Carrier
    from session_service.domain.session import Record
    from session_service.lifecycle.answering import Answering
    from session_service.lifecycle.case import Case
    from session_service.lifecycle.first_steps import FirstSteps
    from session_service.lifecycle.intents import Defaults
    from session_service.lifecycle.takeover import Work
    from session_service.lifecycle.turns import Turns
    from session_service.storage.database import Database


class Acting:
    """Opens, uses and brings back."""

    def __init__(
        self, database: Database, work: Work, answering: Answering, defaults: Defaults, turns: Turns
    ) -> None:
        self._database = database
        self._work = work
        self._answering = answering
        self._defaults = defaults
        self._turns = turns

    async def use(self, case: Case, plan: plans.Use, record: Record) -> Answer | None:
        """Answer with what is there; None where it changed meanwhile."""
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

    async def open(
        self,
        case: Case,
        plan: plans.Open | plans.Replace,
        replaced: Record | None,
        steps: FirstSteps,
    ) -> Answer | None:
        """A new session; with `replaced`, in place of that one, which waits for it to stand. None
        where somebody else was first. Raises InvalidField, QuotaExceeded.
        """
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
            return await self._answering.carried(intent, decision, steps)
        except QuotaReached:
            assert most is not None, "only a quota is reached"
            return await self._answering.append(
                case, refused(decision, quota.exceeded(most)), made=False
            )

    async def climb(
        self, case: Case, plan: plans.Climb, record: Record, steps: FirstSteps
    ) -> Answer | None:
        """Bring it back; None where somebody else was first."""
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
        return await self._answering.carried(intent, decision, steps)

    async def refuse(self, case: Case, plan: plans.Refuse) -> Answer | None:
        """Raise the refusal, written down; None where its request id is taken."""
        decision = decided(case.start, plan, case.record, case.evidence)
        return await self._answering.append(case, refused(decision, refusal(plan)), made=False)


def _recreate(case: Case, record: Record, by: Carrier) -> Recreate:
    """The container that is there is to go, for one of the wanted spec."""
    wanted = case.wanted(record.session)
    assert wanted is not None, "a change is one between two specs"
    source = Source.REQUEST if case.start.spec is not None else case.rules.spec[1]
    return Recreate(record.session.generation, specs.dump(wanted), source, by)
