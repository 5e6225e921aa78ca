"""roost.agent.v1.AgentSessionService: parse, call, render."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.agent.v1 import agent_session_service_pb2 as pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceServicer
from session_service.agents.dumps import Import, export
from session_service.domain.session import DEFAULT_TENANT
from session_service.rpc import agent_convert as convert
from session_service.rpc import agent_listings as listings
from session_service.rpc import agent_render as render
from session_service.rpc import agent_searches as searches
from session_service.rpc import agent_streams as streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from session_service.agents.branching import Branching
    from session_service.agents.conversations import Conversations
    from session_service.agents.figures import Figures
    from session_service.agents.turns import Conversing
    from session_service.agents.watching import Watching
    from session_service.storage.database import Database

# Any: the generated base leaves the context's own parameters open.
Context = grpc.aio.ServicerContext[Any, Any]

#: Until calls are authenticated, everybody is of the one tenant.
TENANT = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class AgentCases:
    """What the servicer calls, and the idle time-out of sessions that ask for none."""

    conversations: Conversations
    turns: Conversing
    branching: Branching
    watching: Watching
    figures: Figures
    database: Database
    idle_timeout: timedelta | None


class AgentServicer(AgentSessionServiceServicer):
    """Answers the contract; the work is the use cases'."""

    def __init__(self, cases: AgentCases) -> None:
        self._cases = cases

    async def CreateAgentSession(
        self, request: pb.CreateAgentSessionRequest, context: Context
    ) -> pb.CreateAgentSessionResponse:
        """Begin a conversation."""
        parsed = convert.parse_create(request, TENANT, self._cases.idle_timeout)
        made = await self._cases.conversations.create(*parsed)
        return pb.CreateAgentSessionResponse(agent_session=render.session(made))

    async def AppendTurn(
        self, request: pb.AppendTurnRequest, context: Context
    ) -> pb.AppendTurnResponse:
        """Append a turn."""
        wanted = convert.parse_append(request, TENANT)
        return render.appended(await self._cases.turns.append(wanted))

    async def GetAgentSession(
        self, request: pb.GetAgentSessionRequest, context: Context
    ) -> pb.GetAgentSessionResponse:
        """Read one session."""
        session_id = convert.parse_id(request.session_id)
        found = await self._cases.conversations.get(TENANT, session_id, context=True)
        return pb.GetAgentSessionResponse(agent_session=render.session(found))

    async def ListAgentSessions(
        self, request: pb.ListAgentSessionsRequest, context: Context
    ) -> pb.ListAgentSessionsResponse:
        """List sessions, a page at a time."""
        wanted = listings.parse_sessions(request, TENANT)
        rows = await self._cases.conversations.page(
            TENANT, wanted.filter, wanted.after, wanted.size + 1, descending=wanted.descending
        )
        return listings.render_sessions(rows, wanted)

    async def ListTurns(
        self, request: pb.ListTurnsRequest, context: Context
    ) -> pb.ListTurnsResponse:
        """List a session's turns, a page at a time."""
        wanted = listings.parse_turns(request, TENANT)
        found = await self._cases.turns.page(
            TENANT,
            wanted.session_id,
            wanted.position,
            size=wanted.size,
            max_bytes=convert.REPLY_BYTES,
            descending=wanted.descending,
        )
        return listings.render_turns(found, wanted)

    async def GetContext(
        self, request: pb.GetContextRequest, context: Context
    ) -> pb.GetContextResponse:
        """Read what to give to the model."""
        session_id, budget = convert.parse_context(request)
        found = await self._cases.turns.context(TENANT, session_id, budget)
        return render.context(found, estimates=budget.estimates_count)

    async def EndAgentSession(
        self, request: pb.EndAgentSessionRequest, context: Context
    ) -> pb.EndAgentSessionResponse:
        """End a conversation."""
        ended = await self._cases.conversations.end(*convert.parse_end(request, TENANT))
        return pb.EndAgentSessionResponse(agent_session=render.session(ended))

    async def UndeleteAgentSession(
        self, request: pb.UndeleteAgentSessionRequest, context: Context
    ) -> pb.UndeleteAgentSessionResponse:
        """Bring a session back."""
        named = convert.parse_named(request, "UndeleteAgentSession", TENANT)
        back = await self._cases.conversations.undelete(*named)
        return pb.UndeleteAgentSessionResponse(agent_session=render.session(back))

    async def WatchTurns(
        self, request: pb.WatchTurnsRequest, context: Context
    ) -> AsyncIterator[pb.WatchTurnsResponse]:
        """Stream turns as they are appended."""
        wanted = streams.parse_watch(request)
        async with aclosing(self._cases.watching.watch(TENANT, *wanted)) as events:
            async for event in events:
                yield streams.render_event(event)

    async def ForkAgentSession(
        self, request: pb.ForkAgentSessionRequest, context: Context
    ) -> pb.ForkAgentSessionResponse:
        """Begin another conversation that shares this one's past."""
        fork = convert.parse_fork(request, TENANT)
        made = await self._cases.branching.fork(
            fork.request, fork.session_id, fork.at_turn, fork.new_session_id, fork.labels
        )
        return pb.ForkAgentSessionResponse(agent_session=render.session(made))

    async def RewindAgentSession(
        self, request: pb.RewindAgentSessionRequest, context: Context
    ) -> pb.RewindAgentSessionResponse:
        """Go back to a turn."""
        done = await self._cases.branching.rewind(*convert.parse_rewind(request, TENANT))
        return pb.RewindAgentSessionResponse(
            agent_session=render.session(done.session), set_aside_branch_id=done.branch_id or 0
        )

    async def UndoRewind(
        self, request: pb.UndoRewindRequest, context: Context
    ) -> pb.UndoRewindResponse:
        """Take the last rewind back."""
        named = convert.parse_named(request, "UndoRewind", TENANT)
        done = await self._cases.branching.undo(*named)
        return pb.UndoRewindResponse(
            agent_session=render.session(done.session), set_aside_branch_id=done.branch_id or 0
        )

    async def SearchTurns(
        self, request: pb.SearchTurnsRequest, context: Context
    ) -> pb.SearchTurnsResponse:
        """Find messages by their words."""
        wanted = searches.parse_search(request, TENANT)
        found = await self._cases.figures.search(wanted.search)
        return searches.render_search(found, wanted)

    async def GetAgentStats(
        self, request: pb.GetAgentStatsRequest, context: Context
    ) -> pb.GetAgentStatsResponse:
        """Count what sessions have done."""
        rows = await self._cases.figures.stats(TENANT, *searches.parse_stats(request))
        return searches.render_stats(rows)

    async def ImportAgentSessions(
        self, request_iterator: AsyncIterator[pb.ImportAgentSessionsRequest], context: Context
    ) -> pb.ImportAgentSessionsResponse:
        """Take a dump in."""
        importing = Import(self._cases.database, TENANT)
        number = 0
        async for request in request_iterator:
            number += 1
            await streams.take(importing, number, request.record)
        return streams.render_report(await importing.finish())

    async def ExportAgentSessions(
        self, request: pb.ExportAgentSessionsRequest, context: Context
    ) -> AsyncIterator[pb.ExportAgentSessionsResponse]:
        """Give a dump out."""
        wanted = streams.parse_export(request)
        async with aclosing(export(self._cases.database, TENANT, wanted)) as records:
            async for record in records:
                yield streams.render_record(record)
