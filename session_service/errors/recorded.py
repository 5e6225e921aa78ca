"""Which refusals a decision row can hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.errors.agent import (
    AgentSessionExists,
    AgentSessionExpired,
    AgentSessionNotFound,
    TurnConflict,
)
from session_service.errors.base import (
    EtagMismatch,
    QuotaExceeded,
    RequestIdReused,
    StorageUnavailable,
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
)
from session_service.errors.session import (
    ContinuityUnavailable,
    LiveSessionExists,
    SessionNotFound,
    SessionStateConflict,
)

if TYPE_CHECKING:
    from session_service.errors.base import RoostError

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
