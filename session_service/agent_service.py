"""The composition of agent sessions: builds their use cases and puts them onto the server."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_service_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2_grpc as rpc
from session_service import janitor, loops
from session_service.agents.branching import Branching
from session_service.agents.conversations import Conversations
from session_service.agents.figures import Figures
from session_service.agents.turns import Conversing
from session_service.agents.watching import Watching
from session_service.rpc.agent_servicer import AgentCases, AgentServicer
from session_service.storage import agent_indexing
from session_service.storage.agent_changes import Changes

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    import grpc.aio

    from session_service.config import Config
    from session_service.storage.database import Database

SERVICE = pb.DESCRIPTOR.services_by_name["AgentSessionService"].full_name
#: The indexer begins so soon after an append, in s, and looks so often for what others left.
INDEX_REST = 1.0
INDEX_EVERY = 10.0


async def add(
    stack: AsyncExitStack, server: grpc.aio.Server, config: Config, database: Database
) -> Callable[[], None]:
    """Let the server answer the agent service's calls; the stack ends what runs behind them.

    What is returned ends the streams that would go on for ever: call it before the server stops.
    """
    changes = Changes(config.database_url, database)
    unindexed = asyncio.Event()

    def changed(tenant: str, session_id: str) -> None:
        changes.changed(tenant, session_id)
        unindexed.set()

    conversations = Conversations(database, config.agent_retention, changed)
    cases = AgentCases(
        conversations=conversations,
        turns=Conversing(database, changed),
        branching=Branching(database, conversations, changed),
        watching=Watching(database, changes),
        figures=Figures(database, config.search_language),
        database=database,
        idle_timeout=config.agent_idle_timeout,
    )
    rpc.add_AgentSessionServiceServicer_to_server(AgentServicer(cases), server)
    await stack.enter_async_context(changes.running())
    indexing = loops.running(
        "agent-index",
        lambda: agent_indexing.index(database, config.search_language),
        every=INDEX_EVERY,
        woken=unindexed,
        rest=INDEX_REST,
    )
    await stack.enter_async_context(indexing)
    sweeping = loops.running(
        "agent-janitor",
        lambda: janitor.sweep(database, config.agent_retention),
        every=config.janitor_interval.total_seconds(),
    )
    await stack.enter_async_context(sweeping)
    return changes.stop
