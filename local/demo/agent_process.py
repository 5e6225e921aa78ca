"""A process that appends one message to an agent's conversation, and ends.

`python -m local.demo.agent_process TARGET` creates a conversation; with `--session ID` it continues
that one. It prints one line of JSON: session_id, turn, tokens, and the conversation's messages.
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
#: Longest wait for a call, in s; the service may still be starting.
SECONDS = 15.0


def main(argv: list[str]) -> int:
    """Append the message and print the conversation."""
    parser = argparse.ArgumentParser(prog="python -m local.demo.agent_process", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--session", help="the session to continue (a new one)")
    parser.add_argument("--say", default="Hello.")
    parser.add_argument("--tokens", type=int, default=0)
    given = parser.parse_args(argv)
    with grpc.insecure_channel(given.target) as channel:
        session_id = given.session or create(channel)
        appended = append(channel, session_id, given.say, given.tokens)
        messages = context(channel, session_id)
    result = {
        "session_id": session_id,
        "turn": appended.turn.turn_number,
        "tokens": appended.agent_session.total_tokens,
        "messages": messages,
    }
    print(json.dumps(result))
    return 0


def create(channel: grpc.Channel) -> str:
    """Create a conversation; return its session id."""
    request = pb.CreateAgentSessionRequest(request_id=str(uuid.uuid4()), agent_role="ceo")
    answer = _call(channel, "CreateAgentSession", request, pb.CreateAgentSessionResponse)
    return answer.agent_session.session_id


def append(
    channel: grpc.Channel, session_id: str, content: str, tokens: int
) -> pb.AppendTurnResponse:
    """Append a turn with one message."""
    request = pb.AppendTurnRequest(request_id=str(uuid.uuid4()), session_id=session_id)
    request.messages.add(role="user", content=content, tokens=tokens)
    return _call(channel, "AppendTurn", request, pb.AppendTurnResponse)


def context(channel: grpc.Channel, session_id: str) -> list[str]:
    """The contents of all messages of the conversation."""
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
