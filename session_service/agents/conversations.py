"""Agent sessions as a whole: create, get, list, search, count, end, undelete."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import psycopg

from session_service import errors
from session_service.agents.requests import Changed, Replayed, record_and_raise, replay, run_once
from session_service.domain import agent
from session_service.storage.agent import listing, search, sessions, stats
from session_service.storage.agent.tables import SESSION_KEY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime, timedelta

    from session_service.domain.agent import AgentSession, NewSession, SessionFilter
    from session_service.domain.decision import Request
    from session_service.storage.agent.search import SearchResult
    from session_service.storage.agent.search_query import SearchQuery
    from session_service.storage.agent.stats import RoleStats
    from session_service.storage.database import Connection, Database
    from session_service.storage.scan import Listed, Position

#: How many generated ids are tried. There are a million for each role and second.
ID_ATTEMPTS = 20


def _ignore(tenant: str, session_id: str) -> None:
    """Report changes to no one."""


class Conversations:
    """Agent sessions, without their turns."""

    def __init__(
        self,
        database: Database,
        retention: timedelta,
        changed: Callable[[str, str], None] = _ignore,
        *,
        search_language: str = "english",
        ranked: int = search.RANKED,
        search_budget: timedelta = search.BUDGET,
        random_number: Callable[[], int] = lambda: secrets.randbelow(1_000_000),
    ) -> None:
        """`retention`: how long an ended or expired session can be brought back.

        `changed(tenant, session_id)` is called after each commit that changes a session's state.
        `search_language`: the index's text search configuration. `ranked`: the most matches that a
        search ranks. `search_budget`: how long it looks for them.
        """
        self._database = database
        self._retention = retention
        self._changed = changed
        self._search_language = search_language
        self._ranked = ranked
        self._search_budget = search_budget
        self._random_number = random_number

    async def create(self, request: Request, new: NewSession) -> AgentSession:
        """Create a session. Raises AgentSessionExists if the id that was given is taken."""
        for _ in range(ID_ATTEMPTS):
            session_id = new.session_id or self.new_id(new.agent_role)
            try:
                return await sessions.create(self._database, request, session_id, new)
            except psycopg.errors.UniqueViolation as violation:
                earlier = await replay(self._database, request)
                if earlier is not None:
                    return await self.get(request.tenant, earlier.session_id, context=True)
                clash = violation.diag.constraint_name == SESSION_KEY
                if clash and new.session_id is not None:
                    break
        taken = errors.AgentSessionExists.of(new.session_id or new.agent_role)
        earlier = await record_and_raise(self._database, request, new.session_id or "", taken)
        return await self.get(request.tenant, earlier.session_id, context=True)

    def new_id(self, agent_role: str) -> str:
        """A generated id for a session of this role. It may be taken."""
        # This replica's clock, which need not agree with the database's: the time is only a part of
        # a name.
        return agent.session_id(agent_role, int(time.time()), self._random_number())

    async def get(self, tenant: str, session_id: str, *, context: bool = False) -> AgentSession:
        """The tenant's session; `context` reads its startup context too.

        Raises AgentSessionNotFound.
        """
        found = await sessions.get(self._database, tenant, session_id, context=context)
        if found is None:
            raise errors.AgentSessionNotFound.of(session_id)
        return found

    async def page(
        self,
        tenant: str,
        wanted: SessionFilter,
        after: Position | None,
        size: int,
        *,
        seen: bool = False,
        descending: bool = True,
    ) -> Listed[AgentSession]:
        """Up to `size` sessions by time of creation, or by that of the newest turn (`seen`),
        without their startup contexts. There may be more of them even if the page has fewer.
        """
        return await listing.page(
            self._database, tenant, wanted, after, size, seen=seen, descending=descending
        )

    async def search(self, query: SearchQuery) -> SearchResult:
        """The messages that match, best first."""
        return await search.search(
            self._database, self._search_language, query, self._ranked, self._search_budget
        )

    async def stats(
        self, tenant: str, agent_role: str | None, start: datetime, end: datetime
    ) -> list[RoleStats]:
        """The figures of the sessions created from `start` to before `end`, by role."""
        return await stats.stats(self._database, tenant, agent_role, start, end)

    async def end(self, request: Request, session_id: str, retention: timedelta) -> AgentSession:
        """End a session, to be purged after `retention`, or the service's if that is less.

        Raises AgentSessionNotFound.
        """

        async def change(connection: Connection) -> Changed:
            ended = await sessions.end(
                connection, request.tenant, session_id, min(retention, self._retention)
            )
            if ended is None:
                raise errors.AgentSessionNotFound.of(session_id)
            return Changed(ended)

        return await self._run_once(request, session_id, change)

    async def undelete(self, request: Request, session_id: str) -> AgentSession:
        """Make an ended or expired session ACTIVE again; an ACTIVE one stays as it is.

        Raises AgentSessionNotFound, and AgentSessionExpired if the retention is over.
        """

        async def change(connection: Connection) -> Changed:
            active = await sessions.undelete(connection, request.tenant, session_id)
            if active is None:
                found = await sessions.lock(connection, request.tenant, session_id)
                if found is None:
                    raise errors.AgentSessionNotFound.of(session_id)
                raise errors.AgentSessionExpired.past_retention(found.session_id, found.state)
            return Changed(active)

        return await self._run_once(request, session_id, change)

    async def _run_once(
        self,
        request: Request,
        session_id: str,
        change: Callable[[Connection], Awaitable[Changed]],
    ) -> AgentSession:
        result = await run_once(self._database, request, session_id, change)
        if isinstance(result, Replayed):
            return await self.get(request.tenant, result.session_id)
        self._changed(request.tenant, session_id)
        return result.session
