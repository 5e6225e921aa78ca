"""roost.session.v1.SessionService: parse, call, render."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.session.v1 import session_service_pb2 as pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceServicer
from session_service.domain.session import DEFAULT_TENANT
from session_service.rpc import convert, idle, listings, render, stats_fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from session_service.figures.stats import Stats
    from session_service.lifecycle.holding import Holding
    from session_service.lifecycle.previewing import Previewing
    from session_service.lifecycle.rests import Rests
    from session_service.lifecycle.starts import Starts
    from session_service.lifecycle.watching import Watching
    from session_service.lookups import Lookups
    from session_service.meters import Meter

# Any: the generated base leaves the context's own parameters open.
Context = grpc.aio.ServicerContext[Any, Any]

#: Until calls are authenticated, everybody is of the one tenant.
TENANT = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class UseCases:
    """What the servicer calls."""

    starts: Starts
    previewing: Previewing
    rests: Rests
    lookups: Lookups
    holding: Holding
    watching: Watching
    stats: Stats


class SessionServicer(SessionServiceServicer):
    """Answers the contract; the work is the use cases'."""

    def __init__(self, cases: UseCases, renderer: render.Renderer, meter: Meter) -> None:
        self._cases = cases
        self._render = renderer
        self._meter = meter

    async def StartSession(
        self, request: pb.StartSessionRequest, context: Context
    ) -> pb.StartSessionResponse:
        """Open a project for a user."""
        began = monotonic()
        answer = await self._cases.starts.start(convert.parse_start(request, TENANT))
        self._meter.started(answer, monotonic() - began)
        return self._render.start(answer)

    async def PreviewStart(
        self, request: pb.PreviewStartRequest, context: Context
    ) -> pb.PreviewStartResponse:
        """Say what a start would do."""
        start = convert.parse_preview(request, TENANT)
        return render.preview(await self._cases.previewing.preview(start))

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Context
    ) -> pb.GetSessionResponse:
        """Read one session."""
        session_id = convert.parse_session_id(request.session_id)
        record = await self._cases.lookups.get(TENANT, session_id)
        return pb.GetSessionResponse(session=self._render.session(record))

    async def FindLiveSession(
        self, request: pb.FindLiveSessionRequest, context: Context
    ) -> pb.FindLiveSessionResponse:
        """Find the live session at a key."""
        record = await self._cases.lookups.live(convert.parse_find(request, TENANT))
        return pb.FindLiveSessionResponse(session=self._render.session(record))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """List sessions, a page at a time."""
        wanted = listings.parse_sessions(request, TENANT)
        records = await self._cases.lookups.page(wanted.page)
        return listings.render_sessions(records, wanted, self._render)

    async def ListDecisions(
        self, request: pb.ListDecisionsRequest, context: Context
    ) -> pb.ListDecisionsResponse:
        """List decisions, newest first."""
        wanted = listings.parse_decisions(request, TENANT)
        rows = await self._cases.lookups.decisions(
            TENANT, wanted.session_id, wanted.last, wanted.size + 1
        )
        return listings.render_decisions(rows, wanted)

    async def TouchSession(
        self, request: pb.TouchSessionRequest, context: Context
    ) -> pb.TouchSessionResponse:
        """Note that the user is there."""
        record = await self._cases.lookups.touch(TENANT, *convert.parse_touch(request))
        return pb.TouchSessionResponse(session=self._render.session(record))

    async def PauseSession(
        self, request: pb.PauseSessionRequest, context: Context
    ) -> pb.PauseSessionResponse:
        """Put a session to rest."""
        answer = await self._cases.rests.pause(*convert.parse_pause(request, TENANT))
        return pb.PauseSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def ResumeSession(
        self, request: pb.ResumeSessionRequest, context: Context
    ) -> pb.ResumeSessionResponse:
        """Bring a session back by its id."""
        began = monotonic()
        named, wish = convert.parse_resume(request, TENANT)
        answer = await self._cases.starts.resume(named.session_id, named.request, wish, named.etag)
        self._meter.started(answer, monotonic() - began)
        return self._render.resume(answer)

    async def StopSession(
        self, request: pb.StopSessionRequest, context: Context
    ) -> pb.StopSessionResponse:
        """Do what the policy says stop means."""
        answer = await self._cases.rests.stop(convert.parse_named(request, "StopSession", TENANT))
        return pb.StopSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def EndSession(
        self, request: pb.EndSessionRequest, context: Context
    ) -> pb.EndSessionResponse:
        """End a session for its user."""
        named = convert.parse_named(request, "EndSession", TENANT)
        answer = await self._cases.rests.end(named, now=request.now)
        return pb.EndSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def UndeleteSession(
        self, request: pb.UndeleteSessionRequest, context: Context
    ) -> pb.UndeleteSessionResponse:
        """Bring an ended session back."""
        named = convert.parse_named(request, "UndeleteSession", TENANT)
        answer = await self._cases.rests.undelete(named)
        return pb.UndeleteSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def PutHold(self, request: pb.PutHoldRequest, context: Context) -> pb.PutHoldResponse:
        """Keep a session from going idle for a while."""
        wanted = idle.parse_put(request)
        hold = await self._cases.holding.put(TENANT, wanted.session_id, wanted.name, wanted.ttl)
        return pb.PutHoldResponse(hold=idle.render_hold(hold))

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Context
    ) -> pb.ReleaseHoldResponse:
        """Give a hold back."""
        await self._cases.holding.release(TENANT, *idle.parse_release(request))
        return pb.ReleaseHoldResponse()

    async def ExplainIdle(
        self, request: pb.ExplainIdleRequest, context: Context
    ) -> pb.ExplainIdleResponse:
        """Say what keeps a session awake."""
        session_id = convert.parse_session_id(request.session_id)
        return idle.render_explanation(await self._cases.lookups.explain(TENANT, session_id))

    async def WatchSession(
        self, request: pb.WatchSessionRequest, context: Context
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        """Stream what happens to a session."""
        wanted = idle.parse_watch(request)
        async with aclosing(self._cases.watching.watch(TENANT, *wanted)) as happened:
            async for each in happened:
                yield idle.render_happened(each, self._render)

    async def GetSessionStats(
        self, request: pb.GetSessionStatsRequest, context: Context
    ) -> pb.GetSessionStatsResponse:
        """Count what sessions did in a time span."""
        span = stats_fields.parse(request, TENANT)
        return stats_fields.render(await self._cases.stats.figures(span))
