"""What all services need to read requests and to write replies.

- `Fields` checks a request's fields and collects all violations, so that one reply lists them all.
- `request_hash`: a call with a request id that was used before must have the same hash.
- Timestamps and durations.
- Page tokens. Each has a digest of its listing: a token of another listing is rejected.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from session_service.domain.session import DEFAULT_SLOT, Key
from session_service.errors import InvalidField, Violation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message

    from roost.session.v1 import session_pb2 as pb


_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL = UUID(int=0)
T = TypeVar("T")

#: Longest ids of projects and users, and longest slot.
ID_LIMIT = 128
SLOT_LIMIT = 64
PAGE_LIMIT = 500
PAGE_DEFAULT = 50
#: The shortest and the longest interval of heartbeats, in s.
HEARTBEATS = (1.0, 3600.0)


class Fields:
    """The violations found so far in one request.

    A check that finds a violation still returns a value of the right type, so that the other fields
    can be checked. `done` must be called before any of the values is used.
    """

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def wrong(self, field: str, description: str) -> None:
        """Add a violation."""
        self._violations.append(Violation(field, description))

    def done(self) -> None:
        """Raise InvalidField if a check has found a violation."""
        if self._violations:
            raise InvalidField(self._violations)

    def text(self, field: str, value: str, limit: int, *, required: bool = False) -> str:
        """A string of up to `limit` printable characters."""
        if required and not value:
            self.wrong(field, "must not be empty")
        elif len(value) > limit:
            self.wrong(field, f"must be at most {limit} characters")
        elif not value.isprintable():
            self.wrong(field, "must hold printable characters only")
        return value

    def uuid(self, field: str, value: str) -> UUID:
        """A required UUID in the form of RFC 9562: 8-4-4-4-12 hex digits."""
        if not _UUID.fullmatch(value):
            self.wrong(field, "must be a UUID" if value else "must not be empty")
            return _NIL
        return UUID(value)

    def optional_uuid(self, field: str, value: str) -> UUID | None:
        """A UUID; None if the string is empty."""
        return self.uuid(field, value) if value else None

    def choice(self, field: str, number: int, choices: Mapping[int, T], default: T) -> T:
        """An enum's value. A number that this version does not know is a violation."""
        if number not in choices:
            self.wrong(field, f"has no value {number}")
        return choices.get(number, default)

    def heartbeat(self, interval: Duration) -> float:
        """The interval of heartbeats that a watch asks for, in s."""
        seconds = interval.seconds + interval.nanos / 1e9
        shortest, longest = HEARTBEATS
        if not shortest <= seconds <= longest:
            self.wrong("heartbeat_interval", f"must be from {shortest:g} to {longest:g} s")
        return seconds

    def page_size(self, value: int) -> int:
        """The size of a page, PAGE_LIMIT at most; 0 means PAGE_DEFAULT."""
        if value < 0:
            self.wrong("page_size", "must not be negative")
        return min(value, PAGE_LIMIT) or PAGE_DEFAULT


#: The fields of requests that hold a UUID, except `request_id`.
_ID_FIELDS = ("session_id", "checkpoint_id")


def request_hash(request: Message) -> bytes:
    """SHA-256 of the request's fields except `request_id`.

    The letter case of an id makes no difference, and an empty slot equals the default slot.
    """
    normalized = type(request)()
    normalized.CopyFrom(request)
    normalized.ClearField("request_id")
    for name in _ID_FIELDS:
        # An empty id is not written: in a oneof, that would clear the field that is set.
        if value := getattr(normalized, name, ""):
            setattr(normalized, name, value.lower())
    key = getattr(normalized, "key", None)
    if key is not None and not key.slot:
        key.slot = DEFAULT_SLOT
    return hashlib.sha256(normalized.SerializeToString(deterministic=True)).digest()


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(time: datetime | None) -> Timestamp | None:
    """The time as a message; None if there is none."""
    if time is None:
        return None
    reply = Timestamp()
    write_timestamp(reply, time)
    return reply


def write_timestamp(reply: Timestamp, time: datetime) -> None:
    """The time, into a message."""
    span = time - _EPOCH
    reply.seconds = span.days * 86_400 + span.seconds
    reply.nanos = span.microseconds * 1000


def duration(span: timedelta) -> Duration:
    """The span as a message. Seconds and nanos of a negative span are both negative."""
    if span < timedelta(0):
        positive = duration(-span)
        return Duration(seconds=-positive.seconds, nanos=-positive.nanos)
    return Duration(seconds=span.days * 86_400 + span.seconds, nanos=span.microseconds * 1000)


def listing_digest(*parts: str) -> str:
    """The digest of a listing. `parts` are its kind, its parent, its filter and its order."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def make_page_token(listing: str, position: Sequence[str]) -> str:
    """The token for the page after `position`, in the listing with this digest."""
    raw = json.dumps([listing, *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_page_token(token: str, listing: str, parts: int) -> list[str]:
    """The `parts` strings of the position that `make_page_token` wrote.

    Raises InvalidField if the token is of another listing, or is no token.
    """
    values: object = None
    try:
        if len(token) <= 512:
            values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != parts + 1 or values[0] != listing:
        raise InvalidField.of(
            "page_token",
            "is not from this listing; use it with the request that returned it, or leave it empty",
        )
    return [str(value) for value in values[1:]]


def parse_key(fields: Fields, tenant: str, key: pb.SessionKey, *, present: bool) -> Key:
    """The key, with the tenant. `present`: whether the request has the field."""
    if not present:
        fields.wrong("key", "must be set")
    else:
        fields.text("key.project_id", key.project_id, ID_LIMIT, required=True)
        fields.text("key.user_id", key.user_id, ID_LIMIT, required=True)
        fields.text("key.slot", key.slot, SLOT_LIMIT)
    return Key(tenant, key.project_id, key.user_id, key.slot or DEFAULT_SLOT)
