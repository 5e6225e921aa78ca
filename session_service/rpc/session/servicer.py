"""roost.session.v1.SessionService: each method parses, calls a use case and renders."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.session.v1 import session_service_pb2 as pb
from roost.session.v1.session_service_pb2_grpc import SessionServiceServicer
from session_service.domain.session import DEFAULT_TENANT
from session_service.pace import Pace
from session_service.rpc.session import holds, listings, parse, render
from session_service.rpc.session import stats as session_stats
from session_service.sessions.watch import WatchedEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from session_service.metrics.sink import MetricsSink
    from session_service.sessions.holds import Holds
    from session_service.sessions.lookup import Lookup
    from session_service.sessions.watch import Watch
    from session_service.start.preview import Previewing
    from session_service.start.service import StartService
    from session_service.stats.service import Stats
    from session_service.stop.service import StopService

# Any: the generated base class does not bind the type parameters of the context.
Context = grpc.aio.ServicerContext[Any, Any]

#: The trailing metadata of a WatchSession that ends without an error: the number to resume with.
AFTER_SEQUENCE = "roost-after-sequence"
#: Calls are not authenticated: there is one tenant.
TENANT = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class UseCases:
    """The use cases that the servicer calls."""

    starts: StartService
    preview: Previewing
    stops: StopService
    lookups: Lookup
    holds: Holds
    watch: Watch
    stats: Stats


class SessionServicer(SessionServiceServicer):
    """The service's methods. Their semantics are in the comments of the proto."""

    def __init__(
        self,
        cases: UseCases,
        renderer: render.Renderer,
        metrics: MetricsSink,
        connection_age: float = 0.0,
    ) -> None:
        """`connection_age`: the age in s to which connections come; 0: any."""
        self._cases = cases
        self._render = renderer
        self._metrics = metrics
        self._connection_age = connection_age

    async def StartSession(
        self, request: pb.StartSessionRequest, context: Context
    ) -> pb.StartSessionResponse:
        """Open a project for a user."""
        began = monotonic()
        answer = await self._cases.starts.start(parse.parse_start(request, TENANT))
        self._metrics.started(answer, monotonic() - began)
        return self._render.start(answer)

    async def PreviewStart(
        self, request: pb.PreviewStartRequest, context: Context
    ) -> pb.PreviewStartResponse:
        """Report what a start would do, without doing it."""
        start = parse.parse_preview(request, TENANT)
        return render.preview(await self._cases.preview.preview(start))

    async def GetSession(
        self, request: pb.GetSessionRequest, context: Context
    ) -> pb.GetSessionResponse:
        """Read one session."""
        session_id = parse.parse_session_id(request.session_id)
        record = await self._cases.lookups.get(TENANT, session_id)
        return pb.GetSessionResponse(session=self._render.session(record))

    async def FindLiveSession(
        self, request: pb.FindLiveSessionRequest, context: Context
    ) -> pb.FindLiveSessionResponse:
        """Find the live session at a key."""
        record = await self._cases.lookups.live(parse.parse_find(request, TENANT))
        return pb.FindLiveSessionResponse(session=self._render.session(record))

    async def ListSessions(
        self, request: pb.ListSessionsRequest, context: Context
    ) -> pb.ListSessionsResponse:
        """List sessions, a page at a time."""
        wanted = listings.parse_sessions(request, TENANT)
        found = await self._cases.lookups.page(wanted.page)
        return listings.render_sessions(found, wanted, self._render)

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
        """Record that the user is active."""
        record = await self._cases.lookups.touch(TENANT, *parse.parse_touch(request))
        return pb.TouchSessionResponse(session=self._render.session(record))

    async def PauseSession(
        self, request: pb.PauseSessionRequest, context: Context
    ) -> pb.PauseSessionResponse:
        """Pause a session: suspend or stop its container, or save its state and destroy it."""
        answer = await self._cases.stops.pause(*parse.parse_pause(request, TENANT))
        return pb.PauseSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def ResumeSession(
        self, request: pb.ResumeSessionRequest, context: Context
    ) -> pb.ResumeSessionResponse:
        """Bring up a session by its id."""
        began = monotonic()
        named, wish = parse.parse_resume(request, TENANT)
        answer = await self._cases.starts.resume(named.session_id, named.request, wish, named.etag)
        self._metrics.started(answer, monotonic() - began)
        return self._render.resume(answer)

    async def StopSession(
        self, request: pb.StopSessionRequest, context: Context
    ) -> pb.StopSessionResponse:
        """Stop a session as its policy defines it: pause it or end it."""
        answer = await self._cases.stops.stop(parse.parse_named(request, "StopSession", TENANT))
        return pb.StopSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def EndSession(
        self, request: pb.EndSessionRequest, context: Context
    ) -> pb.EndSessionResponse:
        """End a session. It can be undeleted within its grace period."""
        named = parse.parse_named(request, "EndSession", TENANT)
        answer = await self._cases.stops.end(named, now=request.now)
        return pb.EndSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def UndeleteSession(
        self, request: pb.UndeleteSessionRequest, context: Context
    ) -> pb.UndeleteSessionResponse:
        """Undo the end of a session within its grace period."""
        named = parse.parse_named(request, "UndeleteSession", TENANT)
        answer = await self._cases.stops.undelete(named)
        return pb.UndeleteSessionResponse(
            session=self._render.session(answer.record),
            decision_id=str(answer.decision.decision_id),
        )

    async def PutHold(self, request: pb.PutHoldRequest, context: Context) -> pb.PutHoldResponse:
        """Keep a session from being paused for being idle, for a limited time."""
        wanted = holds.parse_put(request)
        hold = await self._cases.holds.put(TENANT, wanted.session_id, wanted.name, wanted.ttl)
        return pb.PutHoldResponse(hold=holds.render_hold(hold))

    async def ReleaseHold(
        self, request: pb.ReleaseHoldRequest, context: Context
    ) -> pb.ReleaseHoldResponse:
        """Release a hold."""
        await self._cases.holds.release(TENANT, *holds.parse_release(request))
        return pb.ReleaseHoldResponse()

    async def ExplainIdle(
        self, request: pb.ExplainIdleRequest, context: Context
    ) -> pb.ExplainIdleResponse:
        """Report why a session is not paused yet, and when it will be."""
        session_id = parse.parse_session_id(request.session_id)
        return holds.render_explanation(await self._cases.lookups.explain(TENANT, session_id))

    async def WatchSession(
        self, request: pb.WatchSessionRequest, context: Context
    ) -> AsyncIterator[pb.WatchSessionResponse]:
        """Stream the events of a session."""
        session_id, after, heartbeat = holds.parse_watch(request)
        pace = Pace(heartbeat, self._connection_age)
        begun = partial(context.send_initial_metadata, ())
        async with aclosing(
            self._cases.watch.watch(TENANT, session_id, after, pace, begun)
        ) as stream:
            async for watched in stream:
                if isinstance(watched, WatchedEvent):
                    yield holds.render_event(watched, self._render)
                    continue
                # In case it is the last: those of a stream that goes on are not sent.
                context.set_trailing_metadata(((AFTER_SEQUENCE, str(watched.sequence)),))
                if heartbeat is not None:
                    yield holds.render_quiet(watched)

    async def GetSessionStats(
        self, request: pb.GetSessionStatsRequest, context: Context
    ) -> pb.GetSessionStatsResponse:
        """Return statistics on the sessions of a time span."""
        span = session_stats.parse(request, TENANT)
        return session_stats.render(await self._cases.stats.figures(span))
