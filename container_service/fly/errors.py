"""What a failed answer of Fly's means: by status code and its `status` field first, prose last.

Fly's texts have changed over the years and are matched by the smallest part that tells them apart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from container_service.errors import (
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
    """A wait ended before the state was reached; says nothing against the provider."""


class Malformed(ProviderRefused):
    """Fly refuses what a call asks for: 400 and 422."""


class UnknownApp(ProviderRefused):
    """Fly knows no such app; it took our token, though."""


class NoLease(LeaseLost):
    """Nobody holds a lease."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A failed answer, read leniently, with what matters of the call that it answers."""

    status: int
    text: str
    code: str = ""
    request_id: str = ""
    retry_after: float | None = None
    #: Whether the body was Fly's own envelope; an edge or a stranger answers otherwise.
    is_fly: bool = True
    #: Whether the call was to change something.
    changes: bool = False
    #: The lease nonce that was shown. Not in the repr: it is a key.
    nonce: str = field(default="", repr=False)

    def says(self, *parts: str) -> bool:
        """Whether the text holds one of these."""
        text = self.text.lower()
        return any(part in text for part in parts)


def read_refusal(
    status: int, headers: Any, body: bytes, *, changes: bool, nonce: str = ""
) -> Refusal:
    """Read a failed answer; a body that is not Fly's envelope is kept as text."""
    try:
        parsed = json.loads(body)
    except ValueError:
        parsed = None
    envelope = parsed if isinstance(parsed, dict) else {}
    # Lease answers use `message` where the others use `error`.
    told = envelope.get("message") or envelope.get("error")
    code = envelope.get("status")
    return Refusal(
        status=status,
        text=str(told) if told else body[:500].decode(errors="replace"),
        code=code if isinstance(code, str) else "",
        request_id=headers.get("fly-request-id", ""),
        retry_after=_seconds(headers.get("retry-after")),
        is_fly=bool(told),
        changes=changes,
        nonce=nonce,
    )


def classify(refusal: Refusal) -> ServiceError:
    """The error that a failed answer means."""
    if refusal.status in _BY_STATUS:
        return _BY_STATUS[refusal.status](refusal)
    if refusal.status >= 500:
        return _no_answer(refusal)
    return _refused(refusal)


def _not_found(refusal: Refusal) -> ServiceError:
    if refusal.says("lease not found"):
        return NoLease("no lease is held any more", provider_request_id=refusal.request_id)
    if refusal.says(*_APP_PROSE):
        return UnknownApp(
            f"{_told(refusal)} (check the application's name)",
            provider_request_id=refusal.request_id,
        )
    if not refusal.is_fly:
        # A 404 of a stranger's (a wrong base URL, an edge) must never count as a container's loss.
        return ProviderUnavailable(
            "what answered does not look like the Machines API: check FLY_FLAPS_BASE_URL",
            provider_request_id=refusal.request_id,
        )
    return ContainerNotFound(_told(refusal), provider_request_id=refusal.request_id)


def _timed_out(refusal: Refusal) -> ServiceError:
    if refusal.says("failed to reach desired state"):
        return NotReached(_told(refusal), provider_request_id=refusal.request_id)
    return _no_answer(refusal)


def _malformed(refusal: Refusal) -> ServiceError:
    return Malformed(_told(refusal), provider_request_id=refusal.request_id)


def _conflict(refusal: Refusal) -> ServiceError:
    """409 and 412 mean many things."""
    if refusal.code in _CAPACITY_CODES:
        return _capacity(refusal)
    if refusal.says(*_LEASE_PROSE):
        return _lease(refusal)
    if refusal.says(_NAME_PROSE):
        named = _NAMED_MACHINE.search(refusal.text)
        return NameTaken(
            _told(refusal),
            container_id=named.group(1) if named else "",
            provider_request_id=refusal.request_id,
        )
    if refusal.says(*_CAPACITY_PROSE):
        return _capacity(refusal)
    if refusal.says(*_VOLUME_PROSE):
        named = _CLAIMANT.search(refusal.text)
        return VolumeInUse(
            _told(refusal),
            container_id=named.group(1) if named else "",
            provider_request_id=refusal.request_id,
        )
    if refusal.says("snapshot is already scheduled"):
        return SnapshotInProgress(_told(refusal), provider_request_id=refusal.request_id)
    if refusal.says(*_NOT_YET_PROSE, *_BUSY_PROSE):
        return NotStartableYet(_told(refusal), provider_request_id=refusal.request_id)
    return StateConflict(_told(refusal), provider_request_id=refusal.request_id)


def _unprocessable(refusal: Refusal) -> ServiceError:
    if refusal.code in _CAPACITY_CODES or refusal.says(*_CAPACITY_PROSE):
        return _capacity(refusal)
    return _malformed(refusal)


def _rate_limited(refusal: Refusal) -> ServiceError:
    return ProviderRateLimited(
        _told(refusal),
        retry_after=refusal.retry_after or 1.0,
        provider_request_id=refusal.request_id,
    )


def _unauthenticated(refusal: Refusal) -> ServiceError:
    return _refused(refusal, hint="check FLY_API_TOKEN and the application that it is for")


_BY_STATUS: dict[int, Callable[[Refusal], ServiceError]] = {
    400: _malformed,
    401: _unauthenticated,
    403: _unauthenticated,
    404: _not_found,
    408: _timed_out,
    409: _conflict,
    412: _conflict,
    422: _unprocessable,
    429: _rate_limited,
}


def _no_answer(refusal: Refusal) -> ServiceError:
    kind = OutcomeUnknown if refusal.changes else ProviderUnavailable
    return kind(_told(refusal), provider_request_id=refusal.request_id)


def _capacity(refusal: Refusal) -> ServiceError:
    return ProviderCapacity(_told(refusal), provider_request_id=refusal.request_id)


def _refused(refusal: Refusal, hint: str = "") -> ServiceError:
    told = f"{_told(refusal)} ({hint})" if hint else _told(refusal)
    return ProviderRefused(told, provider_request_id=refusal.request_id)


def _lease(refusal: Refusal) -> ServiceError:
    if refusal.nonce:
        return LeaseLost(
            "the lease that the nonce stands for is not held any more",
            provider_request_id=refusal.request_id,
        )
    # The owner's name in Fly's text is somebody's address: it is not handed on.
    return LeaseHeld(
        "another holds the container's lease",
        expire_time=_expiry(refusal.text),
        provider_request_id=refusal.request_id,
    )


def _told(refusal: Refusal) -> str:
    return f"the provider answered {refusal.status}: {refusal.text.strip() or 'nothing'}"


def _expiry(text: str) -> datetime | None:
    """The time in `… expires at <time>`: RFC 3339, or as Go prints one."""
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
    """A numeric Retry-After, bounded; Fly documents none, so anything else is as good as absent."""
    try:
        return min(60.0, max(0.0, float(value))) if value else None
    except ValueError:
        return None
