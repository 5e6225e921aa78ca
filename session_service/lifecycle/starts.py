"""StartSession, ResumeSession and PreviewStart: decide, commit the intent, climb or join."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import ladder
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.session import (
    ContainerState,
    Continuity,
    EndReason,
    Key,
    Mode,
    Outcome,
    PauseDepth,
)
from session_service.domain.states import State, Transition, check_move
from session_service.lifecycle import outcomes
from session_service.lifecycle.climbing import new_container
from session_service.lifecycle.joining import Answer, raise_recorded, rebuilt
from session_service.storage import decisions, sessions, transitions
from session_service.storage.assignments import NOW
from session_service.storage.decisions import NewDecision
from session_service.storage.transitions import Change, Opening

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.decision import Decision, Request
    from session_service.domain.ladder import Evidence
    from session_service.domain.session import Record, Session
    from session_service.domain.wish import Wish
    from session_service.lifecycle.evidence import Looker
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.takeover import Work
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a start is given where the request does not say."""

    app: str
    spec: Mapping[str, Any] | None
    policy: policies.Policy
    freshness: timedelta


@dataclass(frozen=True, slots=True)
class Start:
    """A start that was asked for. Any: the spec is JSON, as the proto maps it."""

    request: Request
    key: Key
    wish: Wish
    spec: Mapping[str, Any] | None = None


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
    ) -> None:
        self._database = database
        self._looker = looker
        self._work = work
        self._joining = joining
        self._defaults = defaults

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
        return None if record is None else Answer(_as_written(decision, record), record)

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
        decision = self._new(start, plan, record, evidence)
        decision = _with(
            decision,
            outcome=Outcome.REUSED,
            continuity=plan.continuity,
            continuity_verified=plan.verified,
            finished=True,
        )
        session = record.session
        used = await sessions.reuse(self._database, session.session_id, session.epoch, decision)
        return None if used is None else Answer(_as_written(decision, used), used)

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
        decision = self._new(start, plan, replaced, None)
        opening = self._opening(start, spec, decision.decision_id, replaced)
        waits = None if replaced is None else _waits(replaced.session, opening)
        intent = transitions.open_session(self._database, opening, decision, waits)
        return await self._carried(intent, decision)

    async def _climb(
        self, start: Start, plan: ladder.Climb, record: Record, evidence: Evidence | None
    ) -> Answer | None:
        session = record.session
        check_move(session.state, State.STARTING)
        decision = self._new(start, plan, record, evidence)
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **self._work.terms.values(),
                "state": State.STARTING,
                "transition": Transition.START,
                "prior_state": session.state,
                "decision_id": decision.decision_id,
                "wish": wishes.dump(start.wish),
                **_seen_depth(evidence),
            },
            container=_seen_gone(evidence),
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
        if finished.finish_time is None or not (same or _shareable(finished)):
            return None
        decision = _joined(self._new(start, plan, record, None), finished, start.wish)
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
        if session.prior_state is None and not _asks_for_the_same(start, session):
            await self._discard(record)
            return None
        decision = self._new(start, plan, record, None)
        change = Change(
            session.session_id,
            session.epoch,
            session={
                **self._work.terms.values(),
                "decision_id": decision.decision_id,
                "wish": wishes.dump(start.wish),
            },
        )
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
        check_move(record.session.state, State.ENDING)
        change = Change(
            record.session.session_id,
            record.session.epoch,
            session={
                **self._work.terms.values(),
                "state": State.ENDING,
                "transition": Transition.PURGE,
                "end_reason": EndReason.CREATE_FAILED,
            },
        )
        await self._work.commit(transitions.begin(self._database, change, None))

    async def _refuse(
        self,
        start: Start,
        plan: ladder.Refuse,
        record: Record | None,
        evidence: Evidence | None,
    ) -> Answer | None:
        error = _REFUSALS[plan.refusal](plan.because + _NEXT[plan.refusal])
        decision = _refused(self._new(start, plan, record, evidence), error)
        return await self._append(decision)

    async def _append(self, decision: NewDecision) -> Answer | None:
        """Append a finished decision and answer with it; None where its request id is taken."""
        written = await decisions.append_once(self._database, decision)
        if written is None:
            return None
        raise_recorded(written)
        return await self._joining.answer(written)

    # --- making --------------------------------------------------------------------------------

    def _new(
        self,
        start: Start,
        plan: ladder.Plan,
        record: Record | None,
        evidence: Evidence | None,
    ) -> NewDecision:
        return NewDecision(
            uuids.uuid7(),
            start.request,
            plan.rule,
            plan.because,
            session_id=None if record is None else record.session.session_id,
            mode=start.wish.mode,
            inputs=_inputs(record, evidence),
        )

    def _opening(
        self,
        start: Start,
        spec: Mapping[str, Any],
        decision_id: UUID,
        replaced: Record | None,
    ) -> Opening:
        session_id = uuids.uuid7()
        return Opening(
            session={
                "session_id": session_id,
                "tenant": start.key.tenant,
                "project_id": start.key.project_id,
                "user_id": start.key.user_id,
                "slot": start.key.slot,
                "state": State.STARTING,
                "generation": 1,
                "epoch": 1,
                "transition": Transition.START,
                "wish": wishes.dump(start.wish),
                "decision_id": decision_id,
                "predecessor_id": None if replaced is None else replaced.session.session_id,
                "spec": specs.dump(spec),
                "fingerprint": specs.fingerprint(spec),
                "policy": policies.dump(self._defaults.policy),
            },
            terms=self._work.terms,
            container=new_container(session_id, 1, self._defaults.app),
        )


_REFUSALS: Mapping[ladder.Refusal, type[errors.RoostError]] = {
    ladder.Refusal.LIVE_SESSION_EXISTS: errors.LiveSessionExists,
    ladder.Refusal.CONTINUITY_UNAVAILABLE: errors.ContinuityUnavailable,
    ladder.Refusal.PROVIDER_UNAVAILABLE: errors.ProviderUnavailable,
    ladder.Refusal.SESSION_STATE_CONFLICT: errors.SessionStateConflict,
}
_NEXT: Mapping[ladder.Refusal, str] = {
    ladder.Refusal.LIVE_SESSION_EXISTS: "; start with mode CONTINUE to use it",
    ladder.Refusal.CONTINUITY_UNAVAILABLE: "; start with a lower min_continuity to go on",
    ladder.Refusal.PROVIDER_UNAVAILABLE: "; try again",
    ladder.Refusal.SESSION_STATE_CONFLICT: "; undelete it first, or start its key",
}


def etag_of(session: Session) -> str:
    """The session's etag (AIP-154): moves with every change but activity."""
    return f"{session.epoch:x}"


def check_etag(record: Record, etag: str) -> None:
    """Raise EtagMismatch unless the session is as the caller read it."""
    if etag != etag_of(record.session):
        raise errors.EtagMismatch(
            "the session changed since it was read; read it again and decide anew",
            {"etag": etag_of(record.session)},
        )


async def require(database: Database, tenant: str, session_id: UUID) -> Record:
    """The tenant's session. Raises SessionNotFound."""
    record = await sessions.get(database, tenant, session_id)
    if record is None:
        raise errors.SessionNotFound(
            f"no session {session_id}; FindLiveSession finds one by its key"
        )
    return record


def _about(record: Record) -> tuple[UUID, int, int]:
    """What evidence gathered of this record is about."""
    row = record.session
    return row.session_id, row.generation, row.epoch


def _asks_for_the_same(start: Start, session: Session) -> bool:
    """Whether a session that never stood is what this start would make anyway."""
    return start.wish.spec_hash in (None, specs.spec_hash(specs.load(session.spec)))


def _shareable(finished: Decision) -> bool:
    """Whether a leader's answer holds for joiners who asked for something else: a final refusal is
    about what the leader asked.
    """
    return finished.error is None or json.loads(finished.error)["retry_after"] is not None


def _waits(session: Session, opening: Opening) -> Change:
    """The session that is replaced: ENDING, its container left alone until the new one stands."""
    check_move(session.state, State.ENDING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            "state": State.ENDING,
            "transition": Transition.REPLACE,
            "prior_state": session.state,
            "successor_id": opening.session["session_id"],
        },
    )


def _seen_depth(evidence: Evidence | None) -> dict[str, object]:
    """How deep a container rests that nobody here put to rest, where that was seen."""
    if evidence is None or evidence.presence is not ladder.Presence.PRESENT:
        return {}
    suspended = evidence.state is ContainerState.SUSPENDED
    return {"pause_depth": PauseDepth.SUSPENDED if suspended else PauseDepth.STOPPED}


def _seen_gone(evidence: Evidence | None) -> dict[str, object]:
    """A container that was proved lost is marked so with the intent."""
    if evidence is None or evidence.presence is not ladder.Presence.ABSENT:
        return {}
    return {"destroy_time": NOW, "state": ContainerState.DESTROYED}


def _inputs(record: Record | None, evidence: Evidence | None) -> str:
    """What was known, as JSON: for whoever asks later why."""
    facts: dict[str, object] = {}
    if record is not None:
        session = record.session
        seen = session.verified_at
        facts |= {
            "state": session.state,
            "transition": session.transition,
            "generation": session.generation,
            "pause_depth": session.pause_depth,
            "loss_untold": session.loss_untold,
            "verified_seconds_ago": None if seen is None else (record.now - seen).total_seconds(),
        }
    if evidence is not None:
        facts["evidence"] = {
            "presence": evidence.presence,
            "state": evidence.state,
            "memory_intact": evidence.memory_intact,
            "preview_answered": evidence.preview_answered,
        }
    return json.dumps(facts)


def _with(decision: NewDecision, **changes: Any) -> NewDecision:
    """The decision with other values. Any: fields of every type."""
    return NewDecision(**{**{name: getattr(decision, name) for name in _FIELDS}, **changes})


_FIELDS = tuple(NewDecision.__dataclass_fields__)


def _refused(decision: NewDecision, error: errors.RoostError) -> NewDecision:
    """The decision as a refusal; one that can be retried does not take the request id."""
    request = decision.request
    if isinstance(error, errors.Retryable):
        request = type(request)(request.tenant, request.method, request.request_hash)
    return _with(decision, request=request, error=outcomes.dump(error), finished=True)


def _joined(decision: NewDecision, leader: Decision, wish: Wish) -> NewDecision:
    """A joiner's decision: the leader's outcome, held to the joiner's own min_continuity."""
    joined = _with(
        decision,
        outcome=leader.outcome,
        continuity=leader.continuity,
        continuity_verified=leader.continuity_verified,
        attempts=leader.attempts,
        joined=True,
        leader_decision_id=leader.decision_id,
        finished=True,
    )
    if leader.error is not None:
        return _refused(joined, rebuilt(json.loads(leader.error), {}))
    created = leader.outcome is Outcome.CREATED
    if wish.min_continuity and not created and (leader.continuity or 0) < wish.min_continuity:
        return _refused(
            joined,
            errors.ContinuityUnavailable(
                "the session is back with less than asked for; "
                "start with a lower min_continuity to go on with it"
            ),
        )
    return joined


def _as_written(decision: NewDecision, record: Record) -> Decision:
    """The decision's row as the statement that answered wrote it."""
    return decisions.as_written(decision.about(record.session.session_id), record.now)
