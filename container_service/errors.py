"""What can go wrong, as one tree; nothing here knows gRPC or the provider's protocol.

ServiceError
├── InvalidRequest          the caller's message is wrong; names each field
├── RequestIdReused         the name is taken by a container of another spec
├── ContainerNotFound       the provider knows no such container: one observation, not proof of loss
├── VolumeNotFound          the provider knows no such volume
├── StateConflict           the container's state forbids it
│   ├── SuspendUnsupported  … because it cannot be suspended, as it is made
│   ├── NotStartableYet     … for now: a start may succeed in a moment
│   ├── VolumeInUse         a container has the volume
│   └── SnapshotInProgress  one snapshot of the volume is being written
├── LeaseConflict
│   ├── LeaseHeld           another holds the container's lease
│   └── LeaseLost           the nonce that was shown holds no longer
├── WaitTimedOut            the state was not reached in time
├── StateHookFailed         the application did not hand out its state, or did not take it
├── StateTooLarge           more state than may be carried
└── ProviderError
    ├── ProviderUnavailable no answer, or none that can be used; nothing is claimed
    │   ├── OutcomeUnknown  … and the change that was asked for may have been made
    │   └── CircuitOpen     … to anything lately: nothing was sent
    ├── ProviderRateLimited refused for its rate; nothing was changed
    ├── ProviderCapacity    the provider has no room
    ├── ProviderRefused     the provider will not: credentials, quota, an unknown application
    └── NameTaken           a container of that name is there already
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime


class ServiceError(Exception):
    """Base of every error that a caller is told about; the message is a sentence for people."""

    #: How long the caller should wait before another try; None where trying again is no use.
    retry_after: float | None = None

    def __init__(
        self, message: str, *, provider_request_id: str = "", **metadata: str | None
    ) -> None:
        super().__init__(message)
        #: The provider's id of the request that failed, for its support; empty where there is none.
        self.provider_request_id = provider_request_id
        #: The dynamic parts of the message, for machines.
        self.metadata: Mapping[str, str] = {k: v for k, v in metadata.items() if v}

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path as the proto writes it, and what is wrong with it."""

    field: str
    description: str


class InvalidRequest(ServiceError):
    """The caller's message is wrong; nothing was sent to the provider."""

    def __init__(self, *violations: FieldViolation) -> None:
        super().__init__("; ".join(f"{v.field} {v.description}" for v in violations))
        self.violations = violations


class RequestIdReused(ServiceError):
    """The name belongs to a container that was created from another spec."""


class ContainerNotFound(ServiceError):
    """The provider knows no such container: one observation, not proof of loss."""


class VolumeNotFound(ServiceError):
    """The provider knows no such volume: it was deleted, or never was."""


class StateConflict(ServiceError):
    """The container's state forbids what was asked for."""


class SuspendUnsupported(StateConflict):
    """The provider will not suspend a container that is made like this one."""


class NotStartableYet(StateConflict):
    """The container cannot be started at this moment, and perhaps can in the next."""

    retry_after = 1.0


class VolumeInUse(StateConflict):
    """A container has the volume; a claim outlives its container for a while."""

    retry_after = 5.0

    def __init__(
        self, message: str, *, container_id: str = "", provider_request_id: str = ""
    ) -> None:
        super().__init__(
            message, provider_request_id=provider_request_id, container_id=container_id
        )
        #: The container that has it; empty where the provider did not say.
        self.container_id = container_id


class SnapshotInProgress(StateConflict):
    """A snapshot of the volume is being written; the next can be taken after it."""

    retry_after = 5.0


class LeaseConflict(ServiceError):
    """The container's lease forbids it."""


class LeaseHeld(LeaseConflict):
    """Another holds the container's lease."""

    retry_after = 1.0

    def __init__(
        self, message: str, *, expire_time: datetime | None = None, provider_request_id: str = ""
    ) -> None:
        told = expire_time.isoformat() if expire_time else None
        super().__init__(message, provider_request_id=provider_request_id, expire_time=told)
        #: When that lease runs out by the provider's clock, where it said so.
        self.expire_time = expire_time


class LeaseLost(LeaseConflict):
    """The nonce that was shown does not hold the lease, or no longer."""


class WaitTimedOut(ServiceError):
    """The container did not reach the state in time."""


class StateHookFailed(ServiceError):
    """The application did not hand out its state, or did not take it: the hook is to be mended."""


class StateTooLarge(ServiceError):
    """The state has more bytes than may be carried; trying again is no use."""


class ProviderError(ServiceError):
    """The provider did not do what it was asked."""


class ProviderUnavailable(ProviderError):
    """The provider gave no answer that can be used; nothing is claimed."""

    retry_after = 1.0


class OutcomeUnknown(ProviderUnavailable):
    """No answer came to a change that may have been made all the same."""


class CircuitOpen(ProviderUnavailable):
    """The provider has answered nothing for this application lately: the call was not sent. It
    says nothing of any container.
    """

    def __init__(self, message: str, *, silent: float, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after: float = retry_after
        #: Seconds since the first call that got no answer.
        self.silent = silent


class ProviderRateLimited(ProviderError):
    """The provider refuses calls that come this fast; nothing was changed."""

    def __init__(
        self, message: str, *, retry_after: float = 1.0, provider_request_id: str = ""
    ) -> None:
        super().__init__(message, provider_request_id=provider_request_id)
        self.retry_after = retry_after


class ProviderCapacity(ProviderError):
    """The provider has no room for it now."""

    retry_after = 5.0


class ProviderRefused(ProviderError):
    """The provider will not do it, and will not the next time either."""


class NameTaken(ProviderError):
    """A container of that name is there already."""

    def __init__(
        self, message: str, *, container_id: str = "", provider_request_id: str = ""
    ) -> None:
        super().__init__(
            message, provider_request_id=provider_request_id, container_id=container_id
        )
        #: The id of the container that has the name; empty where the provider did not say.
        self.container_id = container_id
