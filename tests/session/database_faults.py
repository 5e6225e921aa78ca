"""Helpers of the database tests: a faulty network to the database, and checks of the calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import grpc
import grpc.aio
import psycopg
from grpc_health.v1 import health_pb2

from local.netfault import NetFault
from roost.agent.v1 import agent_session_pb2, agent_session_service_pb2
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from tests.container.harness import read_failure
from tests.session.harness import TIMEOUT, Replica, request_id, world

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from local.fly.emulator import Emulator
    from tests.session.harness import World

T = TypeVar("T")
agent_pb = agent_session_service_pb2
#: The shortest deadline that a caller should set, in s: a call that fails must fail before it. Here
#: that is measured, in time without pauses; the calls' own deadline is longer (TIMEOUT).
DEADLINE = 8.0
#: The longest time from the end of a fault until a call succeeds, in s without pauses.
HEALED = 8.0
#: A pause of the event loop that is longer than this, in s, is one of the machine.
PAUSE = 0.1
STOPWATCH = "stopwatch"
#: Task names of a replica's loops. None of them may end while the replica runs.
LOOPS = frozenset(
    (
        *("notices", "retention", "sweep", "reconcile", "health"),
        *("agent-listen", "agent-poll", "agent-notify", "agent-index", "agent-retention"),
    )
)


@asynccontextmanager
async def fronted(url: str) -> AsyncGenerator[tuple[NetFault, str]]:
    """A TCP relay before the database, and the database's address through it."""
    parts = urlsplit(url)
    assert parts.port is not None
    async with NetFault(parts.port, parts.hostname or "127.0.0.1") as fault:
        login = parts.netloc.rpartition("@")[0]
        through = parts._replace(netloc=f"{login}@127.0.0.1:{fault.port}")
        yield fault, urlunsplit(through)


@asynccontextmanager
async def behind(
    emulator: Emulator, url: str, **more: Any
) -> AsyncGenerator[tuple[World, NetFault]]:
    """Two replicas behind a relay. Any: fields of their configuration."""
    async with AsyncExitStack() as stack:
        fault, through = await stack.enter_async_context(fronted(url))
        roost = await stack.enter_async_context(world(emulator, through, **more))
        # Runs before the servers close, so that their connections work then.
        stack.callback(fault.clear)
        yield roost, fault


class Stopwatch:
    """Measures time without the pauses in which a busy machine let this process not run.

    The limits under test are times of the service, which runs in this process, and which a pause
    stops too.
    """

    def __init__(self) -> None:
        self._began = self._last = monotonic()
        self._paused = 0.0
        self._ticks = asyncio.create_task(self._tick(), name=STOPWATCH)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(PAUSE)
            self._note()

    def _note(self) -> None:
        last, self._last = self._last, monotonic()
        self._paused += max(0.0, self._last - last - 2 * PAUSE)

    async def stop(self) -> float:
        """The time since it was made, in s."""
        self._note()
        took = self._last - self._began
        self._ticks.cancel()
        await asyncio.wait({self._ticks})
        return took - self._paused


@dataclass
class Calls:
    """Counts calls that fail during an outage, and checks their errors against the contract."""

    failed: int = 0
    longest: float = 0.0
    """Duration of the slowest failed call, in s without pauses."""

    async def once(self, call: Awaitable[T]) -> T | None:
        """The call's answer; None if it is UNAVAILABLE with a delay. Any other error fails."""
        watch = Stopwatch()
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            failure = read_failure(error)
            took = await watch.stop()
            seen = (failure.code, failure.reason, failure.message, took)
            assert failure.code is grpc.StatusCode.UNAVAILABLE, seen
            assert failure.reason == "STORAGE_UNAVAILABLE", seen
            assert failure.retry_seconds, seen
            self.failed += 1
            self.longest = max(self.longest, took)
            return None
        finally:
            await watch.stop()

    async def until_answered(self, call: Callable[[], Awaitable[T]], patience: float = 60.0) -> T:
        """The answer of a call that is repeated while it is UNAVAILABLE, as the contract says."""
        until = monotonic() + patience
        while monotonic() < until:
            answer = await self.once(call())
            if answer is not None:
                return answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"no answer in {patience} s")


@dataclass
class Talk:
    """An agent session; each turn is appended with its own request id."""

    stub: AgentSessionServiceStub
    session_id: str
    acknowledged: list[int] = field(default_factory=list)
    said: int = 0

    async def begin(self) -> None:
        """CreateAgentSession."""
        request = agent_pb.CreateAgentSessionRequest(agent_role="ceo", session_id=self.session_id)
        await self.stub.CreateAgentSession(request, timeout=TIMEOUT)

    async def say(self, calls: Calls, data: bytes = b"") -> None:
        """AppendTurn, repeated with the same request id until it is acknowledged. `data`: an
        attachment.
        """
        self.said += 1
        message = agent_session_pb2.Message(role="user", content=f"turn {self.said}", tokens=1)
        if data:
            message.parts.add(mime_type="application/octet-stream", data=data)
        request = agent_pb.AppendTurnRequest(
            session_id=self.session_id, messages=[message], request_id=request_id()
        )
        answer = await calls.until_answered(lambda: self.stub.AppendTurn(request, timeout=TIMEOUT))
        self.acknowledged.append(answer.turn.turn_number)

    async def contents(self) -> list[str]:
        """The content of each stored turn, in order."""
        request = agent_pb.ListTurnsRequest(session_id=self.session_id, page_size=1000)
        page = await self.stub.ListTurns(request, timeout=TIMEOUT)
        return [turn.messages[0].content for turn in page.turns]

    async def check(self) -> None:
        """Assert that the acknowledged turns are stored, once each, in order, and no others."""
        assert self.acknowledged == list(range(1, self.said + 1))
        assert await self.contents() == [f"turn {number}" for number in self.acknowledged]


async def begin_talk(replica: Replica, session_id: str) -> Talk:
    """Create an agent session at this replica."""
    talk = Talk(AgentSessionServiceStub(replica.channel), session_id)
    await talk.begin()
    return talk


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    """The rows of a query. Any: columns of every type."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(query.encode())
        return await cursor.fetchall() if cursor.description else []


async def check_rows(url: str) -> None:
    """Assert that rows which are written in one commit are all there, or none of them."""
    assert not await rows(
        url,
        """
        SELECT s.session_id, s.state, s.event_sequence, count(e.sequence)
        FROM sessions s LEFT JOIN session_events e USING (session_id) GROUP BY s.session_id
        HAVING count(e.sequence) <> s.event_sequence
            OR (array_agg(e.state ORDER BY e.sequence DESC))[1] IS DISTINCT FROM s.state
        """,
    ), "a session without its events"
    assert not await rows(
        url,
        "SELECT s.session_id FROM sessions s LEFT JOIN containers c"
        " USING (session_id, generation) WHERE c.session_id IS NULL",
    ), "a session without its container"
    assert not await rows(
        url,
        "SELECT decision_id FROM decisions WHERE finish_time IS NULL AND decision_id NOT IN"
        " (SELECT decision_id FROM sessions WHERE decision_id IS NOT NULL)",
    ), "an unfinished decision without a transition"


async def health(replica: Replica) -> int:
    """The serving status in the answer of the health service."""
    check = replica.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
    return int(answer.status)


def running_tasks() -> int:
    """The number of tasks in this process, without the relay's and gRPC's own."""
    own = ("NetFault", "_Link", "Event.wait", "AioServer", STOPWATCH)
    return sum(not any(name in repr(task) for name in own) for task in asyncio.all_tasks())


def check_loops(replicas: int) -> None:
    """Assert that every loop of `replicas` replicas in this process still runs."""
    names = Counter(task.get_name() for task in asyncio.all_tasks() if not task.done())
    ended = {name for name in LOOPS if names[name] < replicas}
    assert not ended, f"ended: {ended}"
