"""Requests about agent sessions into the service's words. Raises InvalidField and nothing else."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from session_service.domain.agent import Append, Budget, Opening
from session_service.domain.decision import Request
from session_service.rpc import agent_fields, agent_messages
from session_service.rpc.fields import Fields

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from roost.agent.v1 import agent_session_service_pb2 as rpc_pb

#: A reply's turns take at most this much; a turn always fits.
REPLY_BYTES = agent_messages.TURN_LIMIT
DEFAULT_IDLE = timedelta(hours=1)
NEVER = timedelta.max


class WithId(Protocol):
    """A request that can be repeated."""

    request_id: str


def request_hash(message: Message) -> bytes:
    """SHA-256 of the request's fields but its id. Ids of agent sessions are taken as they are."""
    same = type(message)()
    same.CopyFrom(message)
    same.ClearField("request_id")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


def _request(fields: Fields, message: WithId, method: str, tenant: str) -> Request:
    request_id = fields.optional_uuid("request_id", message.request_id)
    # Without an id nobody will compare.
    body: Message = message  # type: ignore[assignment]  # every WithId is a message
    digest = b"" if request_id is None else request_hash(body)
    return Request(tenant, method, digest, request_id)


def parse_create(
    message: rpc_pb.CreateAgentSessionRequest, tenant: str, idle: timedelta | None = DEFAULT_IDLE
) -> tuple[Request, Opening]:
    """A new session; `idle` is its idle time-out where none is given."""
    fields = Fields()
    request = _request(fields, message, "CreateAgentSession", tenant)
    if message.HasField("idle_timeout"):
        idle = agent_fields.idle_timeout(fields, "idle_timeout", message.idle_timeout)
        if message.never_expires:
            fields.wrong("idle_timeout", "must not be set with never_expires")
    startup = agent_fields.body(fields, "startup_context", message.startup_context)
    if len(startup.encode()) > agent_fields.TEXT_LIMIT:
        fields.wrong("startup_context", f"must be at most {agent_fields.TEXT_LIMIT} bytes")
    startup_tokens = None
    if message.HasField("startup_tokens"):
        startup_tokens = agent_fields.count(
            fields, "startup_tokens", message.startup_tokens, agent_fields.TOKENS_LIMIT
        )
    opening = Opening(
        agent_fields.session_id(fields, "session_id", message.session_id, required=False) or None,
        agent_fields.agent_role(fields, "agent_role", message.agent_role),
        startup,
        startup_tokens,
        agent_fields.labels(fields, "labels", message.labels),
        None if message.never_expires else idle,
    )
    fields.done()
    return request, opening


def parse_append(message: rpc_pb.AppendTurnRequest, tenant: str) -> Append:
    """A turn to append."""
    fields = Fields()
    request = _request(fields, message, "AppendTurn", tenant)
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    expected = None
    if message.HasField("expected_turn_count"):
        expected = agent_fields.count(fields, "expected_turn_count", message.expected_turn_count)
    turn = agent_messages.parse_turn(fields, "messages", message.messages)
    fields.done()
    return Append(request, session_id, turn, expected, message.revive)


def parse_context(message: rpc_pb.GetContextRequest) -> tuple[str, Budget]:
    """A session, and how much of it."""
    fields = Fields()
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    most: int | None = None
    last: int | None = None
    if message.HasField("max_tokens"):
        most = agent_fields.count(fields, "max_tokens", message.max_tokens)
    if message.HasField("last_turns"):
        last = agent_fields.count(fields, "last_turns", message.last_turns)
    fields.done()
    return session_id, Budget(REPLY_BYTES, most, last, not message.count_missing_as_zero)


def parse_id(value: str) -> str:
    """A session's id."""
    fields = Fields()
    session_id = agent_fields.session_id(fields, "session_id", value)
    fields.done()
    return session_id


class AboutSession(WithId, Protocol):
    """A request about one session."""

    session_id: str


def parse_named(message: AboutSession, method: str, tenant: str) -> tuple[Request, str]:
    """A call about one session."""
    fields = Fields()
    request = _request(fields, message, method, tenant)
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    fields.done()
    return request, session_id


def parse_end(
    message: rpc_pb.EndAgentSessionRequest, tenant: str
) -> tuple[Request, str, timedelta]:
    """An end, and how long it can be undone at most."""
    request, session_id = parse_named(message, "EndAgentSession", tenant)
    return request, session_id, timedelta(0) if message.now else NEVER


@dataclass(frozen=True, slots=True)
class Fork:
    """A fork as asked for."""

    request: Request
    session_id: str
    at_turn: int | None
    new_session_id: str | None
    labels: str | None


def parse_fork(message: rpc_pb.ForkAgentSessionRequest, tenant: str) -> Fork:
    """A fork."""
    fields = Fields()
    request = _request(fields, message, "ForkAgentSession", tenant)
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    at_turn = None
    if message.HasField("at_turn"):
        at_turn = agent_fields.count(fields, "at_turn", message.at_turn)
    new_id = agent_fields.session_id(
        fields, "new_session_id", message.new_session_id, required=False
    )
    labels = agent_fields.labels(fields, "labels", message.labels) if message.labels else None
    fields.done()
    return Fork(request, session_id, at_turn, new_id or None, labels)


def parse_rewind(
    message: rpc_pb.RewindAgentSessionRequest, tenant: str
) -> tuple[Request, str, int, int | None]:
    """A rewind: which session, to which turn, out of how many."""
    fields = Fields()
    request = _request(fields, message, "RewindAgentSession", tenant)
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    if not message.HasField("to_turn"):
        fields.wrong("to_turn", "must be set")
    to_turn = agent_fields.count(fields, "to_turn", message.to_turn)
    expected = None
    if message.HasField("expected_turn_count"):
        expected = agent_fields.count(fields, "expected_turn_count", message.expected_turn_count)
    fields.done()
    return request, session_id, to_turn, expected
