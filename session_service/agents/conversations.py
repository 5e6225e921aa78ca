"""Making, reading and ending agent sessions."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import psycopg

from session_service.agents import refusals
from session_service.agents.requests import Done, Earlier, once, refuse, replay
from session_service.domain import agent
from session_service.storage import agent_listing, agent_sessions
from session_service.storage.agent_tables import SESSION_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from session_service.domain.agent import AgentSession, Opening, SessionFilter
    from session_service.domain.decision import Request
    from session_service.storage.agent_listing import After
    from session_service.storage.database import Connection, Database

#: How often an id is drawn before giving up: with a million a second and role, twice is rare.
DRAWS = 20


class Conversations:
    """Agent sessions, without their turns."""

    def __init__(
        self,
        database: Database,
        retention: timedelta,
        changed: Callable[[str, str], None] = lambda *_: None,
        draw: Callable[[], int] = lambda: secrets.randbelow(1_000_000),
    ) -> None:
        """`retention`: how long an ended or expired session can be brought back. `changed` hears
        of each session in another state, by tenant and id.
        """
        self._database = database
        self._retention = retention
        self._changed = changed
        self._draw = draw

    async def create(self, request: Request, opening: Opening) -> AgentSession:
        """Begin a conversation. Raises AgentSessionExists where the id that was given is taken."""
        for _ in range(DRAWS):
            session_id = opening.session_id or self.new_id(opening.agent_role)
            try:
                return await agent_sessions.create(self._database, request, session_id, opening)
            except psycopg.errors.UniqueViolation as violation:
                earlier = await replay(self._database, request)
                if earlier is not None:
                    return await self.get(request.tenant, earlier.session_id, context=True)
                clash = violation.diag.constraint_name == SESSION_KEY
                if clash and opening.session_id is not None:
                    break
        taken = refusals.taken(opening.session_id or opening.agent_role)
        earlier = await refuse(self._database, request, opening.session_id or "", taken)
        return await self.get(request.tenant, earlier.session_id, context=True)

    def new_id(self, agent_role: str) -> str:
        """An id for a session of this role, which may be taken."""
        # The replica's clock gives a name here, and decides nothing.
        return agent.session_id(agent_role, int(time.time()), self._draw())

    async def get(self, tenant: str, session_id: str, *, context: bool = False) -> AgentSession:
        """The tenant's session; `context` reads its startup context too.

        Raises AgentSessionNotFound.
        """
        found = await agent_sessions.get(self._database, tenant, session_id, context=context)
        if found is None:
            raise refusals.missing(session_id)
        return found

    async def page(
        self,
        tenant: str,
        wanted: SessionFilter,
        after: After | None,
        size: int,
        *,
        descending: bool = True,
    ) -> list[AgentSession]:
        """Up to `size` sessions, without their startup contexts."""
        return await agent_listing.page(
            self._database, tenant, wanted, after, size, descending=descending
        )

    async def end(self, request: Request, session_id: str, retention: timedelta) -> AgentSession:
        """End it; it can be brought back for `retention` at most. Raises AgentSessionNotFound."""

        async def work(connection: Connection) -> Done:
            ended = await agent_sessions.end(
                connection, request.tenant, session_id, min(retention, self._retention)
            )
            if ended is None:
                raise refusals.missing(session_id)
            return Done(ended)

        return await self._once(request, session_id, work)

    async def undelete(self, request: Request, session_id: str) -> AgentSession:
        """Bring it back. Raises AgentSessionNotFound; AgentSessionExpired where it is too late."""

        async def work(connection: Connection) -> Done:
            back = await agent_sessions.undelete(connection, request.tenant, session_id)
            if back is None:
                found = await agent_sessions.lock(connection, request.tenant, session_id)
                raise refusals.missing(session_id) if found is None else refusals.over(found)
            return Done(back)

        return await self._once(request, session_id, work)

    async def _once(
        self,
        request: Request,
        session_id: str,
        work: Callable[[Connection], Awaitable[Done]],
    ) -> AgentSession:
        done = await once(self._database, request, session_id, work)
        if isinstance(done, Earlier):
            return await self.get(request.tenant, done.session_id)
        self._changed(request.tenant, session_id)
        return done.session
