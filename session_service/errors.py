"""Everything that a call can be refused with. No gRPC here: `rpc.status` has the one table.

RoostError
├── InvalidField              a field of the request is not as it must be
├── RequestIdReused           the request id came with another body
├── SessionNotFound
├── LiveSessionExists
├── SessionStateConflict      the session's state does not allow it
├── ContinuityUnavailable     less survived than was asked for
├── SuspendUnsupported        the provider cannot suspend this container
├── SuspendFailedStillRunning the pause failed; it runs
├── ProviderRefused           the provider will not, whoever asks again
├── EtagMismatch              it changed since it was read
├── AgentSessionNotFound
├── AgentSessionExists        the id is taken
├── AgentSessionExpired       it expired or was ended, and takes no turns
├── TurnConflict              it has other turns than the caller has seen
├── PolicyForbids             the policy in force keeps less than that
├── FingerprintChanged        another spec is asked for than the container was created from
├── ChoiceRequired            the user is to choose first
├── ChoiceTokenInvalid        no such token, or another's
├── ChoiceTokenExpired
├── ChoiceTokenUsed
├── ChoiceStale               what was chosen is no longer as it was offered
├── CheckpointMissing
├── CheckpointNotReady        it is being written, or never came to be
├── CheckpointCorrupt         what is stored is not what was saved
├── CheckpointPinned
├── CheckpointInUse           a session needs it to come back
├── CheckpointUnsupported     the spec says no way to the state
├── CheckpointTooLarge        more than may be kept
├── StateHookFailed           the application refused or failed
└── Retryable                 the same call may go through later
├── ProviderCapacity
├── ProviderRateLimited
├── ProviderUnavailable
├── QuotaExceeded             the tenant, or the session, has as much as it may
├── ServiceStopping           this replica goes away; another one answers
└── StorageUnavailable
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from session_service.domain.choice import Candidate


class RoostError(Exception):
    """A refusal. The message tells the caller what to do next; `reason` is for programs."""

    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that is not as it must be: its path, and what it must be."""

    field: str
    description: str


class InvalidField(RoostError):
    """A field of the request is not as it must be; nothing was done."""

    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation]) -> None:
        text = "; ".join(f"{item.field}: {item.description}" for item in violations)
        super().__init__(text, {"field": violations[0].field} if violations else None)
        self.violations = tuple(violations)

    @classmethod
    def of(cls, field: str, description: str) -> InvalidField:
        """The error about one field."""
        return cls([Violation(field, description)])


class RequestIdReused(RoostError):
    """The request id was used before with another body."""

    reason = "REQUEST_ID_REUSED"


class SessionNotFound(RoostError):
    """No such session, or none that this tenant may see."""

    reason = "SESSION_NOT_FOUND"


class LiveSessionExists(RoostError):
    """A live session stands at the key."""

    reason = "LIVE_SESSION_EXISTS"


class SessionStateConflict(RoostError):
    """The session's state does not allow it."""

    reason = "SESSION_STATE_CONFLICT"


class ContinuityUnavailable(RoostError):
    """Less survived than was asked for; nothing was created."""

    reason = "CONTINUITY_UNAVAILABLE"


class SuspendUnsupported(RoostError):
    """The provider cannot suspend this container; it runs on."""

    reason = "SUSPEND_UNSUPPORTED"


class SuspendFailedStillRunning(RoostError):
    """The pause failed after it was accepted; the container runs on."""

    reason = "SUSPEND_FAILED_STILL_RUNNING"


class ProviderRefused(RoostError):
    """The provider will not do it, also not when asked again."""

    reason = "PROVIDER_REFUSED"


class VolumeAbsent(ProviderRefused):
    """The provider knows no such volume, or no such snapshot. One observation, not yet proof."""


class EtagMismatch(RoostError):
    """The session changed since the caller read it."""

    reason = "ETAG_MISMATCH"


class AgentSessionNotFound(RoostError):
    """No such agent session, or none that this tenant may see, or it was purged."""

    reason = "AGENT_SESSION_NOT_FOUND"


class AgentSessionExists(RoostError):
    """The tenant has an agent session of this id."""

    reason = "AGENT_SESSION_EXISTS"


class AgentSessionExpired(RoostError):
    """The agent session expired or was ended; the metadata's `state` says which."""

    reason = "AGENT_SESSION_EXPIRED"


class TurnConflict(RoostError):
    """Others appended since the caller read; the metadata has the current `turn_count`."""

    reason = "TURN_CONFLICT"


class PolicyForbids(RoostError):
    """The policy in force keeps less than what was asked for."""

    reason = "POLICY_FORBIDS"


class FingerprintChanged(RoostError):
    """Another spec is asked for than the container was created from; the metadata's `parts` names
    what differs, and never how.
    """

    reason = "FINGERPRINT_CHANGED"


class ChoiceRequired(RoostError):
    """The user is to choose first. Carries what there is to choose from, tokens and all."""

    reason = "CHOICE_REQUIRED"

    def __init__(
        self, message: str, offered: Sequence[Candidate] = (), expire_time: datetime | None = None
    ) -> None:
        super().__init__(message)
        self.offered = tuple(offered)
        self.expire_time = expire_time


class ChoiceTokenInvalid(RoostError):
    """No such token, or one of another user or key; which, is not told."""

    reason = "CHOICE_TOKEN_INVALID"


class ChoiceTokenExpired(RoostError):
    """The token's time is over."""

    reason = "CHOICE_TOKEN_EXPIRED"


class ChoiceTokenUsed(RoostError):
    """The token was used; the metadata says by which decision."""

    reason = "CHOICE_TOKEN_USED"


class ChoiceStale(RoostError):
    """What was chosen is no longer as it was offered; the metadata says what happened."""

    reason = "CHOICE_STALE"


class CheckpointMissing(RoostError):
    """No such checkpoint, or none that this tenant may see, or it was deleted."""

    reason = "CHECKPOINT_MISSING"


class CheckpointNotReady(RoostError):
    """It is still being written, or it never came to be."""

    reason = "CHECKPOINT_NOT_READY"


class CheckpointCorrupt(RoostError):
    """What is stored of the checkpoint is not what was saved."""

    reason = "CHECKPOINT_CORRUPT"


class CheckpointPinned(RoostError):
    """It is pinned, and so not deleted."""

    reason = "CHECKPOINT_PINNED"


class CheckpointInUse(RoostError):
    """A session could not come back without it."""

    reason = "CHECKPOINT_IN_USE"


class CheckpointUnsupported(RoostError):
    """The container's spec says no way to its state."""

    reason = "CHECKPOINT_UNSUPPORTED"


class CheckpointTooLarge(RoostError):
    """The state is larger than what is kept of one."""

    reason = "CHECKPOINT_TOO_LARGE"


class StateHookFailed(RoostError):
    """The application did not hand its state out, or did not take it; the message has its words."""

    reason = "STATE_HOOK_FAILED"


class Retryable(RoostError):
    """The same call, with the same request id, may go through after `retry_after` seconds."""

    def __init__(
        self, message: str, metadata: Mapping[str, str] | None = None, retry_after: float = 1.0
    ) -> None:
        super().__init__(message, metadata)
        self.retry_after: float = retry_after


class ProviderCapacity(Retryable):
    """The provider has no room at present."""

    reason = "PROVIDER_CAPACITY"


class ProviderRateLimited(Retryable):
    """The provider's rate limit is used up."""

    reason = "PROVIDER_RATE_LIMITED"


class ProviderUnavailable(Retryable):
    """The provider did not answer, or not clearly; what stood before stands."""

    reason = "PROVIDER_UNAVAILABLE"


class VolumeInUse(ProviderUnavailable):
    """A container has the volume that the new one is to mount; the metadata's `container_id` names
    it, where the provider said. A claim outlives its container for a while.
    """


class QuotaExceeded(Retryable):
    """As many as allowed are there; the message says of what, and how to get room."""

    reason = "QUOTA_EXCEEDED"


class ServiceStopping(Retryable):
    """The replica that was asked goes away; another one answers."""

    reason = "SERVICE_STOPPING"


class StorageUnavailable(Retryable):
    """The database did not answer."""

    reason = "STORAGE_UNAVAILABLE"


#: Every refusal that a decision row can hold, by its reason.
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
