"""The server is killed during appends: every acknowledged turn is there, once, in order.

ROOST_KILLS says how often: 3 where it is not set.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from local.ports import free_port
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from tests.agent.harness import request_id, said
from tests.agent.processes import Service, service
from tests.paging import pages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

KILLS = int(os.environ.get("ROOST_KILLS", "3"))
LOOPS = 32
SESSIONS = 8
RETRY = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})
#: A channel that reconnects soon.
OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 200),
)


class Writer:
    """Appends one turn after the other, each under an id that its repeats keep."""

    def __init__(self, target: str, number: int) -> None:
        self.session_id = f"s{number % SESSIONS}"
        self.number = number
        self.acknowledged: list[tuple[str, int]] = []
        self.repeats = 0
        self._target = target

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop` is set."""
        async with grpc.aio.insecure_channel(self._target, options=OPTIONS) as channel:
            stub = AgentSessionServiceStub(channel)
            while not stop.is_set():
                text = f"{self.number}:{len(self.acknowledged)}"
                request = rpc_pb.AppendTurnRequest(
                    request_id=request_id(),
                    session_id=self.session_id,
                    messages=[said(text, tokens=self.number + 1)],
                )
                self.acknowledged.append((text, await self._insist(stub, request)))

    async def _insist(
        self, stub: AgentSessionServiceStub, request: rpc_pb.AppendTurnRequest
    ) -> int:
        while True:
            try:
                done = await stub.AppendTurn(request, timeout=5)
            except grpc.aio.AioRpcError as error:
                assert error.code() in RETRY, error
                self.repeats += 1
                await asyncio.sleep(0.02)
            else:
                return done.turn.turn_number

    async def check(self, stored: dict[int, str]) -> None:
        """Each acknowledged turn is where it was said to be, and they are in order."""
        assert [stored[number] for _, number in self.acknowledged] == [
            text for text, _ in self.acknowledged
        ]
        numbers = [number for _, number in self.acknowledged]
        assert numbers == sorted(set(numbers))


@pytest.fixture
async def running(database_url: str) -> AsyncGenerator[Service]:
    """The process."""
    async with service(database_url, f"127.0.0.1:{free_port()}") as running:
        yield running


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
async def test_no_kill_loses_doubles_or_reorders_a_turn(running: Service) -> None:
    channel = grpc.aio.insecure_channel(running.target, options=OPTIONS)
    stub = AgentSessionServiceStub(channel)
    for number in range(SESSIONS):
        request = rpc_pb.CreateAgentSessionRequest(agent_role="ceo", session_id=f"s{number}")
        await stub.CreateAgentSession(request, timeout=30)
    stop = asyncio.Event()
    writers = [Writer(running.target, number) for number in range(LOOPS)]
    async with asyncio.TaskGroup() as group:
        for writer in writers:
            group.create_task(writer.run(stop))
        for _ in range(KILLS):
            await progress(writers)
            await running.kill()
            await running.start()
        await progress(writers)
        stop.set()
    count = 0
    for number in range(SESSIONS):
        count += await check_session(stub, f"s{number}", writers)
    print(f"{KILLS} kills, {count} turns, {sum(w.repeats for w in writers)} repeats")
    assert sum(writer.repeats for writer in writers) >= KILLS
    await channel.close()


async def progress(writers: list[Writer]) -> None:
    """Wait until every writer has got two turns further."""
    goals = [len(writer.acknowledged) + 2 for writer in writers]
    async with asyncio.timeout(30):
        pairs = list(zip(writers, goals, strict=True))
        # Another process's progress: it has no event to wait for.
        while any(len(writer.acknowledged) < goal for writer, goal in pairs):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def check_session(
    stub: AgentSessionServiceStub, session_id: str, writers: list[Writer]
) -> int:
    """Every turn is there once, without a gap, and the totals are true; how many there are."""
    stored: dict[int, str] = {}
    tokens = 0
    request = rpc_pb.ListTurnsRequest(session_id=session_id, page_size=500)
    async for page in pages(stub.ListTurns, request):
        stored |= {turn.turn_number: turn.messages[0].content for turn in page.turns}
        tokens += sum(turn.tokens for turn in page.turns)
    assert sorted(stored) == list(range(1, len(stored) + 1))
    assert len(set(stored.values())) == len(stored)
    mine = [writer for writer in writers if writer.session_id == session_id]
    for writer in mine:
        await writer.check(stored)
    # Every stored turn was acknowledged in the end: each writer repeated its last append.
    assert sum(len(writer.acknowledged) for writer in mine) == len(stored)
    get = rpc_pb.GetAgentSessionRequest(session_id=session_id)
    session = (await stub.GetAgentSession(get, timeout=30)).agent_session
    assert (session.turn_count, session.total_tokens) == (len(stored), tokens)
    return len(stored)


@pytest.mark.slow
async def test_another_process_continues_where_the_first_one_stopped(running: Service) -> None:
    """The fault that this service ends: session_not_found in the next run."""
    async with grpc.aio.insecure_channel(running.target) as first:
        stub = AgentSessionServiceStub(first)
        create = rpc_pb.CreateAgentSessionRequest(agent_role="ceo")
        session = (await stub.CreateAgentSession(create, timeout=30)).agent_session
        append = rpc_pb.AppendTurnRequest(
            session_id=session.session_id, messages=[said("Plan?", tokens=793)]
        )
        assert (await stub.AppendTurn(append, timeout=30)).turn.turn_number == 1
    await running.kill()
    await running.start()
    async with grpc.aio.insecure_channel(running.target) as second:
        stub = AgentSessionServiceStub(second)
        append = rpc_pb.AppendTurnRequest(
            session_id=session.session_id, messages=[said("And?", tokens=207)]
        )
        done = await stub.AppendTurn(append, timeout=30)
        assert (done.turn.turn_number, done.agent_session.total_tokens) == (2, 1000)
