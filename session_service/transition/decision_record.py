"""A call's decision row: its lookup by request id, its refusals, and the answer that it gives.

A decision row records a call: its request id, and its refusal or outcome. Every replica answers a
repeat of the call from this row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain.decision import Decision
from session_service.storage.session import decisions, reads
from session_service.transition import changes as transition_changes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.session import Record
    from session_service.storage.database import Database
    from session_service.storage.session.commit import Quota

#: The `retry_after` of QUOTA_EXCEEDED, in s. It is long, since there is room again only after a
#: session has ended.
QUOTA_RETRY = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a call: its decision, and the session as it is now."""

    decision: Decision
    record: Record
    changed: tuple[str, ...] = ()
    """The parts of the wanted spec in which the container differs."""
    replayed: bool = False
    """Whether an earlier call with the same request id got this answer first."""


async def earlier(database: Database, request: Request) -> Decision | None:
    """The decision of an earlier call with this request id, finished or in flight; None if there
    was none.

    Raises RequestIdReused if the earlier call had another body.
    """
    decision = await decisions.of_request(database, request)
    if decision is not None and decision.request.request_hash != request.request_hash:
        raise errors.RequestIdReused(
            "this request_id was used before with another body; use a new one for a new request"
        )
    return decision


async def answered(database: Database, decision: Decision) -> Answer:
    """The finished decision with the session as it is now. Raises SessionNotFound."""
    record = None
    if decision.session_id is not None:
        record = await reads.find(database, decision.session_id)
    if record is None:
        raise errors.SessionNotFound("the session of this decision is no longer kept")
    return Answer(decision, record)


def refused(decision: Decision, error: errors.RoostError) -> Decision:
    """The decision as a refusal. A retryable refusal does not keep the request id."""
    request = decision.request
    if isinstance(error, errors.Retryable):
        request = replace(request, request_id=None)
    return replace(
        decision, request=request, error=transition_changes.dump_error(error), finished=True
    )


def refusal(
    request: Request,
    error: errors.RoostError,
    *,
    session_id: UUID | None = None,
    project_id: str | None = None,
) -> Decision:
    """The decision of a call that fails before a rule was applied to it."""
    decision = Decision(
        uuids.uuid7(),
        request,
        error.reason,
        error.message,
        session_id=session_id,
        project_id=project_id,
    )
    return refused(decision, error)


def raise_recorded(decision: Decision) -> None:
    """Raise the error that the decision recorded, if it is a refusal."""
    if decision.error is None:
        return
    row = json.loads(decision.error)
    raise rebuilt(row, {"decision_id": str(decision.decision_id)})


def rebuilt(row: Mapping[str, Any], more: Mapping[str, str]) -> errors.RoostError:
    """The error that a decision's row recorded, with `more` metadata. Any: JSON."""
    kind = errors.RECORDED.get(row["reason"], errors.RoostError)
    metadata = {**row["metadata"], **more}
    if issubclass(kind, errors.Retryable):
        return kind(row["message"], metadata, row["retry_after"])
    return kind(row["message"], metadata)


def quota_exceeded(quota: Quota) -> errors.QuotaExceeded:
    """The error: it says whose limit was reached, and how to make room."""
    by = "the operator" if quota.tier is None else f"its tier {quota.tier!r}"
    metadata = {
        "limit": str(quota.most),
        "source": "OPERATOR" if quota.tier is None else "TIER",
        **({} if quota.tier is None else {"tier": quota.tier}),
    }
    return errors.QuotaExceeded(
        f"the tenant has the {quota.most} live sessions that {by} allows. Paused ones count, since "
        "their containers are kept: end one that is no longer needed, with EndSession",
        metadata,
        QUOTA_RETRY,
    )
