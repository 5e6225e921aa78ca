"""The load on agent sessions, as a process of its own; prints one line of JSON.

`latency` makes one call at a time, of each kind in turn, so that a machine's drift is in all of
them alike. `rate` keeps a window of calls of one kind in flight.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field

import grpc

from bench.agent_baselines import CONTENT, SERVICE
from roost.agent.v1 import agent_session_pb2, agent_session_service_pb2

PLACE = str(uuid.UUID(int=0)).encode()
AGENT = "/roost.agent.v1.AgentSessionService"
#: The budget of a context: 20 turns.
BUDGET = 5000


@dataclass(frozen=True)
class Kind:
    """One kind of call: its target, its method, and its requests in order."""

    name: str
    target: str
    method: str
    requests: list[bytes]


@dataclass
class Tally:
    """The results of the calls; latencies in s."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0


def append(session_id: str) -> bytes:
    """An append of a turn of 1 kB; its request id is a placeholder."""
    message = agent_session_pb2.Message(role="user", content=CONTENT, tokens=250)
    return agent_session_service_pb2.AppendTurnRequest(
        request_id=PLACE.decode(), session_id=session_id, messages=[message]
    ).SerializeToString()


def context(session_id: str) -> bytes:
    """A context of the newest turns within the budget."""
    return agent_session_service_pb2.GetContextRequest(
        session_id=session_id, max_tokens=BUDGET
    ).SerializeToString()


def bare(session_id: str) -> bytes:
    """A request of the same size to a bare handler."""
    return session_id.ljust(64).encode() + CONTENT.encode()


def kind(name: str, service: str, baselines: str, sessions: list[str]) -> Kind:
    """A kind by its name: append, context, floor, reference or memory."""
    what = name.partition("@")[0]
    if what == "append":
        return Kind(name, service, f"{AGENT}/AppendTurn", [append(each) for each in sessions])
    if what == "context":
        return Kind(name, service, f"{AGENT}/GetContext", [context(each) for each in sessions])
    method = f"/{SERVICE}/{what.capitalize()}"
    return Kind(name, baselines, method, [bare(each) for each in sessions])


def latency(kinds: list[Kind], rounds: int) -> dict[str, list[float]]:
    """Latencies in s of each kind, one call of each after the other."""
    found: dict[str, list[float]] = {each.name: [] for each in kinds}
    channels = {target: grpc.insecure_channel(target) for target in {k.target for k in kinds}}
    for channel in channels.values():
        grpc.channel_ready_future(channel).result(timeout=30)
    # Raw bytes: per call only the request id is built, and nothing is parsed.
    calls: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {
        each.name: channels[each.target].unary_unary(each.method) for each in kinds
    }
    for number in range(-20, rounds):
        for each in kinds:
            request = _fresh(each.requests[number % len(each.requests)])
            began = time.perf_counter()
            calls[each.name](request, timeout=60)
            if number >= 0:
                found[each.name].append(time.perf_counter() - began)
    for channel in channels.values():
        channel.close()
    return found


def rate(kind: Kind, window: int, seconds: float) -> Tally:
    """Keep `window` calls in flight for `seconds`."""
    tally = Tally()
    slots = threading.Semaphore(window)

    with grpc.insecure_channel(kind.target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(kind.method)
        grpc.channel_ready_future(channel).result(timeout=30)
        until = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < until:
            slots.acquire()
            request = _fresh(kind.requests[number % len(kind.requests)])
            number += 1
            began = time.perf_counter()

            def done(future: grpc.Future[bytes], began: float = began) -> None:
                if future.exception() is None:
                    tally.latencies.append(time.perf_counter() - began)
                else:
                    tally.errors += 1
                slots.release()

            call.future(request, timeout=60).add_done_callback(done)
        for _ in range(window):
            slots.acquire()
    return tally


def _fresh(request: bytes) -> bytes:
    return request.replace(PLACE, str(uuid.uuid4()).encode())


def main() -> int:
    """Run the load that the JSON on standard input describes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("latency", "rate"))
    mode = parser.parse_args().mode
    given = json.load(sys.stdin)
    kinds = [
        kind(name, given["service"], given["baselines"], sessions)
        for name, sessions in given["kinds"].items()
    ]
    if mode == "latency":
        print(json.dumps(latency(kinds, given["rounds"])))
        return 0
    tally = rate(kinds[0], given["window"], given["seconds"])
    print(json.dumps({"latencies": tally.latencies, "errors": tally.errors}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
