"""A decision: the row that explains one call, and has its answer for a repeat of the call."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from session_service.domain.session import Attempt, AttemptResult, Continuity, Mode, Outcome, Rung

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID

#: The method in the decisions that the due pass records when it replaces a lost container without a
#: call. Rows have had this value since the first version.
RECOVERY = "Keeper"


@dataclass(frozen=True, slots=True)
class Request:
    """The tenant, method and body of a call. A request id is unique per tenant and method, and a
    repeat must have the same body.

    `request_hash` is the SHA-256 of the normalised request without its id; `request_id` is None
    if the caller gave none.
    """

    tenant: str
    method: str
    request_hash: bytes
    request_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The reason of what one call did, and its answer.

    The database sets both times. A decision that is not written yet has no `create_time`, and one
    whose work is in flight has no `finish_time`.
    """

    decision_id: UUID
    request: Request
    rule: str
    explanation: str
    session_id: UUID | None = None
    mode: Mode | None = None
    outcome: Outcome | None = None
    continuity: Continuity | None = None
    continuity_verified: bool = False
    joined: bool = False
    leader_decision_id: UUID | None = None
    attempts: str = "[]"
    """A JSON array (`dump_attempts`)."""
    error: str | None = None
    """A JSON object {reason, message, metadata, retry_after}; None on success."""
    inputs: str = "{}"
    """A JSON object: the facts of the decision."""
    create_time: datetime | None = None
    finish_time: datetime | None = None
    finished: bool = False
    """Whether the answer is final. A new row that is written so gets both times at once."""
    project_id: str | None = None
    """The project, for a decision that is written before it has a session; not read back."""

    def about(self, session_id: UUID) -> Decision:
        """The same decision, for this session."""
        return replace(self, session_id=session_id)

    def as_written(self, now: datetime) -> Decision:
        """The finished decision as its row is after the statement that wrote it at `now`."""
        return replace(self, create_time=now, finish_time=now)


def dump_attempts(attempts: Iterable[Attempt]) -> str:
    """The attempts as the row has them: a JSON array."""
    return json.dumps([_attempt_row(attempt) for attempt in attempts])


def _attempt_row(attempt: Attempt) -> list[object]:
    """The attempt as the row has it; with the checkpoint's number only if it has one."""
    row: list[object] = [attempt.rung, attempt.result, attempt.reason, attempt.milliseconds]
    return [*row, attempt.checkpoint_number] if attempt.checkpoint_number else row


def load_attempts(raw: str) -> tuple[Attempt, ...]:
    """Parse what `dump_attempts` wrote."""
    if raw == "[]":
        return ()
    return tuple(
        Attempt(Rung(rung), AttemptResult(result), reason, milliseconds, *number)
        for rung, result, reason, milliseconds, *number in json.loads(raw)
    )


def dump_error(
    reason: str, message: str, metadata: Mapping[str, str], retry_after: float | None = None
) -> str:
    """An error as the row has it. `retry_after` is in s; None if a repeat would fail again."""
    return json.dumps(
        {
            "reason": reason,
            "message": message,
            "metadata": dict(metadata),
            "retry_after": retry_after,
        }
    )
