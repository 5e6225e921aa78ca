"""A connection comes to an age, and nothing that runs on it is cut."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from roost.agent.v1 import agent_session_pb2
from roost.agent.v1 import agent_session_service_pb2 as agent_pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_service_pb2 as pb
from tests.container.harness import serving
from tests.container.state_calls import FILE, command
from tests.session.ageing import hold
from tests.session.harness import World, world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator

#: The age of connections, in s.
AGE = 1.0
TIMEOUT = 45.0
READY = grpc.ChannelConnectivity.READY


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """A replica whose connections do not get old."""
    async with world(emulator, database_url, 1, connection_age=AGE) as running:
        yield running


class Calls:
    """A caller in a closed loop, who sees when the channel's connection has come to its age."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel
        # Any: requests and answers are bytes.
        self._check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        self.turns = 0
        self.failures: list[grpc.aio.AioRpcError] = []

    async def turn(self) -> None:
        """Call until the connection has gone and there is another one."""
        await self._call()
        gone = asyncio.ensure_future(self._channel.wait_for_state_change(READY))
        while not gone.done():
            await self._call()
        await gone
        await self._call()
        self.turns += 1

    async def _call(self) -> None:
        # An error that is raised while a request is sent would only cancel that request.
        try:
            await self._check(b"", timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            self.failures.append(error)


def channel_to(target: str) -> grpc.aio.Channel:
    """A channel of its own. gRPC repeats a call by itself if the server says with the end of the
    connection that it has not seen it, and no other.
    """
    options = (("grpc.use_local_subchannel_pool", 1),)
    return grpc.aio.insecure_channel(target, options=options)


async def test_an_import_outlasts_two_ages_of_its_connection(roost: World) -> None:
    """Calls beside it on the same channel go to new connections."""
    async with channel_to(roost.one.running.target) as channel:
        calls = Calls(channel)

        async def records() -> AsyncIterator[agent_pb.ImportAgentSessionsRequest]:
            session = agent_session_pb2.AgentSession(session_id="long", agent_role="ceo")
            record = agent_session_pb2.AgentSessionRecord(session=session)
            yield agent_pb.ImportAgentSessionsRequest(record=record)
            for number in (1, 2):
                await calls.turn()
                turn = agent_session_pb2.Turn(turn_number=number)
                turn.messages.add(role="user", content="still here")
                record = agent_session_pb2.AgentSessionRecord(
                    turn=agent_session_pb2.SessionTurn(session_id="long", turn=turn)
                )
                yield agent_pb.ImportAgentSessionsRequest(record=record)

        stub = AgentSessionServiceStub(channel)
        report = await stub.ImportAgentSessions(records(), timeout=TIMEOUT)
    assert (report.imported_turn_count, calls.turns, calls.failures) == (2, 2, [])


async def test_a_transfer_of_state_outlasts_two_ages_of_its_connection(emulator: Emulator) -> None:
    """The same at container_service."""
    async with (
        serving(emulator, connection_age=AGE) as service,
        channel_to(service.target) as channel,
    ):
        container_id = await service.create()
        calls = Calls(channel)

        async def chunks() -> AsyncIterator[container_pb.RestoreStateRequest]:
            yield container_pb.RestoreStateRequest(
                container_id=container_id, state_hook=command(FILE)
            )
            for _ in range(2):
                await calls.turn()
                yield container_pb.RestoreStateRequest(chunk=b"still here")

        method = channel.stream_unary(
            "/roost.container.v1.ContainerService/RestoreState",
            request_serializer=container_pb.RestoreStateRequest.SerializeToString,
            response_deserializer=container_pb.RestoreStateResponse.FromString,
        )
        answer = await method(chunks(), timeout=TIMEOUT)
    assert (answer.bytes_written, calls.turns, calls.failures) == (20, 2, [])


async def test_watches_end_without_an_error_and_can_be_resumed(roost: World) -> None:
    """They begin anew on another connection, and nothing is lost."""
    session = (await roost.one.start()).session
    watch = pb.WatchSessionRequest(session_id=session.session_id)
    call = roost.one.stub.WatchSession(watch, timeout=TIMEOUT)
    seen = [message.sequence async for message in call]
    assert await call.code() == grpc.StatusCode.OK
    trailers = dict(await call.trailing_metadata())
    assert trailers["roost-after-sequence"] == str(seen[-1])
    await hold(roost.one, session.session_id)
    watch.after_sequence = seen[-1]
    call = roost.one.stub.WatchSession(watch, timeout=TIMEOUT)
    assert [message.sequence async for message in call] == [seen[-1] + 1]

    agents = AgentSessionServiceStub(roost.one.channel)
    create = agent_pb.CreateAgentSessionRequest(session_id="w", agent_role="ceo")
    await agents.CreateAgentSession(create, timeout=TIMEOUT)
    turns: Any = agents.WatchTurns(agent_pb.WatchTurnsRequest(session_id="w"), timeout=TIMEOUT)
    assert await turns.read() is grpc.aio.EOF
    assert await turns.code() == grpc.StatusCode.OK
    trailers = dict(await turns.trailing_metadata())
    append = agent_pb.AppendTurnRequest(session_id="w")
    append.messages.add(role="user", content="meanwhile")
    await agents.AppendTurn(append, timeout=TIMEOUT)
    again = agent_pb.WatchTurnsRequest(
        session_id="w",
        branch_id=int(trailers["roost-branch-id"]),
        after_turn=int(trailers["roost-after-turn"]),
    )
    turns = agents.WatchTurns(again, timeout=TIMEOUT)
    assert (await turns.read()).turn.messages[0].content == "meanwhile"
    turns.cancel()
