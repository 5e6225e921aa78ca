"""Agent sessions and their turns into messages."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.domain.agent import AgentState
from session_service.rpc.agent_messages import render_message
from session_service.rpc.times import duration, timestamp

if TYPE_CHECKING:
    from session_service.agents.turns import Appended
    from session_service.domain.agent import AgentSession, Turn
    from session_service.storage.agent_context import Context

_STATES = {state: pb.AgentSession.State.Value(f"STATE_{state}") for state in AgentState}


@lru_cache(maxsize=1024)
def _labels(raw: str) -> dict[str, str]:
    return {str(key): str(value) for key, value in json.loads(raw).items()}


def state(value: AgentState) -> pb.AgentSession.State.ValueType:
    """Where a session stands."""
    return _STATES[value]


def session(row: AgentSession) -> pb.AgentSession:
    """A session; its startup context where it was read."""
    answer = pb.AgentSession(
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
        answer.labels.update(_labels(row.labels))
    if row.idle_timeout is not None:
        answer.idle_timeout.CopyFrom(duration(row.idle_timeout))
    return answer


def turn(row: Turn) -> pb.Turn:
    """A turn, with its messages where they were read."""
    return pb.Turn(
        turn_number=row.turn_number,
        branch_id=row.branch_id,
        messages=[render_message(message) for message in row.messages],
        tokens=row.tokens,
        estimated_tokens=row.estimated_tokens,
        create_time=timestamp(row.create_time),
        total_tokens=row.total_tokens,
    )


def appended(done: Appended) -> rpc_pb.AppendTurnResponse:
    """What was appended."""
    return rpc_pb.AppendTurnResponse(agent_session=session(done.session), turn=turn(done.turn))


def context(found: Context, *, estimates: bool) -> rpc_pb.GetContextResponse:
    """What to give to the model."""
    row = found.session
    rough = row.estimated_startup_tokens + sum(each.estimated_tokens for each in found.turns)
    return rpc_pb.GetContextResponse(
        agent_session=session(row),
        turns=[turn(each) for each in found.turns],
        tokens=(row.startup_tokens or 0) + sum(each.tokens for each in found.turns),
        estimated_tokens=rough if estimates else 0,
        omitted_turn_count=row.turn_count - len(found.turns),
        size_limited=found.size_limited,
    )
