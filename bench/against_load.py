"""The calls of `bench.against`, as a process of its own: so many of one kind, raw bytes only.

A new request id in every call that has one; keys in turn. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import uuid

import grpc

from bench.agent_load import AGENT, append
from bench.agents import WRITING
from bench.load import METHODS, PLACE, bodies
from roost.session.v1 import policy_service_pb2, session_service_pb2

SESSIONS = "/roost.session.v1.SessionService"
CALLS = {
    "REUSED": METHODS["start"],
    "touch": f"{SESSIONS}/TouchSession",
    "append": f"{AGENT}/AppendTurn",
    "decision": "/roost.session.v1.PolicyService/SetUserPreference",
}


def requests(kind: str, keys: int) -> list[bytes]:
    """A request for each key."""
    match kind:
        case "REUSED":
            return bodies("start", keys)
        case "append":
            return [append(each) for each in WRITING]
        case "touch":
            return [
                session_service_pb2.TouchSessionRequest(
                    session_id=str(uuid.UUID(int=number + 1))
                ).SerializeToString()
                for number in range(keys)
            ]
        case "decision":
            return [
                policy_service_pb2.SetUserPreferenceRequest(
                    request_id=PLACE.decode(),
                    project_id=f"project-{number % 10}",
                    user_id=f"u{number}",
                    preference=policy_service_pb2.PREFERENCE_ASK,
                ).SerializeToString()
                for number in range(keys)
            ]
        case other:
            raise SystemExit(f"no kind {other}")


def main() -> int:
    """Make the calls that the arguments say: target, kind, calls, window, keys."""
    target, kind, calls, window, keys = sys.argv[1:6]
    slots, errors = threading.Semaphore(int(window)), list[str]()

    def done(future: grpc.Future[bytes]) -> None:
        if (error := future.exception()) is not None:
            errors.append(str(error)[:200])
        slots.release()

    bodies_of_kind = requests(kind, int(keys))
    with grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CALLS[kind])
        grpc.channel_ready_future(channel).result(timeout=60)
        for number in range(int(calls)):
            slots.acquire()
            request = bodies_of_kind[number % len(bodies_of_kind)]
            request = request.replace(PLACE, str(uuid.uuid4()).encode())
            call.future(request, timeout=60).add_done_callback(done)
        for _ in range(int(window)):
            slots.acquire()
    print(json.dumps({"errors": errors}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
