"""A process of its own that says one thing in an agent's conversation, and ends.

`python -m local.agent_talk TARGET` begins one; with `--session ID` it continues that one. It prints
one line of JSON: session_id, turn, tokens, and what the whole conversation says.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from typing import TYPE_CHECKING, TypeVar

import grpc

from roost.agent.v1 import agent_session_service_pb2 as pb

if TYPE_CHECKING:
    from google.protobuf.message import Message

    T = TypeVar("T", bound=Message)

SERVICE = "/roost.agent.v1.AgentSessionService"
#: Wait for a service that is on its way up, in s.
SECONDS = 15.0


def main(argv: list[str]) -> int:
    """Say it."""
    parser = argparse.ArgumentParser(prog="python -m local.agent_talk", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--session", help="the session to continue; a new one where not given")
    parser.add_argument("--say", default="Hello.")
    parser.add_argument("--tokens", type=int, default=0)
    given = parser.parse_args(argv)
    with grpc.insecure_channel(given.target) as channel:
        session_id = given.session or create(channel)
        done = append(channel, session_id, given.say, given.tokens)
        said = context(channel, session_id)
    told = {
        "session_id": session_id,
        "turn": done.turn.turn_number,
        "tokens": done.agent_session.total_tokens,
        "said": said,
    }
    print(json.dumps(told))
    return 0


def create(channel: grpc.Channel) -> str:
    """Begin a conversation; its id."""
    request = pb.CreateAgentSessionRequest(request_id=str(uuid.uuid4()), agent_role="ceo")
    answer = _call(channel, "CreateAgentSession", request, pb.CreateAgentSessionResponse)
    return answer.agent_session.session_id


def append(
    channel: grpc.Channel, session_id: str, content: str, tokens: int
) -> pb.AppendTurnResponse:
    """Append a turn of one message."""
    request = pb.AppendTurnRequest(request_id=str(uuid.uuid4()), session_id=session_id)
    request.messages.add(role="user", content=content, tokens=tokens)
    return _call(channel, "AppendTurn", request, pb.AppendTurnResponse)


def context(channel: grpc.Channel, session_id: str) -> list[str]:
    """What was said so far."""
    request = pb.GetContextRequest(session_id=session_id, max_tokens=100_000)
    answer = _call(channel, "GetContext", request, pb.GetContextResponse)
    return [message.content for turn in answer.turns for message in turn.messages]


def _call(channel: grpc.Channel, method: str, request: Message, answer: type[T]) -> T:
    call = channel.unary_unary(
        f"{SERVICE}/{method}",
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer.FromString,
    )
    response: T = call(request, timeout=SECONDS, wait_for_ready=True)
    return response


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
