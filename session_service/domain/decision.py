"""A decision: the appended row that explains one call, and holds its answer for a repeat."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.domain.session import Attempt, AttemptResult, Continuity, Mode, Outcome, Rung

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Request:
    """Who calls which method with what: the scope and the body of a request id.

    `request_hash` is the SHA-256 of the normalised request without its id; `request_id` is None
    where the caller gave none.
    """

    tenant: str
    method: str
    request_hash: bytes
    request_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A decision's row. In flight while `finish_time` is None."""

    decision_id: UUID
    tenant: str
    session_id: UUID | None
    method: str
    mode: Mode | None
    rule: str
    explanation: str
    outcome: Outcome | None
    continuity: Continuity | None
    continuity_verified: bool
    joined: bool
    leader_decision_id: UUID | None
    attempts: str
    """A JSON array (`dump_attempts`)."""
    error: str | None
    """A JSON object {reason, message, metadata}; None on success."""
    request_id: UUID | None
    request_hash: bytes | None
    inputs: str
    """A JSON object: what was known when it was decided."""
    create_time: datetime
    finish_time: datetime | None


def dump_attempts(attempts: Iterable[Attempt]) -> str:
    """Their form in the row."""
    return json.dumps([_attempt_row(attempt) for attempt in attempts])


def _attempt_row(attempt: Attempt) -> list[object]:
    """Its form in the row; the checkpoint's number only where it was about one."""
    row: list[object] = [attempt.rung, attempt.result, attempt.reason, attempt.milliseconds]
    return [*row, attempt.checkpoint_number] if attempt.checkpoint_number else row


def load_attempts(raw: str) -> tuple[Attempt, ...]:
    """Read back what `dump_attempts` wrote."""
    if raw == "[]":
        return ()
    return tuple(
        Attempt(Rung(rung), AttemptResult(result), reason, milliseconds, *number)
        for rung, result, reason, milliseconds, *number in json.loads(raw)
    )


def dump_error(
    reason: str, message: str, metadata: Mapping[str, str], retry_after: float | None = None
) -> str:
    """A refusal's form in the row; `retry_after` in s, None where a repeat is of no use."""
    return json.dumps(
        {
            "reason": reason,
            "message": message,
            "metadata": dict(metadata),
            "retry_after": retry_after,
        }
    )
