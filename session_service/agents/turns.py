"""Appending turns and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.agents import refusals, requests
from session_service.domain.agent import AgentState, Turn
from session_service.storage import (
    agent_appends,
    agent_context,
    agent_reading,
    agent_requests,
    agent_sessions,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_service.domain.agent import AgentSession, Append, Budget
    from session_service.storage.agent_context import Context
    from session_service.storage.agent_reading import Position, Turns
    from session_service.storage.database import Database

#: A session may change between an append that it refused and the look at why.
TRIES = 5


@dataclass(frozen=True, slots=True)
class Appended:
    """The turn, without its messages, and the session as it is now."""

    session: AgentSession
    turn: Turn


class Conversing:
    """The turns of agent sessions."""

    def __init__(
        self, database: Database, appended: Callable[[str, str], None] = lambda *_: None
    ) -> None:
        """`appended` hears of each turn, by tenant and session, after its commit."""
        self._database = database
        self._appended = appended

    async def append(self, wanted: Append) -> Appended:
        """Append a turn, exactly once by its request's id.

        Raises AgentSessionNotFound, AgentSessionExpired, TurnConflict, RequestIdReused.
        """
        for _ in range(TRIES):
            session = await agent_appends.append(self._database, wanted)
            if session is not None:
                self._appended(session.tenant, session.session_id)
                return Appended(session, _newest(session, wanted))
            earlier = await self._earlier(wanted)
            if earlier is not None:
                return earlier
            await self._refuse(wanted)
        raise errors.StorageUnavailable("the session changes too fast to say why; try again")

    async def _earlier(self, wanted: Append) -> Appended | None:
        """What the same request appended before; None where it did not. Raises its refusal."""
        request = wanted.request
        turn = await agent_requests.find_turn(self._database, request)
        if turn is None:
            await requests.replay(self._database, request)
            return None
        requests.check_body(request, turn.request_hash)
        session = await self._session(request.tenant, turn.session_id or wanted.session_id)
        return Appended(
            session,
            Turn(
                turn.branch_id,
                turn.turn_number,
                turn.tokens,
                turn.estimated_tokens,
                turn.total_tokens,
                turn.create_time,
            ),
        )

    async def _refuse(self, wanted: Append) -> None:
        """Raise why the session takes no such turn; nothing where it would now."""
        try:
            session = await self._session(wanted.request.tenant, wanted.session_id)
            if session.state is not AgentState.ACTIVE:
                revivable = wanted.revive and session.state is AgentState.EXPIRED
                raise refusals.over(session) if revivable else refusals.expired(session)
            expected = wanted.expected_turn_count
            if expected is not None and expected != session.turn_count:
                raise refusals.conflict(session, expected)
        except errors.RoostError as refusal:
            await requests.refuse(self._database, wanted.request, wanted.session_id, refusal)

    async def _session(self, tenant: str, session_id: str) -> AgentSession:
        found = await agent_sessions.get(self._database, tenant, session_id)
        if found is None:
            raise refusals.missing(session_id)
        return found

    async def context(self, tenant: str, session_id: str, budget: Budget) -> Context:
        """The startup context and the newest turns that fit. Raises AgentSessionNotFound."""
        found = await agent_context.context(self._database, tenant, session_id, budget)
        if found is None:
            raise refusals.missing(session_id)
        return found

    async def page(
        self,
        tenant: str,
        session_id: str,
        position: Position,
        *,
        size: int,
        max_bytes: int,
        descending: bool,
    ) -> Turns:
        """A page of turns. Raises AgentSessionNotFound, and InvalidField for a branch that is not
        the session's.
        """
        found = await agent_reading.page(
            self._database,
            tenant,
            session_id,
            position,
            size=size,
            max_bytes=max_bytes,
            descending=descending,
        )
        if found is None:
            raise refusals.missing(session_id)
        if found.branch_id is None:
            raise errors.InvalidField.of("branch_id", "is not a branch of this session")
        return found


def _newest(session: AgentSession, wanted: Append) -> Turn:
    """The turn that an append made, which the session's row tells all of."""
    return Turn(
        session.head_branch,
        session.turn_count,
        wanted.turn.tokens,
        wanted.turn.estimated_tokens,
        session.total_tokens,
        session.last_query_at,
    )
