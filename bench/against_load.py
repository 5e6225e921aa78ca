"""The calls of `bench.against`, as a process of its own, raw bytes only.

A new request id in every call that has one; keys in turn. Prints a line of JSON for each order.
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


def run(channel: grpc.Channel, kind: str, calls: int, window: int, keys: int) -> list[str]:
    """Make so many calls; the errors."""
    slots, errors = threading.Semaphore(window), list[str]()

    def done(future: grpc.Future[bytes]) -> None:
        if (error := future.exception()) is not None:
            errors.append(str(error)[:200])
        slots.release()

    made = requests(kind, keys)
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CALLS[kind])
    for number in range(calls):
        slots.acquire()
        request = made[number % len(made)].replace(PLACE, str(uuid.uuid4()).encode())
        call.future(request, timeout=60).add_done_callback(done)
    for _ in range(window):
        slots.acquire()
    return errors


def main() -> int:
    """Make the calls that each line of the input asks for: kind, number, window, keys."""
    with grpc.insecure_channel(sys.argv[1]) as channel:
        grpc.channel_ready_future(channel).result(timeout=60)
        for line in sys.stdin:
            kind, *numbers = line.split()
            print(json.dumps({"errors": run(channel, kind, *map(int, numbers))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
