"""The service's errors, as one tree. rpc/status.py maps each to a gRPC status.

ServiceError
├── InvalidRequest          fields of the request are invalid; names each of them
├── RequestIdReused         the name belongs to a container with a different spec
├── ContainerNotFound       the provider has no such container: one observation, no proof of loss
├── VolumeNotFound          the provider has no such volume
├── StateConflict           the state of the container does not allow the change
│   ├── SuspendUnsupported  the container's configuration does not allow suspend
│   ├── NotStartableYet     the container cannot be started now; a retry may succeed
│   ├── VolumeInUse         a container has claimed the volume
│   └── SnapshotInProgress  another snapshot of the volume is being written
├── LeaseConflict
│   ├── LeaseHeld           another caller holds the container's lease
│   └── LeaseLost           the given nonce does not hold the lease (any more)
├── WaitTimedOut            the container did not reach the state in time
├── StateHookFailed         the application failed to read or write its state
├── StateTooLarge           the state exceeds the limit
├── StreamNotRead           the caller took nothing of its stream for too long
└── ProviderError
    ├── ProviderUnavailable no usable answer; says nothing about any container
    │   ├── OutcomeUnknown  no answer to a change, which may have been made
    │   └── CircuitOpen     not sent, because the provider has not answered for this app lately
    ├── ProviderRateLimited rejected by a rate limit; nothing was changed
    ├── ProviderCapacity    the provider has no capacity for it
    ├── ProviderRefused     the provider rejects it for good: credentials, quota, unknown app
    └── NameTaken           a container of that name exists
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class ServiceError(Exception):
    """Base of every error that is returned to the caller. The message is for people."""

    #: Seconds to wait before a retry; None where a retry cannot succeed.
    retry_after: float | None = None

    def __init__(
        self, message: str, *, provider_request_id: str = "", **metadata: str | None
    ) -> None:
        super().__init__(message)
        #: The provider's id of the failed request, for its support; empty if it gave none.
        self.provider_request_id = provider_request_id
        #: The variable parts of the message, for programs.
        self.metadata: Mapping[str, str] = {k: v for k, v in metadata.items() if v}

    @property
    def message(self) -> str:
        """The message for people."""
        return str(self)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One invalid field: its path as in the proto, and the rule that it breaks."""

    field: str
    description: str


class InvalidRequest(ServiceError):
    """Fields of the request are invalid; nothing was sent to the provider."""

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field} {v.description}" for v in violations))
        self.violations = violations


class RequestIdReused(ServiceError):
    """The name belongs to a container that was created with a different spec."""


class ContainerNotFound(ServiceError):
    """The provider has no such container.

    One observation, no proof of loss: reads lag behind writes.
    """


class VolumeNotFound(ServiceError):
    """The provider has no such volume: it was deleted, or never existed."""


class StateConflict(ServiceError):
    """The state of the container does not allow the change."""


class SuspendUnsupported(StateConflict):
    """The provider does not suspend a container of this configuration."""


class NotStartableYet(StateConflict):
    """The container cannot be started now. A retry may succeed."""

    retry_after = 1.0


class StreamNotRead(ServiceError):
    """The caller took nothing of its stream for ROOST_READER_PATIENCE: the stream was ended."""

    retry_after = 1.0


class VolumeInUse(StateConflict):
    """A container has claimed the volume. The claim outlasts the container by some seconds."""

    retry_after = 5.0

    def __init__(
        self, message: str, *, container_id: str = "", provider_request_id: str = ""
    ) -> None:
        super().__init__(
            message, provider_request_id=provider_request_id, container_id=container_id
        )
        #: The container with the claim; empty if the provider did not name it.
        self.container_id = container_id


class SnapshotInProgress(StateConflict):
    """A snapshot of the volume is being written. Retry when it is finished."""

    retry_after = 5.0


class LeaseConflict(ServiceError):
    """The lease of the container does not allow the change."""


class LeaseHeld(LeaseConflict):
    """Another caller holds the container's lease."""

    retry_after = 1.0

    def __init__(
        self, message: str, *, expire_time: datetime | None = None, provider_request_id: str = ""
    ) -> None:
        text = expire_time.isoformat() if expire_time else None
        super().__init__(message, provider_request_id=provider_request_id, expire_time=text)
        #: When that lease expires, by the provider's clock; None if it did not say.
        self.expire_time = expire_time


class LeaseLost(LeaseConflict):
    """The given nonce never held the lease, or does not hold it any more."""


class WaitTimedOut(ServiceError):
    """The container did not reach the state in time."""


class StateHookFailed(ServiceError):
    """The application failed to read or write its state: its state hook needs a fix."""


class StateTooLarge(ServiceError):
    """The state exceeds the limit. A retry cannot succeed."""


class ProviderError(ServiceError):
    """The provider did not carry out the call."""


class ProviderUnavailable(ProviderError):
    """The provider gave no usable answer. Says nothing about any container."""

    retry_after = 1.0


class OutcomeUnknown(ProviderUnavailable):
    """The answer to a change was lost. The change may have been made."""


class CircuitOpen(ProviderUnavailable):
    """The call was not sent, because the provider has not answered for this app lately.

    Says nothing about any container.
    """

    def __init__(self, message: str, *, silent_seconds: float, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after: float = retry_after
        #: Seconds since the first call without an answer was sent.
        self.silent_seconds = silent_seconds


class ProviderRateLimited(ProviderError):
    """A rate limit rejects the call; nothing was changed."""

    def __init__(
        self, message: str, *, retry_after: float = 1.0, provider_request_id: str = ""
    ) -> None:
        super().__init__(message, provider_request_id=provider_request_id)
        self.retry_after = retry_after


class ProviderCapacity(ProviderError):
    """The provider has no capacity for the container or volume now."""

    retry_after = 5.0


class ProviderRefused(ProviderError):
    """The provider rejects the call, and would reject a retry."""


class NameTaken(ProviderError):
    """A container of that name exists."""

    def __init__(
        self, message: str, *, container_id: str = "", provider_request_id: str = ""
    ) -> None:
        super().__init__(
            message, provider_request_id=provider_request_id, container_id=container_id
        )
        #: The id of the container with that name; empty if the provider did not say.
        self.container_id = container_id
