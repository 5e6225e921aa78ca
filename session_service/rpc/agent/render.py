"""Render agent sessions, turns and messages as messages of the contract."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from google.protobuf import json_format, struct_pb2

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.domain.agent import AgentState
from session_service.rpc.fields import duration, timestamp, write_timestamp

if TYPE_CHECKING:
    from session_service.agents.turns import Appended
    from session_service.domain.agent import AgentSession, Message, Turn
    from session_service.storage.agent.reads import Context

_STATES = {state: pb.AgentSession.State.Value(f"STATE_{state}") for state in AgentState}


@lru_cache(maxsize=1024)
def _labels(raw: str) -> dict[str, str]:
    return {str(key): str(value) for key, value in json.loads(raw).items()}


def state(value: AgentState) -> pb.AgentSession.State.ValueType:
    """A session's state."""
    return _STATES[value]


def session(row: AgentSession) -> pb.AgentSession:
    """A session; with its startup context if that was read."""
    reply = pb.AgentSession(
        session_id=row.session_id,
        agent_role=row.agent_role,
        state=_STATES[row.state],
        startup_context=row.startup_context or "",
        startup_tokens=row.startup_tokens,
        turn_count=row.turn_count,
        total_tokens=row.total_tokens,
        estimated_tokens=row.estimated_tokens,
        create_time=timestamp(row.created_at),
        last_query_time=timestamp(row.last_query_at),
        expire_time=timestamp(row.expire_time),
        end_time=timestamp(row.ended_at),
        purge_time=timestamp(row.purge_at),
        branch_id=row.head_branch,
        parent_session_id=row.parent_session_id or "",
        parent_turn_number=row.parent_turn or 0,
    )
    if row.labels != "{}":
        reply.labels.update(_labels(row.labels))
    if row.idle_timeout is not None:
        reply.idle_timeout.CopyFrom(duration(row.idle_timeout))
    return reply


def turn(row: Turn) -> pb.Turn:
    """A turn; with its messages if those were read."""
    reply = pb.Turn()
    write_turn(reply, row)
    return reply


def write_turn(reply: pb.Turn, row: Turn) -> None:
    """Write a turn into `reply`, which must be empty. A caller that needs the turn within another
    message passes the field of that message. A turn that is built apart would have to be copied
    into that field, and an export has millions of turns.
    """
    reply.turn_number = row.turn_number
    reply.branch_id = row.branch_id
    for each in row.messages:
        _write_message(reply.messages.add(role=each.role, content=each.content), each)
    reply.tokens = row.tokens
    reply.estimated_tokens = row.estimated_tokens
    write_timestamp(reply.create_time, row.create_time)
    reply.total_tokens = row.total_tokens


def _write_message(reply: pb.Message, value: Message) -> None:
    """Write the other fields of a message into `reply`, which has the role and the content. If the
    caller gave no count of the tokens, the estimated count is written.
    """
    if value.tokens is None:
        reply.estimated_tokens = value.estimated_tokens
    else:
        reply.tokens = value.tokens
    if value.extra:
        _set_extra(reply, value.extra)
    for part in value.parts:
        reply.parts.add(mime_type=part.mime_type, data=part.data)


# Any: JSON.
def _set_extra(reply: pb.Message, extra: Any) -> None:
    for call in extra.get("tool_calls", ()):
        reply.tool_calls.add(**call)
    reply.tool_call_id = extra.get("tool_call_id", "")
    reply.name = extra.get("name", "")
    if "metadata" in extra:
        metadata = struct_pb2.Struct()
        json_format.ParseDict(extra["metadata"], metadata)
        reply.metadata.CopyFrom(metadata)


def appended(result: Appended) -> rpc_pb.AppendTurnResponse:
    """AppendTurn's reply."""
    return rpc_pb.AppendTurnResponse(agent_session=session(result.session), turn=turn(result.turn))


def context(found: Context, *, estimates: bool) -> rpc_pb.GetContextResponse:
    """GetContext's reply. `estimates`: whether the reply reports estimated tokens."""
    row = found.session
    estimated = row.estimated_startup_tokens + sum(each.estimated_tokens for each in found.turns)
    return rpc_pb.GetContextResponse(
        agent_session=session(row),
        turns=[turn(each) for each in found.turns],
        tokens=(row.startup_tokens or 0) + sum(each.tokens for each in found.turns),
        estimated_tokens=estimated if estimates else 0,
        omitted_turn_count=row.turn_count - len(found.turns),
        size_limited=found.size_limited,
    )
