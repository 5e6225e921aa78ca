"""Forks and rewinds: other ways for a conversation to go on, with nothing copied or lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.agents import refusals
from session_service.agents.requests import Done, Earlier, IdTaken, once, refuse
from session_service.domain.agent import AgentState
from session_service.storage import agent_branches, agent_sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.agents.conversations import Conversations
    from session_service.domain.agent import AgentSession
    from session_service.domain.decision import Request
    from session_service.storage.agent_branches import Place
    from session_service.storage.database import Connection, Database


class Branching:
    """Makes branches and moves between them."""

    def __init__(
        self,
        database: Database,
        conversations: Conversations,
        moved: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        """`moved` hears of each session that goes on elsewhere, by tenant and id."""
        self._database = database
        self._conversations = conversations
        self._moved = moved

    async def fork(
        self,
        request: Request,
        session_id: str,
        at_turn: int | None,
        new_session_id: str | None,
        labels: str | None,
    ) -> AgentSession:
        """A session that shares this one's turns up to `at_turn`; all of them where it is None.

        Raises AgentSessionNotFound, AgentSessionExists, and InvalidField for a turn that there is
        not.
        """
        for _ in range(20):

            async def work(connection: Connection) -> Done:
                parent = await _lock(connection, request, session_id)
                at = await _place(connection, parent, at_turn, "at_turn")
                name = new_session_id or self._conversations.new_id(parent.agent_role)
                return Done(await agent_branches.fork(connection, parent, at, name, labels))

            try:
                return (await self._once(request, session_id, work)).session
            except IdTaken:
                if new_session_id is not None:
                    break
        taken = refusals.taken(new_session_id or "")
        earlier = await refuse(self._database, request, session_id, taken)
        return await self._conversations.get(request.tenant, earlier.session_id)

    async def rewind(
        self, request: Request, session_id: str, to_turn: int, expected: int | None
    ) -> Done:
        """Go back to a turn; the branch that was left is set aside.

        Raises AgentSessionNotFound, AgentSessionExpired, TurnConflict, and InvalidField for a turn
        that there is not.
        """

        async def work(connection: Connection) -> Done:
            session = await _lock(connection, request, session_id)
            _check_active(session)
            if expected is not None and expected != session.turn_count:
                raise refusals.conflict(session, expected)
            to = await _place(connection, session, to_turn, "to_turn")
            branch = await agent_branches.rewound(connection, session, to)
            return await _move(connection, session, branch, to)

        return await self._once(request, session_id, work)

    async def undo(self, request: Request, session_id: str) -> Done:
        """Go to where the session stood before its last rewind; the branch since is set aside.

        Raises AgentSessionNotFound, AgentSessionExpired, SessionStateConflict.
        """

        async def work(connection: Connection) -> Done:
            session = await _lock(connection, request, session_id)
            _check_active(session)
            stood = await agent_branches.previous(connection, session.head_branch)
            if stood is None:
                raise errors.SessionStateConflict(
                    f"agent session {session_id!r} has no rewind to undo",
                    {"session_id": session_id},
                )
            count = stood.turn_count
            to = await agent_branches.place(connection, stood.branch_id, count, count)
            return await _move(connection, session, stood.branch_id, to)

        return await self._once(request, session_id, work)

    async def _once(
        self,
        request: Request,
        session_id: str,
        work: Callable[[Connection], Awaitable[Done]],
    ) -> Done:
        done = await once(self._database, request, session_id, work)
        if isinstance(done, Earlier):
            now = await self._conversations.get(request.tenant, done.session_id)
            return Done(now, done.branch_id)
        self._moved(request.tenant, done.session.session_id)
        return done


async def _lock(connection: Connection, request: Request, session_id: str) -> AgentSession:
    found = await agent_sessions.lock(connection, request.tenant, session_id)
    if found is None:
        raise refusals.missing(session_id)
    return found


def _check_active(session: AgentSession) -> None:
    if session.state is not AgentState.ACTIVE:
        raise refusals.expired(session)


async def _place(
    connection: Connection, session: AgentSession, turn: int | None, field: str
) -> Place:
    """The session's turn of this number, its newest where it is None."""
    count = session.turn_count
    if turn is not None and turn > count:
        raise errors.InvalidField.of(field, f"must be from 0 to {count}, the turn count")
    number = count if turn is None else turn
    return await agent_branches.place(connection, session.head_branch, count, number)


async def _move(connection: Connection, session: AgentSession, branch: int, to: Place) -> Done:
    moved = await agent_sessions.move_head(
        connection, session.tenant, session.session_id, branch, to.turn_number, to.sums
    )
    return Done(moved, session.head_branch)
