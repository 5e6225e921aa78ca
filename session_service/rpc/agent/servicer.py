"""roost.agent.v1.AgentSessionService: each call parses, calls a use case, renders."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.agent.v1 import agent_session_service_pb2 as pb
from roost.agent.v1.agent_session_service_pb2_grpc import AgentSessionServiceServicer
from session_service.agents.dumps import Import, export
from session_service.agents.watch import Quiet
from session_service.domain.session import DEFAULT_TENANT
from session_service.pace import Pace
from session_service.rpc.agent import listings, parse, render, streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import timedelta

    from session_service.agents.branches import Branches
    from session_service.agents.conversations import Conversations
    from session_service.agents.turns import Turns
    from session_service.agents.watch import Watch
    from session_service.storage.database import Database

# Any: the generated base leaves the context's own parameters open.
Context = grpc.aio.ServicerContext[Any, Any]

#: Calls are not authenticated: there is one tenant.
TENANT = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class AgentUseCases:
    """The use cases that the calls need, and settings: the idle time-out of a session without its
    own, and the age of connections.
    """

    conversations: Conversations
    turns: Turns
    branches: Branches
    watch: Watch
    database: Database
    idle_timeout: timedelta | None
    connection_age: float = 0.0
    """The age in s to which connections come; 0: any."""


class AgentServicer(AgentSessionServiceServicer):
    """The service's calls. Their semantics are in the contract's comments."""

    def __init__(self, cases: AgentUseCases) -> None:
        self._cases = cases

    async def CreateAgentSession(
        self, request: pb.CreateAgentSessionRequest, context: Context
    ) -> pb.CreateAgentSessionResponse:
        """Create a session."""
        parsed = parse.create(request, TENANT, self._cases.idle_timeout)
        created = await self._cases.conversations.create(*parsed)
        return pb.CreateAgentSessionResponse(agent_session=render.session(created))

    async def AppendTurn(
        self, request: pb.AppendTurnRequest, context: Context
    ) -> pb.AppendTurnResponse:
        """Append a turn."""
        wanted = parse.append(request, TENANT)
        return render.appended(await self._cases.turns.append(wanted))

    async def GetAgentSession(
        self, request: pb.GetAgentSessionRequest, context: Context
    ) -> pb.GetAgentSessionResponse:
        """Read one session."""
        session_id = parse.get(request)
        found = await self._cases.conversations.get(TENANT, session_id, context=True)
        return pb.GetAgentSessionResponse(agent_session=render.session(found))

    async def ListAgentSessions(
        self, request: pb.ListAgentSessionsRequest, context: Context
    ) -> pb.ListAgentSessionsResponse:
        """List sessions, a page at a time."""
        wanted = listings.parse_sessions(request, TENANT)
        found = await self._cases.conversations.page(
            TENANT,
            wanted.filter,
            wanted.after,
            wanted.size,
            seen=wanted.seen,
            descending=wanted.descending,
        )
        return listings.render_sessions(found, wanted)

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
            max_bytes=parse.REPLY_BYTES,
            descending=wanted.descending,
        )
        return listings.render_turns(found, wanted)

    async def GetContext(
        self, request: pb.GetContextRequest, context: Context
    ) -> pb.GetContextResponse:
        """Read the startup context and the newest turns that fit."""
        session_id, budget = parse.context(request)
        found = await self._cases.turns.context(TENANT, session_id, budget)
        return render.context(found, estimates=budget.estimates_count)

    async def EndAgentSession(
        self, request: pb.EndAgentSessionRequest, context: Context
    ) -> pb.EndAgentSessionResponse:
        """End a session."""
        ended = await self._cases.conversations.end(*parse.end(request, TENANT))
        return pb.EndAgentSessionResponse(agent_session=render.session(ended))

    async def UndeleteAgentSession(
        self, request: pb.UndeleteAgentSessionRequest, context: Context
    ) -> pb.UndeleteAgentSessionResponse:
        """Make an ended or expired session ACTIVE again."""
        named = parse.named(request, "UndeleteAgentSession", TENANT)
        back = await self._cases.conversations.undelete(*named)
        return pb.UndeleteAgentSessionResponse(agent_session=render.session(back))

    async def WatchTurns(
        self, request: pb.WatchTurnsRequest, context: Context
    ) -> AsyncIterator[pb.WatchTurnsResponse]:
        """Stream turns as they are appended."""
        session_id, branch_id, after, heartbeat = streams.parse_watch(request)
        pace = Pace(heartbeat, self._cases.connection_age)
        begun = partial(context.send_initial_metadata, ())
        # A caller that cancels ends this generator at its `yield`. `aclosing` then closes the inner
        # one at once, which takes the watcher away; else it would stay until garbage collection.
        async with aclosing(
            self._cases.watch.watch(TENANT, session_id, branch_id, after, pace, begun)
        ) as events:
            async for event in events:
                if isinstance(event, Quiet):
                    # In case it is the last: those of a stream that goes on are not sent.
                    context.set_trailing_metadata(streams.position(event))
                    if heartbeat is None:
                        continue
                yield streams.render_event(event)

    async def ForkAgentSession(
        self, request: pb.ForkAgentSessionRequest, context: Context
    ) -> pb.ForkAgentSessionResponse:
        """Create a session that shares turns of this one."""
        fork = parse.fork(request, TENANT)
        created = await self._cases.branches.fork(
            fork.request, fork.session_id, fork.at_turn, fork.new_session_id, fork.labels
        )
        return pb.ForkAgentSessionResponse(agent_session=render.session(created))

    async def RewindAgentSession(
        self, request: pb.RewindAgentSessionRequest, context: Context
    ) -> pb.RewindAgentSessionResponse:
        """Go back to an earlier turn."""
        done = await self._cases.branches.rewind(*parse.rewind(request, TENANT))
        return pb.RewindAgentSessionResponse(
            agent_session=render.session(done.session), set_aside_branch_id=done.branch_id or 0
        )

    async def UndoRewind(
        self, request: pb.UndoRewindRequest, context: Context
    ) -> pb.UndoRewindResponse:
        """Undo the last rewind."""
        named = parse.named(request, "UndoRewind", TENANT)
        done = await self._cases.branches.undo(*named)
        return pb.UndoRewindResponse(
            agent_session=render.session(done.session), set_aside_branch_id=done.branch_id or 0
        )

    async def SearchTurns(
        self, request: pb.SearchTurnsRequest, context: Context
    ) -> pb.SearchTurnsResponse:
        """Search messages."""
        wanted = listings.parse_search(request, TENANT)
        found = await self._cases.conversations.search(wanted.search)
        return listings.render_search(found, wanted)

    async def GetAgentStats(
        self, request: pb.GetAgentStatsRequest, context: Context
    ) -> pb.GetAgentStatsResponse:
        """Figures of sessions, by role."""
        rows = await self._cases.conversations.stats(TENANT, *listings.parse_stats(request))
        return listings.render_stats(rows)

    async def ImportAgentSessions(
        self, request_iterator: AsyncIterator[pb.ImportAgentSessionsRequest], context: Context
    ) -> pb.ImportAgentSessionsResponse:
        """Import a dump."""
        importing = Import(self._cases.database, TENANT)
        number = 0
        async for request in request_iterator:
            number += 1
            await streams.import_record(importing, number, request.record)
        return streams.render_report(await importing.finish())

    async def ExportAgentSessions(
        self, request: pb.ExportAgentSessionsRequest, context: Context
    ) -> AsyncIterator[pb.ExportAgentSessionsResponse]:
        """Export a dump."""
        wanted = streams.parse_export(request)
        async with aclosing(export(self._cases.database, TENANT, wanted)) as records:
            async for record in records:
                yield streams.render_record(record)
