"""Readers that never read: what they cost, and when their streams end."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import psutil
import pytest

from local.ports import HOST, free_port
from roost.agent.v1 import agent_session_pb2
from roost.agent.v1 import agent_session_service_pb2 as pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from roost.container.v1 import container_service_pb2 as container_pb
from tests.container.harness import read_failure, serving
from tests.container.state_calls import capturing, http, served
from tests.eventually import eventually
from tests.session.harness import world
from tests.session.test_process import launch, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from local.fly.emulator import Emulator
    from tests.service_processes import Forked

TIMEOUT = 60.0
#: How long a stream may be unread, in s. All readers of a test come to a halt in that time.
PATIENCE = 2.0
TURNS, TURN_BYTES = 160, 32 * 1024


async def fill(channel: grpc.aio.Channel) -> None:
    """One agent session of 5 MB."""

    async def records() -> AsyncIterator[pb.ImportAgentSessionsRequest]:
        session = agent_session_pb2.AgentSession(session_id="long", agent_role="ceo")
        record = agent_session_pb2.AgentSessionRecord(session=session)
        yield pb.ImportAgentSessionsRequest(record=record)
        for number in range(1, TURNS + 1):
            turn = agent_session_pb2.Turn(turn_number=number)
            turn.messages.add(role="user", content="x" * TURN_BYTES)
            line = agent_session_pb2.SessionTurn(session_id="long", turn=turn)
            record = agent_session_pb2.AgentSessionRecord(turn=line)
            yield pb.ImportAgentSessionsRequest(record=record)

    stub = AgentSessionServiceStub(channel)
    report = await stub.ImportAgentSessions(records(), timeout=TIMEOUT)
    assert report.imported_turn_count == TURNS


def streams(channel: grpc.aio.Channel) -> tuple[Any, Any]:
    """An export and a watch of all that `fill` wrote, both unread."""
    stub = AgentSessionServiceStub(channel)
    watched = pb.WatchTurnsRequest(session_id="long", after_turn=0)
    return (
        stub.ExportAgentSessions(pb.ExportAgentSessionsRequest(), timeout=3 * TIMEOUT),
        stub.WatchTurns(watched, timeout=3 * TIMEOUT),
    )


async def ended_unread(metrics: str, client: httpx.AsyncClient) -> int:
    """How many streams have ended because nobody read them."""
    text = (await client.get(f"http://{metrics}/metrics", timeout=TIMEOUT)).text
    counts = re.findall(r'^roost_refusals_total{.*"STREAM_NOT_READ".*} (\S+)$', text, re.MULTILINE)
    return round(sum(map(float, counts)))


@asynccontextmanager
async def own_channels(target: str, count: int) -> AsyncGenerator[list[grpc.aio.Channel]]:
    """Channels with a connection each, as different clients have. Their windows do not grow: on a
    busy machine they sometimes grow so far that they take all that there is.
    """
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0))
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=options))
            for _ in range(count)
        ]


READERS = 15
#: What a stream of such a reader may cost, in bytes: 4 to 7 MB before there was a limit.
COST = 1_500_000


async def test_a_reader_that_never_reads_costs_little_and_is_let_go(database_url: str) -> None:
    """Its stream keeps what one read of the database gave, and ends by itself."""
    target, metrics = f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"
    settings = {
        "ROOST_SESSION_LISTEN": target,
        "ROOST_METRICS_LISTEN": metrics,
        "ROOST_READER_PATIENCE": str(PATIENCE),
    }

    async def patient(**environment: str) -> Forked:
        return await launch(**environment | settings)

    async with (
        running(database_url, f"{HOST}:9", patient) as (process, channel),
        httpx.AsyncClient(trust_env=False) as client,
    ):
        await fill(channel)
        memory = psutil.Process(process.pid).memory_info
        for stream in streams(channel):
            # A whole stream each first, so that what the first of a kind costs is not counted.
            seen = 0
            with suppress(grpc.aio.AioRpcError):
                async for _ in stream:
                    seen += 1
                    if seen == TURNS:
                        break
            stream.cancel()
        # On a busy machine one of those may have been taken for unread.
        ended_before = await ended_unread(metrics, client)
        before = most = memory().rss
        async with own_channels(target, READERS) as channels:
            unread = [stream for each in channels for stream in streams(each)]

            async def all_ended() -> bool:
                nonlocal most
                most = max(most, memory().rss)
                return await ended_unread(metrics, client) - ended_before == len(unread)

            assert await eventually(all_ended, timeout=TIMEOUT, interval=0.1)
            print(f"{(most - before) / len(unread) / 1e6:.2f} MB a reader")
            assert most - before < COST * len(unread)
            with pytest.raises(grpc.aio.AioRpcError) as error:
                async for _ in unread[0]:
                    pass
            failure = read_failure(error.value)
            assert (failure.code, failure.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "STREAM_NOT_READ",
            )
            assert failure.retry_seconds


#: Sends without end, and notes in a file that it could not go on.
ENDLESS = """
say(b"HTTP/1.1 200 OK\\r\\ntransfer-encoding: chunked\\r\\n\\r\\n")
try:
    while True:
        say(b"10000\\r\\n" + b"x" * 65536 + b"\\r\\n")
except OSError:
    open("broken", "w").close()
    raise
"""


async def test_an_unread_capture_lets_its_container_go(emulator: Emulator) -> None:
    """The connection to the application was held for as long as the reader's connection lived."""
    async with serving(emulator, reader_patience=PATIENCE) as service:
        container_id = await served(service, ENDLESS)
        unread = capturing(service, container_id, http(), timeout=TIMEOUT)

        async def broken() -> bool:
            request = container_pb.ExecContainerRequest(
                container_id=container_id, command=["test", "-e", "broken"]
            )
            done = await service.stub.ExecContainer(request, timeout=TIMEOUT)
            return bool(done.exit_code == 0)

        assert await eventually(broken, timeout=TIMEOUT, interval=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            async for _ in unread:
                pass
        failure = read_failure(error.value)
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_NOT_READ")


async def test_a_stream_with_nothing_to_say_is_not_an_unread_one(
    emulator: Emulator, database_url: str
) -> None:
    """It lasts for longer than a stream may be unread."""
    async with world(emulator, database_url, 1, reader_patience=0.2) as roost:
        stub = AgentSessionServiceStub(roost.one.channel)
        create = pb.CreateAgentSessionRequest(session_id="quiet", agent_role="ceo")
        await stub.CreateAgentSession(create, timeout=TIMEOUT)
        watch: Any = stub.WatchTurns(pb.WatchTurnsRequest(session_id="quiet"), timeout=TIMEOUT)
        await watch.initial_metadata()
        reading = asyncio.ensure_future(watch.read())
        done, _ = await asyncio.wait({reading}, timeout=1)
        assert not done
        append = pb.AppendTurnRequest(session_id="quiet")
        append.messages.add(role="user", content="at last")
        await stub.AppendTurn(append, timeout=TIMEOUT)
        assert (await reading).turn.messages[0].content == "at last"
        watch.cancel()
