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
│   └── VolumeAbsent          it knows no such volume or snapshot
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
    │   └── VolumeInUse           another container has the volume
    ├── QuotaExceeded             the tenant, or the session, has as much as it may
    ├── ServiceStopping           this replica goes away; another one answers
    └── StorageUnavailable
"""

from session_service.errors.agent import (
    AgentSessionExists,
    AgentSessionExpired,
    AgentSessionNotFound,
    TurnConflict,
)
from session_service.errors.base import (
    EtagMismatch,
    InvalidField,
    QuotaExceeded,
    RequestIdReused,
    Retryable,
    RoostError,
    ServiceStopping,
    StorageUnavailable,
    Violation,
)
from session_service.errors.checkpoint import (
    CheckpointCorrupt,
    CheckpointInUse,
    CheckpointMissing,
    CheckpointNotReady,
    CheckpointPinned,
    CheckpointTooLarge,
    CheckpointUnsupported,
    StateHookFailed,
)
from session_service.errors.choice import (
    ChoiceRequired,
    ChoiceStale,
    ChoiceTokenExpired,
    ChoiceTokenInvalid,
    ChoiceTokenUsed,
    FingerprintChanged,
    PolicyForbids,
)
from session_service.errors.provider import (
    ProviderCapacity,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    SuspendFailedStillRunning,
    SuspendUnsupported,
    VolumeAbsent,
    VolumeInUse,
)
from session_service.errors.recorded import RECORDED
from session_service.errors.session import (
    ContinuityUnavailable,
    LiveSessionExists,
    SessionNotFound,
    SessionStateConflict,
)

__all__ = [
    "RECORDED",
    "AgentSessionExists",
    "AgentSessionExpired",
    "AgentSessionNotFound",
    "CheckpointCorrupt",
    "CheckpointInUse",
    "CheckpointMissing",
    "CheckpointNotReady",
    "CheckpointPinned",
    "CheckpointTooLarge",
    "CheckpointUnsupported",
    "ChoiceRequired",
    "ChoiceStale",
    "ChoiceTokenExpired",
    "ChoiceTokenInvalid",
    "ChoiceTokenUsed",
    "ContinuityUnavailable",
    "EtagMismatch",
    "FingerprintChanged",
    "InvalidField",
    "LiveSessionExists",
    "PolicyForbids",
    "ProviderCapacity",
    "ProviderRateLimited",
    "ProviderRefused",
    "ProviderUnavailable",
    "QuotaExceeded",
    "RequestIdReused",
    "Retryable",
    "RoostError",
    "ServiceStopping",
    "SessionNotFound",
    "SessionStateConflict",
    "StateHookFailed",
    "StorageUnavailable",
    "SuspendFailedStillRunning",
    "SuspendUnsupported",
    "TurnConflict",
    "Violation",
    "VolumeAbsent",
    "VolumeInUse",
]
