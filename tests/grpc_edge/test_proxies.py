"""Behind nginx and HAProxy, with the settings that docs/production.md prints."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from roost.agent.v1 import agent_session_pb2
from roost.agent.v1 import agent_session_service_pb2 as agent_pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from roost.session.v1 import session_service_pb2 as pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceStub
from tests.container.harness import failing
from tests.grpc_edge.proxies import haproxy, nginx, printed
from tests.session.harness import key

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator
    from pathlib import Path

    from tests.session.harness import World

PROXIES = {"nginx": nginx, "haproxy": haproxy}
TIMEOUT = 30.0
#: In the long test: the proxies' time-out, which they print as 5 min, and the heartbeats' interval.
#: The difference is what a busy machine may take for one.
SILENCE, HEARTBEAT = 8, 1

#: The statuses of a stream that a proxy ends.
CUT = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)

pytestmark = pytest.mark.replicas(1)


@pytest.fixture(params=PROXIES)
def proxy(request: pytest.FixtureRequest) -> str:
    """Each of the proxies."""
    return str(request.param)


async def dump(bytes_: int) -> AsyncIterator[agent_pb.ImportAgentSessionsRequest]:
    """A dump of one session, with turns of so many bytes together."""
    session = agent_session_pb2.AgentSession(session_id="dumped", agent_role="ceo")
    record = agent_session_pb2.AgentSessionRecord(session=session)
    yield agent_pb.ImportAgentSessionsRequest(record=record)
    each = 100_000
    for number in range(1, bytes_ // each + 1):
        turn = agent_session_pb2.Turn(turn_number=number)
        turn.messages.add(role="user", content="x" * each)
        record = agent_session_pb2.AgentSessionRecord(
            turn=agent_session_pb2.SessionTurn(session_id="dumped", turn=turn)
        )
        yield agent_pb.ImportAgentSessionsRequest(record=record)


async def test_calls_imports_and_watches_pass_a_proxy(
    roost: World, proxy: str, tmp_path: Path
) -> None:
    """An import of more than 1 MiB, nginx's limit; the headers of a watch on which nothing comes;
    the details of a refusal.
    """
    target = roost.one.running.target
    async with (
        PROXIES[proxy](tmp_path, target, printed(proxy)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        agents = AgentSessionServiceStub(channel)
        report = await agents.ImportAgentSessions(dump(3_000_000), timeout=TIMEOUT)
        assert (report.imported_session_count, report.imported_turn_count) == (1, 30)
        request = agent_pb.WatchTurnsRequest(session_id="dumped")
        watch = agents.WatchTurns(request, timeout=TIMEOUT)
        await watch.initial_metadata()
        watch.cancel()
        sessions = SessionServiceStub(channel)
        find = sessions.FindLiveSession(pb.FindLiveSessionRequest(key=key()), timeout=TIMEOUT)
        assert (await failing(find)).reason == "SESSION_NOT_FOUND"


@pytest.mark.proof
@pytest.mark.timeout(180)
async def test_heartbeats_keep_a_silent_watch_alive_behind_a_proxy(
    roost: World, proxy: str, tmp_path: Path
) -> None:
    """For two of the proxy's time-outs. A watch without them ends after one, with an error."""
    settings = printed(proxy).replace("5m", f"{SILENCE}s")
    target = roost.one.running.target
    session = (await roost.one.start()).session
    async with (
        PROXIES[proxy](tmp_path, target, settings) as address,
        grpc.aio.insecure_channel(address) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        sessions, agents = SessionServiceStub(channel), AgentSessionServiceStub(channel)
        create = agent_pb.CreateAgentSessionRequest(session_id="quiet", agent_role="ceo")
        await agents.CreateAgentSession(create, timeout=TIMEOUT)
        interval = Duration(seconds=HEARTBEAT)

        async def lives(messages: AsyncIterable[object]) -> None:
            loop = asyncio.get_running_loop()
            until = loop.time() + 2 * SILENCE
            async for _ in messages:
                if loop.time() > until:
                    return
            raise AssertionError("it ended")

        events = pb.WatchSessionRequest(session_id=session.session_id, heartbeat_interval=interval)
        tasks.create_task(lives(sessions.WatchSession(events)))
        turns = agent_pb.WatchTurnsRequest(session_id="quiet", heartbeat_interval=interval)
        tasks.create_task(lives(agents.WatchTurns(turns)))
        silent = agents.WatchTurns(agent_pb.WatchTurnsRequest(session_id="quiet"))
        failure = await failing(silent.read())
        assert failure.code in CUT
        print(proxy, failure.code, failure.message)
