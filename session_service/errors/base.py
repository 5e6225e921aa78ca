"""What every refusal is, and what the whole service shares: requests, load, the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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


class EtagMismatch(RoostError):
    """The session changed since the caller read it."""

    reason = "ETAG_MISMATCH"


class Retryable(RoostError):
    """The same call, with the same request id, may go through after `retry_after` seconds."""

    def __init__(
        self, message: str, metadata: Mapping[str, str] | None = None, retry_after: float = 1.0
    ) -> None:
        super().__init__(message, metadata)
        self.retry_after: float = retry_after


class QuotaExceeded(Retryable):
    """As many as allowed are there; the message says of what, and how to get room."""

    reason = "QUOTA_EXCEEDED"


class ServiceStopping(Retryable):
    """The replica that was asked goes away; another one answers."""

    reason = "SERVICE_STOPPING"


class StorageUnavailable(Retryable):
    """The database did not answer."""

    reason = "STORAGE_UNAVAILABLE"
