"""PauseSession, StopSession, EndSession and UndeleteSession.

Each call has a rule: a pure function from the facts to a `Commit`. A refusal is a `Commit` too, of
a decision with the error, so that a repeat of the call gets the same error.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, assert_never

import uuid_utils.compat as uuids

from session_service import errors
from session_service.dispatch.call import NO_SLOT
from session_service.dispatch.wait import Settle
from session_service.domain import policy as domain_policy
from session_service.domain.decision import Decision
from session_service.domain.next_action import purged
from session_service.domain.policy import Stop, what_stop_means
from session_service.domain.session import ContainerState, EndReason, PauseDepth
from session_service.domain.states import State, Transition, check_move
from session_service.sessions.lookup import check_etag, require
from session_service.storage.session.change import NOW, Change
from session_service.storage.session.commit import Commit, Quota
from session_service.transition import changes as transition_changes
from session_service.transition.changes import given_back
from session_service.transition.decision_record import Answer, answered, refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from session_service.dispatch.call import Driver
    from session_service.dispatch.dispatcher import Dispatcher
    from session_service.dispatch.wait import Observation
    from session_service.domain.decision import Request
    from session_service.domain.policy import InForce
    from session_service.domain.session import Record
    from session_service.policy.service import PolicyService, Rules
    from session_service.storage.database import Database
    from session_service.storage.session.change import Terms


@dataclass(frozen=True, slots=True)
class Named:
    """A call about one session: its request, the session, and the expected etag (None: any)."""

    request: Request
    session_id: UUID
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that a rule decides by. The session has no transition in flight, unless the rule
    interrupts that transition.
    """

    request: Request
    record: Record
    terms: Terms
    """The terms of an owner at this replica."""
    rules: Rules | None = None
    """The rules in force at the session's key; read only if the rule needs them."""
    given_back: tuple[Change, ...] = ()
    """The changes that return a predecessor in REPLACE to its former state, if this session's start
    is given up."""

    @property
    def in_force(self) -> InForce:
        """The policy in force for the session now; its row may have an earlier one."""
        assert self.rules is not None, "`Rule.reads_rules` said that the rule needs them"
        return self.rules.for_session(domain_policy.load_in_force(self.record.session.policy), None)

    def decision(self, rule: str, because: str, *, finished: bool = False) -> Decision:
        """The call's decision about the session."""
        return Decision(
            uuids.uuid7(),
            self.request,
            rule,
            because,
            session_id=self.record.session.session_id,
            finished=finished,
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """The rule of one of the four calls."""

    decide: Callable[[Facts], Commit]
    reads_rules: Callable[[Record], bool]
    """Whether `decide` needs the rules in force, which cost one more statement."""
    interrupts: Callable[[Record], bool] = lambda record: False
    """Whether the rule may interrupt the transition in flight, instead of waiting for its end."""


class StopService:
    """Pauses sessions, ends them, and brings ended ones back."""

    def __init__(
        self, database: Database, dispatcher: Dispatcher, policies: PolicyService, driver: Driver
    ) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._policies = policies
        self._driver = driver

    async def pause(self, named: Named, depth: PauseDepth) -> Answer:
        """Pause the session, at least this deep. Refused if the policy keeps nothing in a pause."""
        return await self._run(
            named,
            Rule(partial(pause, depth=depth), lambda record: record.session.state is State.ACTIVE),
        )

    async def stop(self, named: Named) -> Answer:
        """Pause or end the session, as the policy in force says. A transition that begins writes
        that policy into the session's row.
        """
        return await self._run(named, Rule(stop, lambda record: not _ended_by_stop(record)))

    async def end(self, named: Named, *, now: bool) -> Answer:
        """End the session; `now` destroys its container, also if the session has ended before."""
        return await self._run(
            named,
            Rule(
                partial(end, now=now),
                lambda record: False,
                lambda record: record.abandoned or (now and _starting(record)),
            ),
        )

    async def undelete(self, named: Named) -> Answer:
        """Bring an ended session back as PAUSED, while its container is kept."""
        return await self._run(named, Rule(undelete, _can_come_back))

    async def _run(self, named: Named, rule: Rule) -> Answer:
        call = StopCall(self._database, self._dispatcher, self._policies, named, rule)
        return await self._driver.run(call)


class StopCall:
    """One call: reads the facts, and decides by its rule."""

    slot = NO_SLOT

    def __init__(
        self,
        database: Database,
        dispatcher: Dispatcher,
        policies: PolicyService,
        named: Named,
        rule: Rule,
    ) -> None:
        self.request = named.request
        self._database = database
        self._dispatcher = dispatcher
        self._policies = policies
        self._named = named
        self._rule = rule

    async def step(self, wait_result: Decision | Observation | None) -> Settle | Commit:
        """Read the rows; then wait for a transition in flight, or decide.

        The etag is compared in each round, so that no change between the read and the commit is
        missed. Raises SessionNotFound, EtagMismatch.
        """
        record = await require(self._database, self.request.tenant, self._named.session_id)
        if self._named.etag:
            check_etag(record, self._named.etag)
        session = record.session
        if session.transition is not None and not self._rule.interrupts(record):
            return Settle(record)
        rules: Rules | None = None
        returned: tuple[Change, ...] = ()
        if self._rule.reads_rules(record):
            rules = await self._policies.of(session.key)
        if _starting(record):
            returned = tuple(await given_back(self._database, session))
        terms = self._dispatcher.terms
        return self._rule.decide(Facts(self.request, record, terms, rules, returned))

    async def answer(self, decision: Decision, record: Record | None, *, replayed: bool) -> Answer:
        """The decision, and the session as it is now."""
        return await answered(self._database, decision)


# --- the rules -----------------------------------------------------------------------------------


def pause(facts: Facts, depth: PauseDepth) -> Commit:
    """PauseSession."""
    if facts.record.session.state is State.ACTIVE:
        policy = facts.in_force.policy
        if what_stop_means(policy) is Stop.END:
            return _refuse(
                facts,
                errors.PolicyForbids(
                    f"the policy in force, {policy.persistence}, keeps nothing in a pause: stop "
                    "or end the session, or set another policy"
                ),
            )
    return _pause(facts, depth)


def stop(facts: Facts) -> Commit:
    """StopSession."""
    if _ended_by_stop(facts.record):
        return _already(facts, "ALREADY_ENDED")
    follows = {"policy": domain_policy.dump_in_force(facts.in_force)}
    match what_stop_means(facts.in_force.policy):
        case Stop.END if facts.record.session.live:
            return _begin(facts, Transition.END, end_reason=EndReason.EPHEMERAL, **follows)
        case Stop.CHECKPOINT:
            return _pause(facts, PauseDepth.CHECKPOINT, **follows)
        case Stop.END | Stop.PAUSE:
            return _pause(facts, PauseDepth.SUSPENDED, **follows)
        case other:
            assert_never(other)


def end(facts: Facts, *, now: bool) -> Commit:
    """EndSession."""
    session = facts.record.session
    if session.state is State.ENDED and (not now or purged(facts.record)):
        return _already(facts, "ALREADY_ENDED")
    abandoned = facts.record.abandoned
    if _starting(facts.record) and not abandoned:
        return _cut_off(facts)
    # A session that was never ACTIVE has no state to keep.
    kind = Transition.PURGE if now or abandoned else Transition.END
    return _begin(facts, kind, end_reason=session.end_reason or EndReason.REQUESTED)


def undelete(facts: Facts) -> Commit:
    """UndeleteSession. It begins no work: the container still exists; the row becomes PAUSED."""
    session = facts.record.session
    if session.live:
        return _already(facts, "ALREADY_LIVE")
    if not _can_come_back(facts.record):
        return _refuse(
            facts,
            errors.SessionStateConflict(
                "the session's grace period is over; start a new one with StartSession"
            ),
        )
    check_move(session.state, State.PAUSED)
    assert facts.rules is not None, "`Rule.reads_rules` said that the quota is needed"
    change = Change(
        session.session_id,
        session.epoch,
        session={
            **transition_changes.paused(session, session.pause_depth),
            "end_time": None,
            "purge_time": None,
            "end_reason": None,
            "pause_time": session.pause_time or NOW,
        },
    )
    decision = facts.decision("UNDELETE", "its container is still kept", finished=True)
    return Commit((change,), decision, quota=Quota.of(session.tenant, facts.rules.live_quota))


def _pause(facts: Facts, depth: PauseDepth, **columns: object) -> Commit:
    session = facts.record.session
    if session.state is State.PAUSED and _deep_enough(facts.record, depth):
        return _already(facts, "ALREADY_PAUSED")
    if session.state not in (State.ACTIVE, State.PAUSED):
        return _refuse(
            facts,
            errors.SessionStateConflict(
                f"the session is {session.state}; only a live session can be paused"
            ),
        )
    return _begin(facts, Transition.PAUSE, pause_depth=depth, **columns)


def _begin(facts: Facts, transition: Transition, **columns: object) -> Commit:
    """Begin a transition, and return a predecessor in REPLACE to its former state."""
    session = facts.record.session
    state = State.PAUSING if transition is Transition.PAUSE else State.ENDING
    check_move(session.state, state)
    decision = facts.decision(transition, f"the session was {session.state}")
    change = Change(
        session.session_id,
        session.epoch,
        session={
            **facts.terms.values(),
            "state": state,
            "transition": transition,
            "prior_state": session.prior_state if facts.record.abandoned else session.state,
            "decision_id": decision.decision_id,
            "wish": None,
            **columns,
        },
    )
    return Commit((change, *facts.given_back), decision, session.session_id)


def _cut_off(facts: Facts) -> Commit:
    """End a session during its start. The start's decision is finished with an error for its
    caller. The advanced epoch fences the start's owner off, so that it writes nothing more. A
    predecessor in REPLACE returns to its former state.
    """
    session = facts.record.session
    decision = facts.decision(Transition.PURGE, "it was ended while it started")
    refusal = errors.SessionStateConflict("the session was ended while it was starting")
    change = Change(
        session.session_id,
        session.epoch,
        session={
            **facts.terms.values(),
            "state": State.ENDING,
            "transition": Transition.PURGE,
            "decision_id": decision.decision_id,
            "wish": None,
            "end_reason": EndReason.REQUESTED,
        },
        decision=transition_changes.refused(refusal),
        decision_id=session.decision_id,
    )
    return Commit((change, *facts.given_back), decision, session.session_id)


def _already(facts: Facts, rule: str) -> Commit:
    """Nothing to do: the session is already in the requested state."""
    because = f"the session is {facts.record.session.state}"
    return Commit(decision=facts.decision(rule, because, finished=True))


def _refuse(facts: Facts, error: errors.RoostError) -> Commit:
    session_id = facts.record.session.session_id
    return Commit(decision=refusal(facts.request, error, session_id=session_id))


# --- questions about a record --------------------------------------------------------------------


def _starting(record: Record) -> bool:
    """Whether its start is in flight."""
    return record.session.transition is Transition.START


def _ended_by_stop(record: Record) -> bool:
    """Whether it ended because its policy keeps nothing: another stop changes nothing then."""
    session = record.session
    return session.state is State.ENDED and session.end_reason is EndReason.EPHEMERAL


def _can_come_back(record: Record) -> bool:
    """Whether it has ended, and its container still exists."""
    over = record.session.purge_time
    kept = over is None or over > record.now
    return not record.session.live and kept and not purged(record)


def _deep_enough(record: Record, depth: PauseDepth) -> bool:
    """Whether a paused session is known to be as deep as requested, or deeper."""
    container = record.container
    if container is None or container.destroy_time is not None:
        return True
    if depth is PauseDepth.CHECKPOINT:
        return False
    stopped = container.state in (ContainerState.STOPPED, ContainerState.FAILED)
    return stopped or (
        container.state is ContainerState.SUSPENDED and depth is PauseDepth.SUSPENDED
    )
