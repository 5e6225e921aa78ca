"""The composition of agent sessions: builds their use cases and puts them onto the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_service_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2_grpc as rpc
from session_service.agents.branching import Branching
from session_service.agents.conversations import Conversations
from session_service.agents.turns import Conversing
from session_service.rpc.agent_servicer import AgentCases, AgentServicer

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    import grpc.aio

    from session_service.config import Config
    from session_service.storage.database import Database

SERVICE = pb.DESCRIPTOR.services_by_name["AgentSessionService"].full_name


async def add(
    stack: AsyncExitStack, server: grpc.aio.Server, config: Config, database: Database
) -> None:
    """Let the server answer the agent service's calls; the stack ends what runs behind them."""
    conversations = Conversations(database, config.agent_retention)
    cases = AgentCases(
        conversations=conversations,
        turns=Conversing(database),
        branching=Branching(database, conversations),
        idle_timeout=config.agent_idle_timeout,
    )
    rpc.add_AgentSessionServiceServicer_to_server(AgentServicer(cases), server)
