"""Map Fly's error responses to ServiceError: by status and code, by text as a last resort.

Fly's texts have changed over the years. Each is matched by the smallest part that is unique.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from container_service.containers.errors import (
    ContainerNotFound,
    LeaseHeld,
    LeaseLost,
    NameTaken,
    NotStartableYet,
    OutcomeUnknown,
    ProviderCapacity,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnavailable,
    ServiceError,
    SnapshotInProgress,
    StateConflict,
    VolumeInUse,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_CAPACITY_CODES = frozenset({"insufficient_capacity", "volume_placement_capacity"})
_CAPACITY_PROSE = (
    "could not reserve resource",
    "no capacity",
    "insufficient resources",
    "insufficient memory",
    "could not find a candidate host",
    "governor policy blocked",
    "temporarily disabled",
)
_NOT_YET_PROSE = (
    "refusing to start",
    "unable to start machine from current state",
    "still attempting to start",
)
_BUSY_PROSE = ("concurrent update", "machine is replacing")
_LEASE_PROSE = ("lease currently held", "lease not found", "lease nonce")
_NAME_PROSE = "unique machine name violation"
_APP_PROSE = ("app not found", "could not find app")
_VOLUME_PROSE = ("volume already claimed by machine", "bound to machine")
_CLAIMANT = re.compile(r"machine:? ([0-9a-z]+)", re.IGNORECASE)
_NAMED_MACHINE = re.compile(r"machine id (\w+) already exists", re.IGNORECASE)
_EXPIRY = re.compile(r"expires at (.+)", re.IGNORECASE)


class NotReached(ProviderUnavailable):
    """A wait ended before the machine reached the state. Not a failure of the provider."""


class RequestRejected(ProviderRefused):
    """Fly rejects the request itself: status 400 or 422."""


class UnknownApp(ProviderRefused):
    """Fly has no such app. It accepted the token, though."""


class NoLease(LeaseLost):
    """No lease is held."""


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An error response, and those properties of the call that decide what the response means."""

    status: int
    text: str
    code: str = ""
    request_id: str = ""
    retry_after: float | None = None
    #: Whether the body has Fly's JSON format. A response of a proxy or another server has not.
    is_fly: bool = True
    #: Whether the call was a change.
    changes: bool = False
    #: The lease nonce of the call. Not in the repr, because it grants access.
    nonce: str = field(default="", repr=False)

    def mentions(self, *parts: str) -> bool:
        """Whether the text contains one of the parts."""
        text = self.text.lower()
        return any(part in text for part in parts)


def read_error_response(
    status: int, headers: Any, body: bytes, *, changes: bool, nonce: str = ""
) -> ErrorResponse:
    """Read an error response. A body that is not in Fly's format is kept as text."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    envelope = parsed if isinstance(parsed, dict) else {}
    # Lease endpoints use `message`, all others `error`.
    message = envelope.get("message") or envelope.get("error")
    code = envelope.get("status")
    return ErrorResponse(
        status=status,
        text=str(message) if message else body[:500].decode(errors="replace"),
        code=code if isinstance(code, str) else "",
        request_id=headers.get("fly-request-id", ""),
        retry_after=_seconds(headers.get("retry-after")),
        is_fly=bool(message),
        changes=changes,
        nonce=nonce,
    )


def classify(response: ErrorResponse) -> ServiceError:
    """The error that an error response stands for."""
    if response.status in _BY_STATUS:
        return _BY_STATUS[response.status](response)
    if response.status >= 500:
        return _no_answer(response)
    return _rejected(response)


def _not_found(response: ErrorResponse) -> ServiceError:
    if response.mentions("lease not found"):
        return NoLease("no lease is held: acquire one", provider_request_id=response.request_id)
    if response.mentions(*_APP_PROSE):
        return UnknownApp(
            f"{_message(response)} (check the application's name)",
            provider_request_id=response.request_id,
        )
    if not response.is_fly:
        # A 404 of another server (a wrong base URL, a proxy) must never count as a lost container.
        return ProviderUnavailable(
            "the answer is not in the format of the Machines API: check FLY_FLAPS_BASE_URL",
            provider_request_id=response.request_id,
        )
    return ContainerNotFound(_message(response), provider_request_id=response.request_id)


def _timed_out(response: ErrorResponse) -> ServiceError:
    if response.mentions("failed to reach desired state"):
        return NotReached(_message(response), provider_request_id=response.request_id)
    return _no_answer(response)


def _request_rejected(response: ErrorResponse) -> ServiceError:
    return RequestRejected(_message(response), provider_request_id=response.request_id)


def _conflict(response: ErrorResponse) -> ServiceError:
    """Fly uses 409 and 412 for many errors; the order of the checks matters."""
    if response.code in _CAPACITY_CODES:
        return _capacity(response)
    if response.mentions(*_LEASE_PROSE):
        return _lease(response)
    if response.mentions(_NAME_PROSE):
        named = _NAMED_MACHINE.search(response.text)
        return NameTaken(
            _message(response),
            container_id=named.group(1) if named else "",
            provider_request_id=response.request_id,
        )
    if response.mentions(*_CAPACITY_PROSE):
        return _capacity(response)
    if response.mentions(*_VOLUME_PROSE):
        named = _CLAIMANT.search(response.text)
        return VolumeInUse(
            _message(response),
            container_id=named.group(1) if named else "",
            provider_request_id=response.request_id,
        )
    if response.mentions("snapshot is already scheduled"):
        return SnapshotInProgress(_message(response), provider_request_id=response.request_id)
    if response.mentions(*_NOT_YET_PROSE, *_BUSY_PROSE):
        return NotStartableYet(_message(response), provider_request_id=response.request_id)
    return StateConflict(_message(response), provider_request_id=response.request_id)


def _unprocessable(response: ErrorResponse) -> ServiceError:
    if response.code in _CAPACITY_CODES or response.mentions(*_CAPACITY_PROSE):
        return _capacity(response)
    return _request_rejected(response)


def _rate_limited(response: ErrorResponse) -> ServiceError:
    return ProviderRateLimited(
        _message(response),
        retry_after=response.retry_after or 1.0,
        provider_request_id=response.request_id,
    )


def _unauthenticated(response: ErrorResponse) -> ServiceError:
    return _rejected(response, hint="check FLY_API_TOKEN and the application that it is for")


_BY_STATUS: dict[int, Callable[[ErrorResponse], ServiceError]] = {
    400: _request_rejected,
    401: _unauthenticated,
    403: _unauthenticated,
    404: _not_found,
    408: _timed_out,
    409: _conflict,
    412: _conflict,
    422: _unprocessable,
    429: _rate_limited,
}


def _no_answer(response: ErrorResponse) -> ServiceError:
    kind = OutcomeUnknown if response.changes else ProviderUnavailable
    return kind(_message(response), provider_request_id=response.request_id)


def _capacity(response: ErrorResponse) -> ServiceError:
    return ProviderCapacity(_message(response), provider_request_id=response.request_id)


def _rejected(response: ErrorResponse, hint: str = "") -> ServiceError:
    message = f"{_message(response)} ({hint})" if hint else _message(response)
    return ProviderRefused(message, provider_request_id=response.request_id)


def _lease(response: ErrorResponse) -> ServiceError:
    if response.nonce:
        return LeaseLost(
            "the given nonce does not hold the lease any more: acquire a new lease",
            provider_request_id=response.request_id,
        )
    # Fly's text contains the holder's mail address, so it is not passed on.
    return LeaseHeld(
        "another caller holds the container's lease: retry when it expires",
        expire_time=_expiry(response.text),
        provider_request_id=response.request_id,
    )


def _message(response: ErrorResponse) -> str:
    return f"the provider answered {response.status}: {response.text.strip() or '(empty)'}"


def _expiry(text: str) -> datetime | None:
    """The time in `… expires at <time>`, as RFC 3339 or as Go prints times."""
    found = _EXPIRY.search(text)
    if not found:
        return None
    words = found.group(1).strip().rstrip(".").split()
    for candidate in (words[0], " ".join(words[:2])):
        try:
            moment = datetime.fromisoformat(candidate)
        except ValueError:
            continue
        if "T" in candidate or " " in candidate:
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return None


def _seconds(value: str | None) -> float | None:
    """A numeric Retry-After, at most 60 s; None for anything else. Fly documents no Retry-After."""
    try:
        return min(60.0, max(0.0, float(value))) if value else None
    except ValueError:
        return None
