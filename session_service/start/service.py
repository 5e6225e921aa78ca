"""StartSession, ResumeSession, RestoreCheckpoint and ForkSession: all four are starts."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service.checkpoints.stream import candidates
from session_service.dispatch.call import NO_SLOT
from session_service.domain import plans
from session_service.domain.decision import RECOVERY, Decision
from session_service.domain.session import Continuity, Mode, Outcome
from session_service.domain.spec import fingerprint
from session_service.errors import SessionNotFound
from session_service.sessions.lookup import check_etag, require
from session_service.start.choice import ANSWER_ERRORS
from session_service.start.execute import asks_for_the_same, execute, join
from session_service.start.facts import Facts, Start, differing
from session_service.storage.session import change as session_change
from session_service.storage.session import reads
from session_service.storage.session.change import Change
from session_service.storage.session.commit import Commit
from session_service.storage.session.reads import Gate
from session_service.transition import changes as transition_changes
from session_service.transition.changes import given_back
from session_service.transition.decision_record import Answer, answered, refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from session_service.admission.limiter import Limiter
    from session_service.dispatch.call import Driver, Slot
    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.dispatch.wait import Observation, Wait
    from session_service.domain.decision import Request
    from session_service.domain.session import Record
    from session_service.domain.wish import Wish
    from session_service.policy.service import PolicyService
    from session_service.start.choice import Choices
    from session_service.start.facts import Defaults
    from session_service.storage.database import Database

    #: Reads the rows: the start, and the session that it is about; or a refusal, for example of a
    #: checkpoint that does not exist. It is called in each round, since the rows may change.
    Read = Callable[[], Awaitable[tuple[Start, Record | None] | Decision]]


@dataclass(frozen=True, slots=True)
class StartParts:
    """The parts that every start uses."""

    database: Database
    dispatcher: Dispatcher
    policies: PolicyService
    choices: Choices
    limiter: Limiter
    defaults: Defaults


class StartService:
    """Starts and resumes sessions."""

    def __init__(self, parts: StartParts, driver: Driver) -> None:
        self._parts = parts
        self._driver = driver

    async def start(self, start: Start) -> Answer:
        """Start the key's session: by the hot path's statement, or else by the ladder's plan."""
        if start.wish.mode in (Mode.CONTINUE, Mode.UNSPECIFIED) and not start.token:
            # The statement runs without a database slot: a reuse is short, and should not queue.
            hot = await self._hot(start)
            if hot is not None:
                return hot

        async def read() -> tuple[Start, Record | None]:
            return start, await reads.live_at(self._parts.database, start.key)

        return await self.run(
            start.request, read, self._parts.limiter.database_slot(start.key), start
        )

    async def resume(
        self, session_id: UUID, request: Request, wish: Wish, etag: str | None
    ) -> Answer:
        """Resume a session by its id; it must be live. `etag`, if given, must be the session's.

        The etag is compared in each round, so that no change between the read and the commit is
        missed.
        """

        async def read() -> tuple[Start, Record]:
            record = await require(self._parts.database, request.tenant, session_id)
            if etag:
                check_etag(record, etag)
            return Start(request, record.session.key, wish), record

        return await self.run(request, read, await self.slot(request.tenant, session_id))

    async def slot(self, tenant: str, session_id: UUID) -> Slot:
        """The database slot of a start that names a session, in the queue of that session's user.

        A session that does not exist has no queue, and cannot be started. The call gets NO_SLOT
        then and no error, since it may be a repeat: the driver looks for its recorded answer first.
        """
        try:
            record = await require(self._parts.database, tenant, session_id)
        except SessionNotFound:
            return NO_SLOT
        return self._parts.limiter.database_slot(record.session.key)

    async def run(
        self, request: Request, read: Read, slot: Slot, start: Start | None = None
    ) -> Answer:
        """Run a start. `read` reads the rows; `start` is the request, if known without them."""
        return await self._driver.run(StartCall(self._parts, request, read, slot, start))

    async def _hot(self, start: Start) -> Answer | None:
        """Answer with the running session, by one statement; None if that is not possible."""
        decision = Decision(
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
            self._parts.policies.base,
            named=start.wish.mode is not Mode.UNSPECIFIED,
            fingerprint=None if start.spec is None else fingerprint(start.spec),
            asked=None if start.asked is None else json.dumps(start.asked.as_json()),
        )
        record = await reads.reuse_at(
            self._parts.database, start.key, self._parts.defaults.freshness, decision, gate
        )
        if record is None:
            return None
        written = decision.about(record.session.session_id).as_written(record.now)
        return Answer(written, record, differing(start, record.session, None))


class StartCall:
    """One start: reads the facts, gets the ladder's plan, and translates it to a wait or commit."""

    def __init__(
        self,
        parts: StartParts,
        request: Request,
        read: Read,
        slot: Slot,
        start: Start | None,
    ) -> None:
        self.request = request
        self.slot = slot
        self._parts = parts
        self._read = read
        self._start = start
        self._facts: Facts | None = None
        self._plan: plans.Decision | None = None
        self._leader: Decision | None = None

    async def step(self, wait_result: Decision | Observation | None) -> Wait | Commit | None:
        """Read, decide, and return the wait or the commit. After a Join, decide from the facts that
        the start had when it joined.

        Raises ChoiceRequired, InvalidField, ProviderRateLimited, and as `read` does.
        """
        if isinstance(wait_result, Decision):
            assert self._facts is not None, "a start that joined has read its facts"
            assert self._plan is not None, "a start that joined has a plan"
            self._leader = wait_result
            return join(self._facts, self._plan, wait_result)
        facts = await self._read_facts(wait_result)
        if isinstance(facts, Decision):
            return Commit(decision=facts)
        try:
            if facts.start.token:
                facts = await self._parts.choices.answered(facts)
            else:
                facts = facts.with_preference()
        except ANSWER_ERRORS as error:
            plan = plans.Plan(error.reason, "the user's answer was not taken")
            return Commit(decision=refused(facts.decision(plan), error))
        self._facts = facts = await self._with_given_back(facts)
        self._plan = plan = facts.decide(self._parts.defaults.freshness)
        if isinstance(plan, plans.Ask):
            assert facts.record is not None, "the choice is about an existing session"
            raise await self._parts.choices.ask(facts, plan, facts.record)
        app = self._parts.defaults.app
        step = execute(facts, plan, self._parts.dispatcher.terms, app)
        if isinstance(plan, plans.Open | plans.Replace | plans.TryRungs):
            creates = not isinstance(plan, plans.TryRungs) or plan.recreate is not None
            self._parts.limiter.check_room(facts.start.key, creates_in=app if creates else None)
        return step

    async def _read_facts(self, seen: Observation | None) -> Facts | Decision:
        """The facts as they are now, or the refusal that `read` returned."""
        read = await self._read()
        if isinstance(read, Decision):
            return read
        start, record = read
        rules = await self._parts.policies.of(start.key)
        saved = await candidates(self._parts.database, None if record is None else record.session)
        evidence = None if seen is None else seen.of(record)
        # `answer` needs the facts also if this round ends with the refusal of the user's answer.
        self._facts = facts = Facts(start, record, evidence, rules, checkpoints=saved)
        return facts

    async def _with_given_back(self, facts: Facts) -> Facts:
        """The facts with the changes of a predecessor in REPLACE, if this start purges the session
        that was to replace it.
        """
        record = facts.record
        if record is None or not record.abandoned:
            return facts
        if asks_for_the_same(facts.start, record.session):
            return facts
        changes = await given_back(self._parts.database, record.session)
        return replace(facts, given_back=tuple(changes))

    async def answer(self, decision: Decision, record: Record | None, *, replayed: bool) -> Answer:
        """The answer, with the parts of the wanted spec in which the container differs."""
        if record is None:
            answer = await answered(self._parts.database, decision)
        else:
            answer = Answer(decision, record)
            await self._note_first_boot(record)
        if decision.joined and not replayed:
            await self._note_loss_reported(answer)
        start = self._start if self._facts is None else self._facts.start
        changed: tuple[str, ...] = ()
        if start is not None:
            changed = differing(start, answer.record.session, self._facts)
        return replace(answer, changed=changed, replayed=replayed)

    async def _note_first_boot(self, used: Record) -> None:
        """Store the boot id that the provider read returned, if the row had none: later starts
        compare with it. It is written after the commit of the answer, because that answer must not
        claim continuity with a boot that was not known before.
        """
        facts = self._facts
        if facts is None or facts.record is None or facts.evidence is None:
            return
        if facts.evidence.first_boot is not None:
            boot = facts.evidence.first_boot
            change = transition_changes.first_proof(facts.record, used.session.epoch, boot)
            await session_change.write(self._parts.database, change)

    async def _note_loss_reported(self, answer: Answer) -> None:
        """Note that a loss was reported. A start that the service began by itself (RECOVERY) has no
        caller to report a loss to; a call that joined it has got the report with its answer.
        """
        if self._leader is not None and self._leader.request.method == RECOVERY:
            session = answer.record.session
            columns = {"loss_untold": False}
            change = Change(session.session_id, session.epoch, columns, advance=False)
            await session_change.write(self._parts.database, change)
