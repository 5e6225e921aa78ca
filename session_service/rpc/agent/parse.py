"""Requests about one agent session as values of the use cases. Raises InvalidField only."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol

from session_service.domain.agent import Append, Budget, NewSession
from session_service.domain.decision import Request
from session_service.rpc.agent import fields as checks
from session_service.rpc.fields import Fields

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from roost.agent.v1 import agent_session_service_pb2 as rpc_pb

#: Bytes of turns in one reply; a single turn always fits.
REPLY_BYTES = checks.TURN_LIMIT
DEFAULT_IDLE = timedelta(hours=1)
#: The retention that an end without `now` asks for: the service's own, which is less.
_LONGEST = timedelta.max


class WithId(Protocol):
    """A request with a request id."""

    request_id: str


class AboutSession(WithId, Protocol):
    """A request with a request id, about one session."""

    session_id: str


def request_hash(message: Message) -> bytes:
    """SHA-256 of the request without its id, for comparison with a repeat.

    Unlike `rpc.fields.request_hash` it normalises nothing: an agent session's id is any text, and
    ids that differ in case name different sessions.
    """
    same = type(message)()
    same.CopyFrom(message)
    same.ClearField("request_id")
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()


def _request(fields: Fields, message: WithId, method: str, tenant: str) -> Request:
    request_id = fields.optional_uuid("request_id", message.request_id)
    body: Message = message  # type: ignore[assignment]  # every WithId is a message
    # A request without an id is never compared.
    digest = b"" if request_id is None else request_hash(body)
    return Request(tenant, method, digest, request_id)


def create(
    message: rpc_pb.CreateAgentSessionRequest, tenant: str, idle: timedelta | None = DEFAULT_IDLE
) -> tuple[Request, NewSession]:
    """CreateAgentSession; `idle` is the idle time-out if the request has none."""
    fields = Fields()
    request = _request(fields, message, "CreateAgentSession", tenant)
    if message.HasField("idle_timeout"):
        idle = checks.idle_timeout(fields, "idle_timeout", message.idle_timeout)
        if message.never_expires:
            fields.wrong("idle_timeout", "must not be set with never_expires")
    startup = checks.startup_context(fields, "startup_context", message.startup_context)
    startup_tokens = None
    if message.HasField("startup_tokens"):
        startup_tokens = checks.count(
            fields, "startup_tokens", message.startup_tokens, checks.TOKENS_LIMIT
        )
    new = NewSession(
        checks.session_id(fields, "session_id", message.session_id, required=False) or None,
        checks.agent_role(fields, "agent_role", message.agent_role),
        startup,
        startup_tokens,
        checks.labels(fields, "labels", message.labels),
        None if message.never_expires else idle,
    )
    fields.done()
    return request, new


def append(message: rpc_pb.AppendTurnRequest, tenant: str) -> Append:
    """AppendTurn."""
    fields = Fields()
    request = _request(fields, message, "AppendTurn", tenant)
    session_id = checks.session_id(fields, "session_id", message.session_id)
    expected = None
    if message.HasField("expected_turn_count"):
        expected = checks.count(fields, "expected_turn_count", message.expected_turn_count)
    turn = checks.new_turn(fields, "messages", message.messages)
    fields.done()
    return Append(request, session_id, turn, expected, message.revive)


def context(message: rpc_pb.GetContextRequest) -> tuple[str, Budget]:
    """GetContext: a session's id, and how much of it to read."""
    fields = Fields()
    session_id = checks.session_id(fields, "session_id", message.session_id)
    max_tokens: int | None = None
    last_turns: int | None = None
    if message.HasField("max_tokens"):
        max_tokens = checks.count(fields, "max_tokens", message.max_tokens)
    if message.HasField("last_turns"):
        last_turns = checks.count(fields, "last_turns", message.last_turns)
    fields.done()
    return session_id, Budget(
        REPLY_BYTES, max_tokens, last_turns, not message.count_missing_as_zero
    )


def get(message: rpc_pb.GetAgentSessionRequest) -> str:
    """GetAgentSession: a session's id."""
    fields = Fields()
    session_id = checks.session_id(fields, "session_id", message.session_id)
    fields.done()
    return session_id


def named(message: AboutSession, method: str, tenant: str) -> tuple[Request, str]:
    """A call that needs a session's id and no more."""
    fields = Fields()
    request = _request(fields, message, method, tenant)
    session_id = checks.session_id(fields, "session_id", message.session_id)
    fields.done()
    return request, session_id


def end(message: rpc_pb.EndAgentSessionRequest, tenant: str) -> tuple[Request, str, timedelta]:
    """EndAgentSession: a session's id, and the longest time until its purge."""
    request, session_id = named(message, "EndAgentSession", tenant)
    return request, session_id, timedelta(0) if message.now else _LONGEST


@dataclass(frozen=True, slots=True)
class Fork:
    """The arguments of a fork. If `at_turn` is None, the new session has all turns of the parent.
    If `labels` is None, it has the labels of the parent.
    """

    request: Request
    session_id: str
    at_turn: int | None
    new_session_id: str | None
    labels: str | None


def fork(message: rpc_pb.ForkAgentSessionRequest, tenant: str) -> Fork:
    """ForkAgentSession."""
    fields = Fields()
    request = _request(fields, message, "ForkAgentSession", tenant)
    session_id = checks.session_id(fields, "session_id", message.session_id)
    at_turn = None
    if message.HasField("at_turn"):
        at_turn = checks.count(fields, "at_turn", message.at_turn)
    new_id = checks.session_id(fields, "new_session_id", message.new_session_id, required=False)
    labels = checks.labels(fields, "labels", message.labels) if message.labels else None
    fields.done()
    return Fork(request, session_id, at_turn, new_id or None, labels)


def rewind(
    message: rpc_pb.RewindAgentSessionRequest, tenant: str
) -> tuple[Request, str, int, int | None]:
    """RewindAgentSession: a session's id, the turn to go to, the expected turn count."""
    fields = Fields()
    request = _request(fields, message, "RewindAgentSession", tenant)
    session_id = checks.session_id(fields, "session_id", message.session_id)
    if not message.HasField("to_turn"):
        fields.wrong("to_turn", "must be set")
    to_turn = checks.count(fields, "to_turn", message.to_turn)
    expected = None
    if message.HasField("expected_turn_count"):
        expected = checks.count(fields, "expected_turn_count", message.expected_turn_count)
    fields.done()
    return request, session_id, to_turn, expected
