"""StartSession and ResumeSession: look, decide, have it carried out, until there is an answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, assert_never

import uuid_utils.compat as uuids

from session_service.domain import plans
from session_service.domain.deepening import deepens
from session_service.domain.fingerprint import fingerprint
from session_service.domain.session import Continuity, Mode, Outcome
from session_service.lifecycle.acting import Acting
from session_service.lifecycle.answering import Answering
from session_service.lifecycle.case import Case, differing
from session_service.lifecycle.choosing import ANSWER_ERRORS
from session_service.lifecycle.explaining import as_written, decided, refused
from session_service.lifecycle.intents import Defaults, Start
from session_service.lifecycle.joining import Answer
from session_service.lifecycle.meeting import Meeting
from session_service.lifecycle.reading import check_etag, require
from session_service.storage import decisions, sessions
from session_service.storage.decisions import NewDecision
from session_service.storage.sessions import Gate
from session_service.vault.lines import candidates

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.evidence import Evidence
    from session_service.domain.session import Record
    from session_service.domain.wish import Wish
    from session_service.lifecycle.choosing import Choosing
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.first_steps import FirstSteps
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.policies import Policies
    from session_service.lifecycle.takeover import Work
    from session_service.lifecycle.turns import Turns
    from session_service.storage.database import Database


#: Plans that begin with waiting for others.
WAITING = (plans.Look, plans.Join, plans.TakeTurn, plans.TakeOver)


@dataclass(slots=True)
class Facts:
    """What is known as a start goes on: read anew each time somebody may have changed it."""

    steps: FirstSteps
    """Its place at the database, which it gives back where it is to wait for others."""
    read: Callable[[], Awaitable[Record | None]]
    evidence: Evidence | None = None
    about: tuple[UUID, int, int] | None = None
    """Which session, generation and epoch the evidence is about: of another it says nothing."""


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
        self._joining = joining
        self._defaults = defaults
        self._turns = turns
        self._policies = policies
        self._choosing = choosing
        self._answering = answering = Answering(database, work, joining)
        self._acting = Acting(database, work, answering, defaults, turns)
        self._meeting = Meeting(database, work, joining, answering)

    # --- calls ---------------------------------------------------------------------------------

    async def start(self, start: Start) -> Answer:
        """Open the key: the hot path's one statement, or else what the ladder says."""
        if start.wish.mode in (Mode.CONTINUE, Mode.UNSPECIFIED) and not start.token:
            # Before it takes turns, which would cost a reuse some of its time.
            hot = await self._hot(start)
            if hot is not None:
                return hot
        async with self._turns.first_steps(start.key) as steps:
            read = partial(sessions.live_at, self._database, start.key)
            return await self._until_answered(start, Facts(steps, read))

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
        async with self._turns.first_steps(key) as steps:
            return await self._until_answered(Start(request, key, wish), Facts(steps, read))

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

    async def _until_answered(self, start: Start, facts: Facts) -> Answer:
        """Decide and act, again and again, until a decision is the call's answer."""
        case: Case | None = None
        while True:
            await facts.steps.go_on()
            earlier = await decisions.of_request(self._database, start.request)
            if earlier is not None:
                facts.steps.step_back()
                return _told(start, await self._joining.replay(start.request, earlier), case)
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
            return await self._answering.append(
                case, refused(decided(case.start, plan, case.record), error), made=False
            )
        return await self._act(case, case.decide(self._defaults.freshness), facts)

    async def _act(self, case: Case, plan: plans.Decision, facts: Facts) -> Answer | None:
        """Carry the plan out; None where facts have changed and must be read again."""
        record = case.record
        if isinstance(plan, plans.Open):
            return await self._acting.open(case, plan, None, facts.steps)
        if isinstance(plan, plans.Refuse):
            return await self._acting.refuse(case, plan)
        assert record is not None, "every other plan is about a session that is there"
        if isinstance(plan, WAITING):
            facts.steps.step_back()
        match plan:
            case plans.Use():
                return await self._acting.use(case, plan, record)
            case plans.Look():
                facts.about = _about(record)
                facts.evidence = await self._looker.look(record)
                return None
            case plans.Replace():
                return await self._acting.open(case, plan, record, facts.steps)
            case plans.Climb():
                return await self._acting.climb(case, plan, record, facts.steps)
            case plans.Ask():
                raise await self._choosing.ask(case, plan, record)
            case plans.Join():
                return await self._meeting.join(case, plan, record)
            case plans.TakeTurn():
                if deepens(record.session):
                    # Somebody is there: whoever puts it to rest deeper lets go of it.
                    await sessions.touch(
                        self._database, record.session.tenant, record.session.session_id
                    )
                await self._joining.settled(record.session.session_id, record.session.epoch)
                return None
            case plans.TakeOver():
                return await self._meeting.take_over(case, plan, record)
            case other:
                assert_never(other)


def _told(start: Start, answer: Answer, case: Case | None) -> Answer:
    """The answer, saying where the container is not what was wanted."""
    return replace(answer, changed=differing(start, answer.record.session, case))


def _about(record: Record) -> tuple[UUID, int, int]:
    """What evidence gathered of this record is about."""
    row = record.session
    return row.session_id, row.generation, row.epoch
