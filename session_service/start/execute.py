"""From the plan of a start to a wait or a commit, and from a joined start to the joiner's answer.

All functions are pure. `execute` translates the plan. `join` checks the outcome of the start that
was joined against the joiner's own request.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

import uuid_utils.compat as uuids

from session_service import errors
from session_service.dispatch.wait import Join, Observe, Settle
from session_service.domain import plans
from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.policy import Source
from session_service.domain.session import EndReason, Mode, Outcome
from session_service.domain.spec import fingerprint
from session_service.domain.states import State, Transition, check_move
from session_service.domain.wish import Recreate
from session_service.storage.checkpoint.removal import Kept
from session_service.storage.session.change import Change
from session_service.storage.session.commit import Commit, Opening, Quota
from session_service.storage.session.reads import Reuse
from session_service.transition import changes as transition_changes
from session_service.transition.decision_record import rebuilt, refused

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from session_service.dispatch.wait import Wait
    from session_service.domain.decision import Decision
    from session_service.domain.plans import Plan
    from session_service.domain.policy import InForce
    from session_service.domain.session import Record, Session
    from session_service.domain.spec import Carrier
    from session_service.start.facts import Facts, Start
    from session_service.storage.session.change import Terms


_REFUSALS: Mapping[plans.Refusal, type[errors.RoostError]] = {
    plans.Refusal.LIVE_SESSION_EXISTS: errors.LiveSessionExists,
    plans.Refusal.CONTINUITY_UNAVAILABLE: errors.ContinuityUnavailable,
    plans.Refusal.PROVIDER_UNAVAILABLE: errors.ProviderUnavailable,
    plans.Refusal.SESSION_STATE_CONFLICT: errors.SessionStateConflict,
    plans.Refusal.FINGERPRINT_CHANGED: errors.FingerprintChanged,
}
_NEXT: Mapping[plans.Refusal, str] = {
    plans.Refusal.LIVE_SESSION_EXISTS: "; start with mode CONTINUE to use it",
    plans.Refusal.CONTINUITY_UNAVAILABLE: "; start with a lower min_continuity to go on",
    plans.Refusal.PROVIDER_UNAVAILABLE: "; try again",
    plans.Refusal.SESSION_STATE_CONFLICT: "; undelete it first, or start its key",
    plans.Refusal.FINGERPRINT_CHANGED: "; start with mode FRESH for the wanted one",
}


def execute(facts: Facts, plan: plans.Decision, terms: Terms, app: str) -> Wait | Commit:
    """The wait or the commit of the plan. `terms` are those of an owner at this replica; new
    containers are created in `app`. Not for `plans.Ask`, which needs new tokens: see
    `start.choice`.

    Raises InvalidField if a container is to be created and there is no spec for it.
    """
    if isinstance(plan, plans.Open):
        return _open(facts, plan, None, terms, app)
    if isinstance(plan, plans.Refuse):
        return Commit(decision=refused(facts.decision(plan), _refusal(plan)))
    record = facts.record
    assert record is not None, "every other plan is about an existing session"
    match plan:
        case plans.Use():
            return _use(facts, plan, record)
        case plans.Observe():
            return Observe(record)
        case plans.Replace():
            return _open(facts, plan, record, terms, app)
        case plans.TryRungs():
            return _bring_up(facts, plan, record, terms)
        case plans.Join():
            return Join(record)
        case plans.AwaitTransition():
            return Settle(record, wanted=True)
        case plans.TakeOver():
            return _take_over(facts, plan, record, terms)
        case plans.Ask():
            raise AssertionError("the driver does not commit an Ask")
        case other:
            assert_never(other)


def _refusal(plan: plans.Refuse) -> errors.RoostError:
    """The plan's error, with advice for the caller."""
    metadata = {"parts": ",".join(plan.parts)} if plan.parts else None
    return _REFUSALS[plan.refusal](plan.because + _NEXT[plan.refusal], metadata)


def _use(facts: Facts, plan: plans.Use, record: Record) -> Commit:
    """Answer with the running container."""
    decision = replace(
        facts.decision(plan),
        outcome=Outcome.REUSED,
        continuity=plan.continuity,
        continuity_verified=plan.verified,
        finished=True,
    )
    session = record.session
    reuse = Reuse(session.session_id, session.epoch, decision, facts.policy)
    return Commit((reuse,), choice=facts.made)


def _open(
    facts: Facts,
    plan: plans.Open | plans.Replace,
    replaced: Record | None,
    terms: Terms,
    app: str,
) -> Commit:
    """Begin a new session. A session that it replaces waits in REPLACE until the new one is ACTIVE.

    The replaced session's row is written before the new one: only after it is the key free, and
    the unique index is checked at each statement. A new session in place of a live one does not
    change the number of the tenant's live sessions, so that no quota is checked then.
    """
    spec, policy = facts.opened(replaced)
    if spec is None:
        raise errors.InvalidField.of(
            "spec.image",
            "is needed to create a container: neither the project nor the operator has a default",
        )
    decision = facts.decision(plan)
    opening = _opening(facts.start, spec, decision.decision_id, replaced, app, policy, terms)
    begins, made = opening.session_id, facts.made
    if replaced is not None:
        change = _replaced(replaced.session, begins)
        return Commit((*_kept(facts), change, opening), decision, begins, choice=made)
    quota = Quota.of(facts.start.key.tenant, facts.rules.live_quota)
    return Commit((*_kept(facts), opening), decision, begins, quota, made)


def _bring_up(facts: Facts, plan: plans.TryRungs, record: Record, terms: Terms) -> Commit:
    """Bring the session's container up, or a new one in its place."""
    decision = facts.decision(plan)
    session, wish = record.session, facts.start.wish
    if plan.recreate:
        wish = replace(wish, recreate=_recreate(facts, record, plan.recreate))
    change = transition_changes.starting(
        session, wish, facts.evidence, decision.decision_id, terms, facts.policy
    )
    return Commit((*_kept(facts), change), decision, session.session_id, choice=facts.made)


def _kept(facts: Facts) -> tuple[Kept, ...]:
    """The first writes of a start: none, unless its wish names a checkpoint."""
    checkpoint_id = facts.start.wish.checkpoint_id
    return () if checkpoint_id is None else (Kept(checkpoint_id),)


def _recreate(facts: Facts, record: Record, by: Carrier) -> Recreate:
    """The wish to replace the session's container by one of the wanted spec."""
    wanted = facts.wanted(record.session)
    assert wanted is not None, "only a wanted spec causes a recreation"
    source = Source.REQUEST if facts.start.spec is not None else facts.rules.spec[1]
    return Recreate(record.session.generation, specs.dump(wanted), source, by)


def _take_over(facts: Facts, plan: plans.TakeOver, record: Record, terms: Terms) -> Wait | Commit:
    """The transition's owner is gone. A start that still has a decision is taken over and joined. A
    start without a decision is adopted by this call, if it does what this call would do. Otherwise,
    if its session was never ACTIVE, the session is purged to free the key.
    """
    session, start = record.session, facts.start
    was_active = session.prior_state is not None
    if (
        session.transition is not Transition.START
        or _rolls_back(start, session)
        or (was_active and facts.fresh)
    ):
        return Settle(record, wanted=True)
    if session.decision_id is not None:
        return Join(record)
    if not was_active and not asks_for_the_same(start, session):
        # Without a decision: the call reads again, and the key has no such session then.
        purge = _purged(session, terms)
        return Commit((purge, *facts.given_back), begins=session.session_id)
    decision = facts.decision(plan)
    adopted = _adopted(session, start, decision.decision_id, terms)
    return Commit((adopted,), decision, session.session_id, choice=facts.made)


def _rolls_back(start: Start, session: Session) -> bool:
    """Whether the start in flight or this start is a rollback: neither joins the other."""
    either = start.wish.checkpoint_id or wishes.load(session.wish).checkpoint_id
    return session.prior_state is not None and either is not None


def asks_for_the_same(start: Start, session: Session) -> bool:
    """Whether a session that was never ACTIVE equals the session that this start would create. A
    session with a fork's checkpoint does not, if this start asks for a new session.
    """
    of = start.wish.checkpoint_id
    new = start.wish.mode in (Mode.FRESH, Mode.FAIL_IF_LIVE)
    if of != session.checkpoint_id and (of is not None or new):
        return False
    return start.wish.spec_hash in (None, specs.spec_hash(specs.load(session.spec)))


def _opening(
    start: Start,
    spec: Mapping[str, Any],
    decision_id: UUID,
    replaced: Record | None,
    app: str,
    policy: InForce,
    terms: Terms,
) -> Opening:
    """The rows of a new session in STARTING and of its first container. Any: JSON of the proto."""
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
            "fingerprint": fingerprint(spec),
            "policy": policies.dump_in_force(policy),
            "checkpoint_id": start.wish.checkpoint_id,
        },
        terms=terms,
        container=transition_changes.new_container(session_id, 1, app),
    )


def _replaced(session: Session, successor_id: UUID) -> Change:
    """The replaced session becomes ENDING; its container runs on until its successor is ACTIVE."""
    check_move(session.state, State.ENDING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            "state": State.ENDING,
            "transition": Transition.REPLACE,
            "prior_state": session.state,
            "successor_id": successor_id,
        },
    )


def _adopted(session: Session, start: Start, decision_id: UUID, terms: Terms) -> Change:
    """A start in flight without a decision gets this call's decision and wish."""
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "decision_id": decision_id,
            "wish": wishes.dump(start.wish),
        },
    )


def _purged(session: Session, terms: Terms) -> Change:
    """The purge of a session that was never ACTIVE begins. It is not live any more, so that it
    frees the key at once.
    """
    check_move(session.state, State.ENDING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "state": State.ENDING,
            "transition": Transition.PURGE,
            "end_reason": EndReason.CREATE_FAILED,
        },
    )


def join(facts: Facts, plan: Plan, leader: Decision) -> Commit | None:
    """The joiner's answer, from the leader's finished decision and the facts that the joiner had
    when it joined. None if the leader's answer does not apply to the joiner: it must read again.
    """
    record, wish = facts.record, facts.start.wish
    assert record is not None, "a start is joined at a session"
    # Without `recreate`: both want the same spec, or this start would not have joined.
    same = replace(wishes.load(record.session.wish), recreate=None) == wish
    if not (same or _shareable(leader)) or _cut_off(leader):
        return None
    decision = _joined(facts, plan, leader)
    return Commit(decision=decision, choice=facts.made if decision.error is None else None)


def _shareable(leader: Decision) -> bool:
    """Whether a leader's answer applies to joiners with another wish. A final refusal does not: it
    is about the leader's wish.
    """
    return leader.error is None or json.loads(leader.error)["retry_after"] is not None


def _cut_off(leader: Decision) -> bool:
    """Whether EndSession with `now` ended the leader's session during its start, the only cause for
    which a start in flight gets this error. It is about that session; the joiner asked for the key,
    which is free again.
    """
    conflict = errors.SessionStateConflict.reason
    return leader.error is not None and json.loads(leader.error)["reason"] == conflict


def _joined(facts: Facts, plan: Plan, leader: Decision) -> Decision:
    """The joiner's decision: it has the leader's outcome and names the leader's decision. It is a
    refusal if the outcome is less than the joiner's own min_continuity.

    The start of a new session is not checked against min_continuity, since there was no state to
    keep. The start of an existing session is, also if it ended with a new container.
    """
    mine = replace(
        facts.decision(plan),
        outcome=leader.outcome,
        continuity=leader.continuity,
        continuity_verified=leader.continuity_verified,
        attempts=leader.attempts,
        joined=True,
        leader_decision_id=leader.decision_id,
        finished=True,
    )
    if leader.error is not None:
        return refused(mine, rebuilt(json.loads(leader.error), {}))
    least = facts.start.wish.min_continuity
    new = facts.record is not None and facts.record.session.prior_state is None
    if least and not new and (leader.continuity or 0) < least:
        return refused(
            mine,
            errors.ContinuityUnavailable(
                "the session is back with less than asked for; "
                "start with a lower min_continuity to go on with it"
            ),
        )
    return mine
