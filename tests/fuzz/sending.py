"""Send requests, and count how they end."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from tests.fuzz.requests import Fuzzer, Method, Request

#: Statuses that say that the server did not know what it did.
WRONG = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
#: What grpc.aio's client says when the server ends a stream between two of its own steps. The
#: status is lost.
LOST_BY_THE_CLIENT = "Internal error from Core"
#: The text of gRPC's client when the answer's trailers are longer than it accepts.
TRAILERS_TOO_LONG = "metadata size exceeds"
#: How long a call may take, in s, and how long one that waits for what does not happen.
TIMEOUT = 30.0
WAITING_TIMEOUT = 0.05
#: How many examples of a wrong status are kept.
EXAMPLES = 20


@dataclass
class Outcome:
    """How the requests ended."""

    codes: Counter[str] = field(default_factory=Counter)
    """By the name of the status."""
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By the kind of the request and the name of the status."""
    wrong: list[str] = field(default_factory=list)
    """A line for each of the first requests that ended as none should."""

    @property
    def count(self) -> int:
        """How many ended."""
        return self.codes.total()


def waits(method: Method) -> bool:
    """Whether the method may wait for an event."""
    return bool(method.server_streaming) or method.name.startswith("Wait")


class Sender:
    """Sends requests to the server of each method's service."""

    def __init__(self, channels: Mapping[str, grpc.aio.Channel]) -> None:
        """`channels` are by the full name of the service."""
        self._channels = channels
        #: Any: requests and answers are bytes.
        self._calls: dict[str, Any] = {}
        self.outcome = Outcome()

    async def send(self, request: Request) -> None:
        """Send one and count its end."""
        method = request.method
        code, details = "OK", ""
        try:
            await self._answered(request)
        except grpc.aio.AioRpcError as error:
            code, details = error.code().name, error.details() or ""
            if details == LOST_BY_THE_CLIENT:
                code = "(lost by the client)"
        outcome = self.outcome
        outcome.codes[code] += 1
        outcome.kinds[request.kind, code] += 1
        hung = code == "DEADLINE_EXCEEDED" and not waits(method)
        # The same text is right where the request's own headers were too long.
        lost = TRAILERS_TOO_LONG in details and request.kind != "headers"
        if (code in WRONG or hung or lost) and len(outcome.wrong) < EXAMPLES:
            data = [message[:300] for message in request.messages]
            outcome.wrong.append(f"{method.full_name} {request.kind}: {code} {details} for {data}")

    async def _answered(self, request: Request) -> None:
        method = request.method
        call = self._calls.get(method.full_name)
        if call is None:
            call = self._calls[method.full_name] = self._call_of(method)
        sent: Any = _each(request) if method.client_streaming else request.messages[0]
        timeout = WAITING_TIMEOUT if waits(method) else TIMEOUT
        running = call(sent, timeout=timeout, metadata=request.metadata or None)
        if method.server_streaming:
            async for _ in running:
                pass
        else:
            await running

    def _call_of(self, method: Method) -> Any:
        service = method.containing_service.full_name
        kinds = ("unary", "stream")
        kind = f"{kinds[method.client_streaming]}_{kinds[method.server_streaming]}"
        return getattr(self._channels[service], kind)(f"/{service}/{method.name}")


async def _each(request: Request) -> AsyncIterator[bytes]:
    for message in request.messages:
        yield message


async def send_all(
    fuzzer: Fuzzer,
    sender: Sender,
    count: int,
    at_once: int,
    watch: Callable[[int], None] = lambda _: None,
) -> None:
    """Send `count` requests, `at_once` at the same time. `watch` is called with the number of each
    request, before it.
    """
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            watch(number)
            await sender.send(fuzzer.next())

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
