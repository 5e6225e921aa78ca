"""The load, as a process of its own: calls of one method with a bounded window, raw bytes only.

A new request id in every call; keys in turn. Run by `bench.starts`; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc

from roost.session.v1 import session_pb2, session_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

PLACE = str(uuid.UUID(int=0)).encode()


@dataclass
class Tally:
    """The results of the calls; latencies in s."""

    latencies: list[float] = field(default_factory=list)
    errors: int = 0


def bodies(kind: str, count: int) -> list[bytes]:
    """A request for each key; the request id is a placeholder."""
    if kind == "get":
        return [
            session_service_pb2.GetSessionRequest(
                session_id=str(uuid.UUID(int=number + 1))
            ).SerializeToString()
            for number in range(count)
        ]
    if kind == "floor":
        return [uuid.UUID(int=number + 1).bytes for number in range(count)]
    return [
        session_service_pb2.StartSessionRequest(
            request_id=PLACE.decode(),
            key=session_pb2.SessionKey(project_id=f"project-{number % 10}", user_id=f"u{number}"),
        ).SerializeToString()
        for number in range(count)
    ]


METHODS = {
    "floor": "/bench.Floor/Update",
    "start": "/roost.session.v1.SessionService/StartSession",
    "get": "/roost.session.v1.SessionService/GetSession",
}


def run(target: str, kind: str, keys: int, window: int, seconds: float) -> Tally:
    """Keep `window` calls in flight for `seconds`."""
    tally = Tally()
    slots = threading.Semaphore(window)
    requests = bodies(kind, keys)
    with grpc.insecure_channel(target) as channel:
        # Raw bytes: per call only the request id is built, and nothing is parsed.
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHODS[kind])
        grpc.channel_ready_future(channel).result(timeout=30)
        until = time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < until:
            slots.acquire()
            request = requests[number % keys].replace(PLACE, str(uuid.uuid4()).encode())
            number += 1
            began = time.perf_counter()
            future = call.future(request, timeout=30)
            future.add_done_callback(_done(tally, slots, began))
        for _ in range(window):
            slots.acquire()
    return tally


def _done(
    tally: Tally, slots: threading.Semaphore, began: float
) -> Callable[[grpc.Future[bytes]], None]:
    def done(future: grpc.Future[bytes]) -> None:
        if future.exception() is None:
            tally.latencies.append(time.perf_counter() - began)
        else:
            tally.errors += 1
        slots.release()

    return done


def main() -> int:
    """Run the load that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("kind", choices=sorted(METHODS))
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    began = time.perf_counter()
    tally = run(given.target, given.kind, given.keys, given.window, given.seconds)
    ordered = sorted(tally.latencies)
    print(
        json.dumps(
            {
                "calls": len(ordered),
                "errors": tally.errors,
                "seconds": time.perf_counter() - began,
                "p50": ordered[len(ordered) // 2] if ordered else 0.0,
                "p99": ordered[len(ordered) * 99 // 100] if ordered else 0.0,
                "cpu": time.process_time(),
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
