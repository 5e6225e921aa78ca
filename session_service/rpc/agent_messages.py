"""Messages of a turn: the contract's into the service's words, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import json_format, struct_pb2

from roost.agent.v1 import agent_session_pb2 as pb
from session_service.domain.agent import ROLES, Message, NewTurn, Part
from session_service.rpc import agent_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.rpc.fields import Fields

MESSAGES_LIMIT = 1000
#: A turn of this size fits into a reply with all that is around it; gRPC's own limit is 4 MiB.
TURN_LIMIT = 3 * 1024 * 1024
PARTS_LIMIT = 1024 * 1024
_ROLES = frozenset(ROLES)
#: What a reply adds to a message, and to a turn, at most: sizes are those of replies.
_FRAME = 16
_TURN_FRAME = 80


def parse_turn(fields: Fields, name: str, messages: Sequence[pb.Message]) -> NewTurn:
    """The turn that these messages make."""
    size = _TURN_FRAME + sum(each.ByteSize() + _FRAME for each in messages)
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
    content = agent_fields.body(fields, f"{name}.content", message.content)
    tokens = None
    if message.HasField("tokens"):
        limit = agent_fields.TOKENS_LIMIT
        tokens = agent_fields.count(fields, f"{name}.tokens", message.tokens, limit)
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
        extra["metadata"] = agent_fields.struct(fields, f"{name}.metadata", message.metadata)
    return extra


def _tool_call(fields: Fields, name: str, call: pb.ToolCall) -> dict[str, str]:
    return {
        "id": fields.text(f"{name}.id", call.id, 256),
        "name": fields.text(f"{name}.name", call.name, 256, required=True),
        "arguments": agent_fields.body(fields, f"{name}.arguments", call.arguments),
    }


def render_message(message: Message) -> pb.Message:
    """A message as the contract has it."""
    answer = pb.Message(role=message.role, content=message.content)
    if message.tokens is None:
        answer.estimated_tokens = message.estimated_tokens
    else:
        answer.tokens = message.tokens
    if message.extra:
        _render_extra(answer, message.extra)
    for part in message.parts:
        answer.parts.add(mime_type=part.mime_type, data=part.data)
    return answer


def _render_extra(answer: pb.Message, extra: Any) -> None:
    for call in extra.get("tool_calls", ()):
        answer.tool_calls.add(**call)
    answer.tool_call_id = extra.get("tool_call_id", "")
    answer.name = extra.get("name", "")
    if "metadata" in extra:
        metadata = struct_pb2.Struct()
        json_format.ParseDict(extra["metadata"], metadata)
        answer.metadata.CopyFrom(metadata)
