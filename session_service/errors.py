"""The error tree: every error that a call can fail with.

The tree does not know gRPC: `rpc.interceptors` has the one table from errors to statuses.

RoostError
├── InvalidField              a field of the request is not valid
├── RequestIdReused           the request id was used with another body
├── SessionNotFound
├── LiveSessionExists
├── SessionStateConflict      the session's state does not allow the call
├── ContinuityUnavailable     less state survived than was asked for
├── SuspendUnsupported        the provider cannot suspend this container
├── SuspendFailedStillRunning the pause failed; the container runs
├── ProviderRefused           the provider rejects the request, and would reject a repeat
│   └── VolumeAbsent          the provider knows no such volume or snapshot
├── EtagMismatch              the resource changed since it was read
├── AgentSessionNotFound
├── AgentSessionExists        the id is taken
├── AgentSessionExpired       it expired or was ended, and accepts no turns
├── TurnConflict              it has more or fewer turns than the caller expects
├── PolicyForbids             the policy in force does not keep that much
├── FingerprintChanged        the requested spec is not the container's
├── ChoiceRequired            the user must choose first
├── ChoiceTokenInvalid        no such token, or one of another user or key
├── ChoiceTokenExpired
├── ChoiceTokenUsed
├── ChoiceStale               the chosen candidate is no longer as it was offered
├── CheckpointMissing
├── CheckpointNotReady        it is being written, or its writing failed
├── CheckpointCorrupt         the stored bytes are not the saved state
├── CheckpointPinned
├── CheckpointInUse           a session could not be brought back without it
├── CheckpointUnsupported     the spec does not say how its state is saved
├── CheckpointTooLarge        the state is larger than the limit
├── StateHookFailed           the application rejected the call or failed
└── Retryable                 the same call may succeed later
    ├── ProviderCapacity
    ├── ProviderRateLimited
    ├── ProviderUnavailable
    │   └── VolumeInUse           another container has the volume
    ├── QuotaExceeded             the tenant or the session has reached a limit
    ├── ServiceStopping           this replica is stopping; another one answers
    ├── StreamNotRead             the caller took nothing of its stream for too long
    └── StorageUnavailable
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from session_service.domain.plans import Candidate


class RoostError(Exception):
    """An error of a call. The message says what the caller can do; `reason` is for programs."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """An invalid field: its path, and what its value must be."""

    field: str
    description: str


class InvalidField(RoostError):
    """A field of the request is not valid; nothing was done."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation]) -> None:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        super().__init__(text, {"field": violations[0].field} if violations else None)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidField:
        """The error for one field."""
        return cls([Violation(field, description)])


class RequestIdReused(RoostError):
    """The request id was used before with another body."""

    reason = "REQUEST_ID_REUSED"


class EtagMismatch(RoostError):
    """The session changed since the caller read it."""

    reason = "ETAG_MISMATCH"


class Retryable(RoostError):
    """The same call, with the same request id, may succeed after `retry_after` seconds."""

    def __init__(
        self, message: str, metadata: Mapping[str, str] | None = None, retry_after: float = 1.0
    ) -> None:
        super().__init__(message, metadata)
        self.retry_after: float = retry_after


class QuotaExceeded(Retryable):
    """A limit is reached; the message names the limit, and says how to get below it."""

    reason = "QUOTA_EXCEEDED"


class ServiceStopping(Retryable):
    """The replica that was called is stopping; another one answers."""

    reason = "SERVICE_STOPPING"


class StreamNotRead(Retryable):
    """The caller took nothing of its stream for ROOST_READER_PATIENCE: the stream was ended."""

    reason = "STREAM_NOT_READ"


class StorageUnavailable(Retryable):
    """The database did not answer."""

    reason = "STORAGE_UNAVAILABLE"


class SessionNotFound(RoostError):
    """The session does not exist, or is another tenant's."""

    reason = "SESSION_NOT_FOUND"


class LiveSessionExists(RoostError):
    """There is a live session at the key."""

    reason = "LIVE_SESSION_EXISTS"


class SessionStateConflict(RoostError):
    """The session's state does not allow the call."""

    reason = "SESSION_STATE_CONFLICT"


class ContinuityUnavailable(RoostError):
    """Less state survived than was asked for; nothing was created."""

    reason = "CONTINUITY_UNAVAILABLE"


class SuspendUnsupported(RoostError):
    """The provider cannot suspend this container, which continues to run."""

    reason = "SUSPEND_UNSUPPORTED"


class SuspendFailedStillRunning(RoostError):
    """The pause failed after it was accepted; the container continues to run."""

    reason = "SUSPEND_FAILED_STILL_RUNNING"


class ProviderRefused(RoostError):
    """The provider rejected the request, and would reject a repeat."""

    reason = "PROVIDER_REFUSED"


class VolumeAbsent(ProviderRefused):
    """The provider knows no such volume or snapshot. One observation, not yet proof of loss."""


class ProviderCapacity(Retryable):
    """The provider has no capacity at present."""

    reason = "PROVIDER_CAPACITY"


class ProviderRateLimited(Retryable):
    """The provider's rate limit is used up."""

    reason = "PROVIDER_RATE_LIMITED"


class ProviderUnavailable(Retryable):
    """The provider did not answer, or not clearly; the recorded state is unchanged."""

    reason = "PROVIDER_UNAVAILABLE"

    @classmethod
    def contradicting(cls) -> ProviderUnavailable:
        """The error if one answer has no container, and a later one has it."""
        return cls(
            "one answer of the provider says that the container does not exist, and a later one "
            "shows it; try again"
        )


class VolumeInUse(ProviderUnavailable):
    """Another container has the volume; the metadata's `container_id` names it, if it is known.

    A volume stays claimed for a while after its container is gone.
    """


class PolicyForbids(RoostError):
    """The policy in force does not keep as much as was asked for."""

    reason = "POLICY_FORBIDS"


class FingerprintChanged(RoostError):
    """The requested spec is not the one that the container was created from.

    The metadata's `parts` names the parts that differ, and never their values.
    """

    reason = "FINGERPRINT_CHANGED"


class ChoiceRequired(RoostError):
    """The user must choose first. `offered` has the candidates with their tokens."""

    reason = "CHOICE_REQUIRED"

    def __init__(
        self, message: str, offered: Sequence[Candidate] = (), expire_time: datetime | None = None
    ) -> None:
        super().__init__(message)
        self.offered = tuple(offered)
        self.expire_time = expire_time


class ChoiceTokenInvalid(RoostError):
    """No such token, or one of another user or key; the error does not say which."""

    reason = "CHOICE_TOKEN_INVALID"


class ChoiceTokenExpired(RoostError):
    """The token has expired."""

    reason = "CHOICE_TOKEN_EXPIRED"


class ChoiceTokenUsed(RoostError):
    """The token was used; the metadata names the decision."""

    reason = "CHOICE_TOKEN_USED"


class ChoiceStale(RoostError):
    """The chosen candidate is no longer as it was offered; the metadata says what changed."""

    reason = "CHOICE_STALE"


class CheckpointMissing(RoostError):
    """The checkpoint does not exist, is another tenant's, or was deleted."""

    reason = "CHECKPOINT_MISSING"


class CheckpointNotReady(RoostError):
    """The checkpoint is being written, or its writing failed."""

    reason = "CHECKPOINT_NOT_READY"


class CheckpointCorrupt(RoostError):
    """The stored bytes of the checkpoint are not the saved state."""

    reason = "CHECKPOINT_CORRUPT"


class CheckpointPinned(RoostError):
    """The checkpoint is pinned, and is not deleted."""

    reason = "CHECKPOINT_PINNED"


class CheckpointInUse(RoostError):
    """A session could not be brought back without the checkpoint."""

    reason = "CHECKPOINT_IN_USE"


class CheckpointUnsupported(RoostError):
    """The container's spec does not say how its state is saved."""

    reason = "CHECKPOINT_UNSUPPORTED"


class CheckpointTooLarge(RoostError):
    """The state is larger than the limit."""

    reason = "CHECKPOINT_TOO_LARGE"


class StateHookFailed(RoostError):
    """The application did not return its state, or rejected it; the message quotes it."""

    reason = "STATE_HOOK_FAILED"


class AgentSessionNotFound(RoostError):
    """The tenant has no agent session of this id: it was never created, or was purged."""

    reason = "AGENT_SESSION_NOT_FOUND"

    @classmethod
    def of(cls, session_id: str) -> AgentSessionNotFound:
        """The error for this id."""
        return cls(
            f"no agent session {session_id!r}: it was never created, or was purged",
            {"session_id": session_id},
        )


class AgentSessionExists(RoostError):
    """The tenant already has an agent session of this id."""

    reason = "AGENT_SESSION_EXISTS"

    @classmethod
    def of(cls, session_id: str) -> AgentSessionExists:
        """The error for this id."""
        return cls(
            f"agent session {session_id!r} already exists; give another id, or none",
            {"session_id": session_id},
        )


class AgentSessionExpired(RoostError):
    """The agent session expired or was ended; the metadata's `state` says which."""

    reason = "AGENT_SESSION_EXPIRED"

    @classmethod
    def of(cls, session_id: str, state: str) -> AgentSessionExpired:
        """The error for a session in this state, with the way to bring it back."""
        if state == "EXPIRED":
            text = "expired; append with revive, or UndeleteAgentSession, brings it back"
        else:
            text = "was ended; UndeleteAgentSession brings it back"
        return cls(
            f"agent session {session_id!r} {text}", {"session_id": session_id, "state": state}
        )

    @classmethod
    def past_retention(cls, session_id: str, state: str) -> AgentSessionExpired:
        """The error for a session whose retention is over, and that cannot be brought back."""
        return cls(
            f"the retention of agent session {session_id!r} is over; it cannot be brought back",
            {"session_id": session_id, "state": state},
        )


class TurnConflict(RoostError):
    """The session has more or fewer turns than the caller expects; `turn_count` has the number."""

    reason = "TURN_CONFLICT"

    @classmethod
    def of(cls, session_id: str, turn_count: int, expected: int) -> TurnConflict:
        """The error for a caller that expects `expected` turns."""
        return cls(
            f"agent session {session_id!r} has {turn_count} turns, not {expected};"
            " read them and try again with a new request_id",
            {"session_id": session_id, "turn_count": str(turn_count)},
        )


#: Every error that a decision row can hold, by its reason.
RECORDED: dict[str, type[RoostError]] = {
    kind.reason: kind
    for kind in (
        RequestIdReused,
        SessionNotFound,
        LiveSessionExists,
        SessionStateConflict,
        ContinuityUnavailable,
        SuspendUnsupported,
        SuspendFailedStillRunning,
        ProviderRefused,
        EtagMismatch,
        AgentSessionNotFound,
        AgentSessionExists,
        AgentSessionExpired,
        TurnConflict,
        PolicyForbids,
        FingerprintChanged,
        ChoiceTokenInvalid,
        ChoiceTokenExpired,
        ChoiceTokenUsed,
        ChoiceStale,
        CheckpointMissing,
        CheckpointNotReady,
        CheckpointCorrupt,
        CheckpointPinned,
        CheckpointInUse,
        CheckpointUnsupported,
        CheckpointTooLarge,
        StateHookFailed,
        ProviderCapacity,
        ProviderRateLimited,
        ProviderUnavailable,
        QuotaExceeded,
        StorageUnavailable,
    )
}
