"""Shared by the tests of agent sessions: a server in this process, and a client of it."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc.aio

from grpc_edge.options import SERVER_OPTIONS
from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceStub
from session_service.config import Config
from session_service.rpc.interceptors import ErrorInterceptor
from session_service.server import agent_service
from session_service.server.agent_service import AgentSettings
from session_service.storage.database import Database
from tests.paging import pages

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

#: The deadline of a call, in s: more than any call here should take.
TIMEOUT = 30.0
#: The limits of waits for a connection and for an answer of the database, in s. On a busy machine
#: the product's own would refuse some of the hundreds of calls that these tests make at once.
DATABASE_PATIENCE = 20.0
#: The tests run the passes themselves: one between two steps of a test changes what it finds.
NO_HOUSEWORK = timedelta(days=1)
#: A search finds all matches, however slow the machine is.
SEARCH_PATIENCE = timedelta(minutes=10)


def said(content: str, role: str = "user", **fields: Any) -> pb.Message:
    """A message. Any: its other fields."""
    return pb.Message(role=role, content=content, **fields)


def request_id() -> str:
    """A new request id."""
    return str(uuid4())


@dataclass
class Replica:
    """A running agent service, and a client's view of it."""

    stub: AgentSessionServiceStub
    database: Database
    target: str
    retention: timedelta
    end_streams: Callable[[], None]

    async def create(self, agent_role: str = "ceo", **fields: Any) -> pb.AgentSession:
        """CreateAgentSession. Any: fields of the request."""
        request = rpc_pb.CreateAgentSessionRequest(agent_role=agent_role, **fields)
        return (await self.stub.CreateAgentSession(request, timeout=TIMEOUT)).agent_session

    async def append(
        self, session_id: str, *contents: str, tokens: int | None = 10, **fields: Any
    ) -> rpc_pb.AppendTurnResponse:
        """AppendTurn of messages of user and assistant in turn, each with `tokens` tokens."""
        if "messages" not in fields:
            fields["messages"] = [
                said(content, ("user", "assistant")[i % 2], tokens=tokens)
                for i, content in enumerate(contents)
            ]
        request = rpc_pb.AppendTurnRequest(session_id=session_id, **fields)
        return await self.stub.AppendTurn(request, timeout=TIMEOUT)

    async def get(self, session_id: str) -> pb.AgentSession:
        """GetAgentSession."""
        request = rpc_pb.GetAgentSessionRequest(session_id=session_id)
        return (await self.stub.GetAgentSession(request, timeout=TIMEOUT)).agent_session

    async def context(self, session_id: str, **fields: Any) -> rpc_pb.GetContextResponse:
        """GetContext."""
        request = rpc_pb.GetContextRequest(session_id=session_id, **fields)
        return await self.stub.GetContext(request, timeout=TIMEOUT)

    async def turns(self, session_id: str, **fields: Any) -> list[pb.Turn]:
        """All pages of ListTurns."""
        request = rpc_pb.ListTurnsRequest(session_id=session_id, **fields)
        return [turn async for page in pages(self.stub.ListTurns, request) for turn in page.turns]

    async def contents(self, session_id: str, **fields: Any) -> list[str]:
        """The first message of every turn."""
        return [turn.messages[0].content for turn in await self.turns(session_id, **fields)]

    async def fork(self, session_id: str, **fields: Any) -> pb.AgentSession:
        """ForkAgentSession. Any: fields of the request."""
        request = rpc_pb.ForkAgentSessionRequest(session_id=session_id, **fields)
        return (await self.stub.ForkAgentSession(request, timeout=TIMEOUT)).agent_session

    async def rewind(
        self, session_id: str, to_turn: int, **fields: Any
    ) -> rpc_pb.RewindAgentSessionResponse:
        """RewindAgentSession."""
        request = rpc_pb.RewindAgentSessionRequest(session_id=session_id, to_turn=to_turn, **fields)
        return await self.stub.RewindAgentSession(request, timeout=TIMEOUT)

    async def undo(self, session_id: str, **fields: Any) -> rpc_pb.UndoRewindResponse:
        """UndoRewind."""
        request = rpc_pb.UndoRewindRequest(session_id=session_id, **fields)
        return await self.stub.UndoRewind(request, timeout=TIMEOUT)

    async def end(self, session_id: str, **fields: Any) -> pb.AgentSession:
        """EndAgentSession."""
        request = rpc_pb.EndAgentSessionRequest(session_id=session_id, **fields)
        return (await self.stub.EndAgentSession(request, timeout=TIMEOUT)).agent_session

    async def undelete(self, session_id: str, **fields: Any) -> pb.AgentSession:
        """UndeleteAgentSession."""
        request = rpc_pb.UndeleteAgentSessionRequest(session_id=session_id, **fields)
        return (await self.stub.UndeleteAgentSession(request, timeout=TIMEOUT)).agent_session

    async def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        """The rows of a query on the database. Any: columns of every type."""
        async with self.database.connection() as connection:
            cursor = await connection.execute(query.encode(), params)
            return await cursor.fetchall() if cursor.description else []


def numbers(turns: Sequence[pb.Turn]) -> list[int]:
    """The turns' numbers."""
    return [turn.turn_number for turn in turns]


@asynccontextmanager
async def replica(
    database_url: str, settings: AgentSettings | None = None, **config_fields: Any
) -> AsyncGenerator[Replica]:
    """A server with the agent service alone, composed as `main` does, but more patient with the
    database, and without housework. Any: Config's fields.
    """
    config = Config(database_url=database_url, quiet=NO_HOUSEWORK, **config_fields)
    async with AsyncExitStack() as stack:
        patient = Database(
            database_url, max_size=8, timeout=DATABASE_PATIENCE, answer=DATABASE_PATIENCE
        )
        database = await stack.enter_async_context(patient)
        server = grpc.aio.server(interceptors=(ErrorInterceptor(),), options=SERVER_OPTIONS)
        port = server.add_insecure_port("127.0.0.1:0")
        settings = replace(settings or AgentSettings(), search_budget=SEARCH_PATIENCE)
        end_streams = await agent_service.add(stack, server, config, database, settings)
        await server.start()
        stack.push_async_callback(server.stop, 1.0)
        stack.callback(end_streams)
        target = f"127.0.0.1:{port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        stub = AgentSessionServiceStub(channel)
        yield Replica(stub, database, target, config.agent_retention, end_streams)
