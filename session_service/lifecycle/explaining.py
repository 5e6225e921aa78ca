"""The decisions of starts: what is written down of each plan, and answered with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain import plans
from session_service.lifecycle import outcomes
from session_service.lifecycle.joining import rebuilt
from session_service.storage import decisions
from session_service.storage.decisions import NewDecision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from session_service.domain.decision import Decision
    from session_service.domain.evidence import Evidence
    from session_service.domain.session import Record
    from session_service.domain.wish import Wish
    from session_service.lifecycle.intents import Start

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


def refusal(plan: plans.Refuse) -> errors.RoostError:
    """The error that the plan says, with what to do next."""
    metadata = {"parts": ",".join(plan.parts)} if plan.parts else None
    return _REFUSALS[plan.refusal](plan.because + _NEXT[plan.refusal], metadata)


def decided(
    start: Start,
    plan: plans.Plan,
    record: Record | None,
    evidence: Evidence | None = None,
) -> NewDecision:
    """The decision to carry this plan out, with what was known."""
    return NewDecision(
        uuids.uuid7(),
        start.request,
        plan.rule,
        plan.because,
        session_id=None if record is None else record.session.session_id,
        mode=start.wish.mode,
        inputs=_inputs(record, evidence),
        project_id=start.key.project_id,
    )


def shareable(finished: Decision) -> bool:
    """Whether a leader's answer holds for joiners who asked for something else: a final refusal is
    about what the leader asked.
    """
    return finished.error is None or json.loads(finished.error)["retry_after"] is not None


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


def altered(decision: NewDecision, **changes: Any) -> NewDecision:
    """The decision with other values. Any: fields of every type."""
    return NewDecision(**{**{name: getattr(decision, name) for name in _FIELDS}, **changes})


_FIELDS = tuple(NewDecision.__dataclass_fields__)


def refused(decision: NewDecision, error: errors.RoostError) -> NewDecision:
    """The decision as a refusal; one that can be retried does not take the request id."""
    request = decision.request
    if isinstance(error, errors.Retryable):
        request = type(request)(request.tenant, request.method, request.request_hash)
    return altered(decision, request=request, error=outcomes.dump(error), finished=True)


def joined(decision: NewDecision, leader: Decision, wish: Wish, *, anew: bool) -> NewDecision:
    """A joiner's decision: the leader's outcome, held to the joiner's own min_continuity.

    Not so where the start is of a session that is new, `anew`: there was nothing to keep. A new
    container of a session that was there is less than anybody can have asked for.
    """
    mine = altered(
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
        return refused(mine, rebuilt(json.loads(leader.error), {}))
    if wish.min_continuity and not anew and (leader.continuity or 0) < wish.min_continuity:
        return refused(
            mine,
            errors.ContinuityUnavailable(
                "the session is back with less than asked for; "
                "start with a lower min_continuity to go on with it"
            ),
        )
    return mine


def as_written(decision: NewDecision, record: Record) -> Decision:
    """The decision's row as the statement that answered wrote it."""
    return decisions.as_written(decision.about(record.session.session_id), record.now)
