"""Rules about errors: only those of the contract, with its details, and within the deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.history import Call

#: The reasons with which each call may fail, besides the retryable ones.
REFUSALS = {
    # SESSION_STATE_CONFLICT only after an end, which `model` checks.
    "StartSession": {"LIVE_SESSION_EXISTS", "CONTINUITY_UNAVAILABLE", "SESSION_STATE_CONFLICT"},
    "ResumeSession": {"SESSION_STATE_CONFLICT", "CONTINUITY_UNAVAILABLE", "SESSION_NOT_FOUND"},
    "PauseSession": {"SESSION_STATE_CONFLICT", "SUSPEND_FAILED_STILL_RUNNING"},
    "StopSession": {"SESSION_STATE_CONFLICT", "SUSPEND_FAILED_STILL_RUNNING"},
    "EndSession": set[str](),
    "UndeleteSession": {"SESSION_STATE_CONFLICT", "LIVE_SESSION_EXISTS"},
    "TouchSession": set[str](),
    "GetSession": set[str](),
    "PutHold": {"SESSION_STATE_CONFLICT"},
    "ReleaseHold": set[str](),
    # CHECKPOINT_MISSING only for a repeat after a delete.
    "CreateCheckpoint": {"SESSION_STATE_CONFLICT", "SESSION_NOT_FOUND", "CHECKPOINT_MISSING"},
    "RestoreCheckpoint": {
        "SESSION_STATE_CONFLICT",
        "SESSION_NOT_FOUND",
        "CHECKPOINT_MISSING",
        "CHECKPOINT_NOT_READY",
    },
    "ForkSession": {"LIVE_SESSION_EXISTS", "CHECKPOINT_MISSING", "CHECKPOINT_NOT_READY"},
    "DeleteCheckpoint": {
        "CHECKPOINT_MISSING",
        "CHECKPOINT_PINNED",
        "CHECKPOINT_IN_USE",
        "CHECKPOINT_NOT_READY",
    },
    "PinCheckpoint": {"CHECKPOINT_MISSING"},
    "ListCheckpoints": set[str](),
}
STATUSES = {
    "LIVE_SESSION_EXISTS": "ALREADY_EXISTS",
    "CONTINUITY_UNAVAILABLE": "FAILED_PRECONDITION",
    "SESSION_STATE_CONFLICT": "FAILED_PRECONDITION",
    "SUSPEND_FAILED_STILL_RUNNING": "FAILED_PRECONDITION",
    "SESSION_NOT_FOUND": "NOT_FOUND",
    "CHECKPOINT_MISSING": "NOT_FOUND",
    "CHECKPOINT_NOT_READY": "FAILED_PRECONDITION",
    "CHECKPOINT_PINNED": "FAILED_PRECONDITION",
    "CHECKPOINT_IN_USE": "FAILED_PRECONDITION",
    "PROVIDER_UNAVAILABLE": "UNAVAILABLE",
    "STORAGE_UNAVAILABLE": "UNAVAILABLE",
    "PROVIDER_CAPACITY": "RESOURCE_EXHAUSTED",
    "PROVIDER_RATE_LIMITED": "RESOURCE_EXHAUSTED",
}
RETRYABLE = frozenset(
    {"PROVIDER_UNAVAILABLE", "STORAGE_UNAVAILABLE", "PROVIDER_CAPACITY", "PROVIDER_RATE_LIMITED"}
)
#: Longest time, in s, by which a caller sees its deadline late on a busy machine.
SLACK = 2.0


def wrong_errors(calls: list[Call]) -> Iterator[tuple[str, str, Call]]:
    """Errors that the contract does not have or describes otherwise, and late answers."""
    for call in calls:
        if call.method == "click" or not call.status:
            continue
        if call.ended > call.began + call.deadline + SLACK:
            yield "TOO_LATE", f"{call.ended - call.began:.1f} s of {call.deadline} s", call
        if not call.ok:
            problem = _problem(call)
            if problem:
                yield "UNDOCUMENTED_ERROR", problem, call


def _problem(call: Call) -> str:
    if not call.reason:
        # No answer: the replica died, or the deadline was over.
        return "" if call.status in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else "it has no reason"
    if call.reason in RETRYABLE:
        if not call.has_retry_info:
            return "it has no RetryInfo"
    elif call.reason not in REFUSALS[call.method]:
        return f"{call.reason} is not a reason of {call.method}"
    wanted = STATUSES[call.reason]
    return "" if call.status == wanted else f"{call.reason} came as {call.status}"
