"""Checks of what only agent sessions have: texts kept byte for byte, structs, spans, labels."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import ListValue, Struct, Value
    from google.protobuf.timestamp_pb2 import Timestamp

    from session_service.rpc.fields import Fields

SESSION_ID_LIMIT = 128
#: A startup context goes into a reply together with turns.
TEXT_LIMIT = 512 * 1024
#: A count of a message's tokens; sums of many still fit 64 bits.
TOKENS_LIMIT = 2**31 - 1
LABELS_LIMIT = 16
SHORTEST_IDLE = timedelta(seconds=1)
LONGEST_IDLE = timedelta(days=3660)
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_SECOND = -62_135_596_800
_LAST_SECOND = 253_402_300_799


def session_id(fields: Fields, name: str, value: str, *, required: bool = True) -> str:
    """A session's id."""
    return fields.text(name, value, SESSION_ID_LIMIT, required=required)


def agent_role(fields: Fields, name: str, value: str) -> str:
    """A role that an agent can have."""
    if not _ROLE.fullmatch(value):
        rule = 'must be 1 to 64 letters, digits, "_", "-" or "."'
        fields.wrong(name, rule if value else "must not be empty")
    return value


def body(fields: Fields, name: str, value: str) -> str:
    """Text that is kept byte for byte: PostgreSQL holds any but a NUL."""
    if "\0" in value:
        fields.wrong(name, "must not hold a NUL")
    return value


def count(fields: Fields, name: str, value: int, limit: int = 2**62) -> int:
    """A number that is not negative."""
    if not 0 <= value <= limit:
        fields.wrong(name, f"must be from 0 to {limit}")
        return 0
    return value


def labels(fields: Fields, name: str, values: Mapping[str, str]) -> str:
    """Labels, as the JSON of their column."""
    if len(values) > LABELS_LIMIT:
        fields.wrong(name, f"must be at most {LABELS_LIMIT}")
    for key, value in values.items():
        fields.text(f"{name} key", key, 63, required=True)
        fields.text(f'{name}["{key}"]', value, 128)
    return json.dumps(dict(values), sort_keys=True)


def idle_timeout(fields: Fields, name: str, value: Duration) -> timedelta:
    """How long a session may be idle."""
    if not -LONGEST_IDLE.total_seconds() <= value.seconds <= LONGEST_IDLE.total_seconds():
        span = timedelta(0)
    else:
        span = timedelta(seconds=value.seconds, microseconds=value.nanos / 1000)
    if not SHORTEST_IDLE <= span <= LONGEST_IDLE:
        fields.wrong(name, "must be from 1 s to 10 years")
        return SHORTEST_IDLE
    return span


def time(fields: Fields, name: str, value: Timestamp) -> datetime:
    """A time, to the microsecond."""
    if not (_FIRST_SECOND <= value.seconds <= _LAST_SECOND and 0 <= value.nanos < 10**9):
        fields.wrong(name, "must be a time of the years 1 to 9999")
        return _EPOCH
    return _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)


def struct(fields: Fields, name: str, value: Struct) -> dict[str, Any]:
    """A struct as JSON has it. Any: JSON."""
    return {
        body(fields, f"{name} key", key): _value(fields, name, item)
        for key, item in value.fields.items()
    }


def _value(fields: Fields, name: str, value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return body(fields, name, value.string_value)
    if kind == "number_value":
        number = value.number_value
        if not math.isfinite(number):
            fields.wrong(name, "must not hold numbers that are not finite")
            return 0
        return number
    if kind == "bool_value":
        return value.bool_value
    if kind == "struct_value":
        return struct(fields, name, value.struct_value)
    if kind == "list_value":
        return _list(fields, name, value.list_value)
    return None


def _list(fields: Fields, name: str, value: ListValue) -> list[Any]:
    return [_value(fields, name, item) for item in value.values]
