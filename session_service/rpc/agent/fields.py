"""Checks of the fields of agent sessions: ids, texts, structs, times, labels, a turn's messages."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from session_service.domain.agent import ROLES, Message, NewTurn, Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.struct_pb2 import ListValue, Struct, Value
    from google.protobuf.timestamp_pb2 import Timestamp

    from roost.agent.v1 import agent_session_pb2 as pb
    from session_service.rpc.fields import Fields

SESSION_ID_LIMIT = 128
#: Bytes of a startup context. A reply has room for it together with a turn.
TEXT_LIMIT = 512 * 1024
#: Tokens of one message: the sums of many still fit into 64 bits.
TOKENS_LIMIT = 2**31 - 1
LABELS_LIMIT = 16
SHORTEST_IDLE = timedelta(seconds=1)
LONGEST_IDLE = timedelta(days=3660)
MESSAGES_LIMIT = 1000
#: Bytes of a turn in a reply. With the rest of the reply it stays below gRPC's limit of 4 MiB.
TURN_LIMIT = 3 * 1024 * 1024
PARTS_LIMIT = 1024 * 1024
#: The most bytes that a reply adds to a message and to a turn, so that sizes are those of replies.
_MESSAGE_FRAME = 16
_TURN_FRAME = 80
_ROLE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ROLES = frozenset(ROLES)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: The years 1 to 9999, which datetime can hold, in seconds since 1970.
_FIRST_SECOND = -62_135_596_800
_LAST_SECOND = 253_402_300_799


def session_id(fields: Fields, name: str, value: str, *, required: bool = True) -> str:
    """A session's id."""
    return fields.text(name, value, SESSION_ID_LIMIT, required=required)


def agent_role(fields: Fields, name: str, value: str) -> str:
    """An agent's role."""
    if not _ROLE.fullmatch(value):
        rule = 'must be 1 to 64 letters, digits, "_", "-" or "."'
        fields.wrong(name, rule if value else "must not be empty")
    return value


def body(fields: Fields, name: str, value: str) -> str:
    """Text that is stored byte for byte: anything but NUL, which PostgreSQL's text cannot hold."""
    if "\0" in value:
        fields.wrong(name, "must not hold a NUL")
    return value


def startup_context(fields: Fields, name: str, value: str) -> str:
    """The text that a conversation begins with."""
    body(fields, name, value)
    if len(value.encode()) > TEXT_LIMIT:
        fields.wrong(name, f"must be at most {TEXT_LIMIT} bytes")
    return value


def count(fields: Fields, name: str, value: int, limit: int = 2**62) -> int:
    """A number from 0 to `limit`."""
    if not 0 <= value <= limit:
        fields.wrong(name, f"must be from 0 to {limit}")
        return 0
    return value


def labels(fields: Fields, name: str, values: Mapping[str, str]) -> str:
    """Labels, as the JSON of their column."""
    if len(values) > LABELS_LIMIT:
        fields.wrong(name, f"must have at most {LABELS_LIMIT} labels")
    for key, value in values.items():
        fields.text(f"{name} key", key, 63, required=True)
        fields.text(f'{name}["{key}"]', value, 128)
    return json.dumps(dict(values), sort_keys=True)


def idle_timeout(fields: Fields, name: str, value: Duration) -> timedelta:
    """How long a session may be without a turn."""
    # timedelta raises OverflowError for some seconds that a Duration can hold.
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
    """A struct as JSON values. Any: JSON."""
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


def new_turn(fields: Fields, name: str, messages: Sequence[pb.Message]) -> NewTurn:
    """The turn of these messages. An empty turn stands in for one that is too large to check."""
    size = _TURN_FRAME + sum(each.ByteSize() + _MESSAGE_FRAME for each in messages)
    if not 1 <= len(messages) <= MESSAGES_LIMIT:
        fields.wrong(name, f"must be 1 to {MESSAGES_LIMIT} messages")
        return NewTurn((), 0)
    if size > TURN_LIMIT:
        fields.wrong(name, f"must be at most {TURN_LIMIT} bytes in all, not {size}")
        return NewTurn((), 0)
    if sum(len(part.data) for each in messages for part in each.parts) > PARTS_LIMIT:
        fields.wrong(name, f"must have at most {PARTS_LIMIT} bytes of parts in all")
    parsed = [_message(fields, f"{name}[{i}]", each) for i, each in enumerate(messages)]
    return NewTurn(tuple(parsed), size)


def _message(fields: Fields, name: str, message: pb.Message) -> Message:
    if message.role not in _ROLES:
        fields.wrong(f"{name}.role", f"must be one of {', '.join(ROLES)}")
    content = body(fields, f"{name}.content", message.content)
    tokens = None
    if message.HasField("tokens"):
        tokens = count(fields, f"{name}.tokens", message.tokens, TOKENS_LIMIT)
    extra = _extra(fields, name, message)
    parts = tuple(
        Part(
            fields.text(f"{name}.parts[{i}].mime_type", part.mime_type, 128, required=True),
            part.data,
        )
        for i, part in enumerate(message.parts)
    )
    if not (content or parts or "tool_calls" in extra):
        fields.wrong(f"{name}.content", "must not be empty without tool_calls or parts")
    return Message(message.role, content, tokens, extra or None, parts)


def _extra(fields: Fields, name: str, message: pb.Message) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if message.tool_calls:
        extra["tool_calls"] = [
            _tool_call(fields, f"{name}.tool_calls[{i}]", call)
            for i, call in enumerate(message.tool_calls)
        ]
    if message.tool_call_id:
        extra["tool_call_id"] = fields.text(f"{name}.tool_call_id", message.tool_call_id, 256)
    if message.name:
        extra["name"] = fields.text(f"{name}.name", message.name, 256)
    if message.HasField("metadata"):
        extra["metadata"] = struct(fields, f"{name}.metadata", message.metadata)
    return extra


def _tool_call(fields: Fields, name: str, call: pb.ToolCall) -> dict[str, str]:
    return {
        "id": fields.text(f"{name}.id", call.id, 256),
        "name": fields.text(f"{name}.name", call.name, 256, required=True),
        "arguments": body(fields, f"{name}.arguments", call.arguments),
    }
