"""Turns of conversations: append, read a page, read the context for a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.agents import requests
from session_service.domain.agent import AgentState, Turn
from session_service.storage.agent import appends, reads, sessions
from session_service.storage.agent import requests as records

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_service.domain.agent import AgentSession, Append, Budget
    from session_service.storage.agent.reads import Context, Position, TurnPage
    from session_service.storage.database import Database

#: How often an append is tried when the reason for its refusal is gone by the time it is read.
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Appended:
    """The turn, without its messages, and the session now."""

    session: AgentSession
    turn: Turn


class Turns:
    """Appends turns to agent sessions and reads them."""

    def __init__(self, database: Database, changed: Callable[[str, str], None]) -> None:
        """`changed(tenant, session_id)` is called after the commit of each append."""
        self._database = database
        self._changed = changed

    async def append(self, wanted: Append) -> Appended:
        """Append a turn; once only, if the request has an id.

        The append is one statement, which changes nothing if it does not succeed and does not say
        why. Then, and only then, the reason is read: a repeated request, or the session's state.
        The session can change before that read, so that no reason is left: then the append is tried
        again.

        Raises AgentSessionNotFound, AgentSessionExpired, TurnConflict, RequestIdReused.
        """
        for _ in range(ATTEMPTS):
            session = await appends.append(self._database, wanted)
            if session is not None:
                self._changed(session.tenant, session.session_id)
                return Appended(session, _newest(session, wanted))
            earlier = await self._replay(wanted)
            if earlier is not None:
                return earlier
            await self._raise_refusal(wanted)
        raise errors.StorageUnavailable(
            "the session changed between each append and the read of why it failed; try again"
        )

    async def _replay(self, wanted: Append) -> Appended | None:
        """The turn that the request appended before; None if it has no result yet.

        Raises the recorded refusal, or RequestIdReused.
        """
        request = wanted.request
        turn = await records.find_turn(self._database, request)
        if turn is None:
            await requests.replay(self._database, request)
            return None
        requests.check_same_body(request, turn.request_hash)
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

    async def _raise_refusal(self, wanted: Append) -> None:
        """Record and raise the reason why the session takes no such turn, if there still is one."""
        try:
            session = await self._session(wanted.request.tenant, wanted.session_id)
            if session.state is not AgentState.ACTIVE:
                if wanted.revive and session.state is AgentState.EXPIRED:
                    raise errors.AgentSessionExpired.past_retention(
                        session.session_id, session.state
                    )
                raise errors.AgentSessionExpired.of(session.session_id, session.state)
            expected = wanted.expected_turn_count
            if expected is not None and expected != session.turn_count:
                raise errors.TurnConflict.of(session.session_id, session.turn_count, expected)
        except errors.RoostError as refusal:
            await requests.record_and_raise(
                self._database, wanted.request, wanted.session_id, refusal
            )

    async def _session(self, tenant: str, session_id: str) -> AgentSession:
        found = await sessions.get(self._database, tenant, session_id)
        if found is None:
            raise errors.AgentSessionNotFound.of(session_id)
        return found

    async def context(self, tenant: str, session_id: str, budget: Budget) -> Context:
        """The startup context and the newest turns that fit. Raises AgentSessionNotFound."""
        found = await reads.context(self._database, tenant, session_id, budget)
        if found is None:
            raise errors.AgentSessionNotFound.of(session_id)
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
    ) -> TurnPage:
        """A page of turns.

        Raises AgentSessionNotFound, and InvalidField if the branch is not one of the session's.
        """
        found = await reads.page(
            self._database,
            tenant,
            session_id,
            position,
            size=size,
            max_bytes=max_bytes,
            descending=descending,
        )
        if found is None:
            raise errors.AgentSessionNotFound.of(session_id)
        if found.branch_id is None:
            raise errors.InvalidField.of("branch_id", "is not a branch of this session")
        return found


def _newest(session: AgentSession, wanted: Append) -> Turn:
    """The turn that was appended: the session's row has all that the request does not."""
    return Turn(
        session.head_branch,
        session.turn_count,
        wanted.turn.tokens,
        wanted.turn.estimated_tokens,
        session.total_tokens,
        session.last_query_at,
    )
