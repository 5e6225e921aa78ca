"""Forks and rewinds of conversations. Neither copies a turn, and neither deletes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.agents.conversations import ID_ATTEMPTS
from session_service.agents.requests import (
    Changed,
    Replayed,
    SessionIdTaken,
    record_and_raise,
    run_once,
)
from session_service.domain.agent import AgentState
from session_service.storage.agent import branches, sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.agents.conversations import Conversations
    from session_service.domain.agent import AgentSession
    from session_service.domain.decision import Request
    from session_service.storage.agent.branches import BranchPoint
    from session_service.storage.database import Connection, Database


class Branches:
    """Forks sessions, rewinds them, and undoes rewinds.

    Each change locks the session's row before it reads the head, so that no append comes between.
    """

    def __init__(
        self,
        database: Database,
        conversations: Conversations,
        changed: Callable[[str, str], None],
    ) -> None:
        """`changed(tenant, session_id)` is called after each commit that changes a session."""
        self._database = database
        self._conversations = conversations
        self._changed = changed

    async def fork(
        self,
        request: Request,
        session_id: str,
        at_turn: int | None,
        new_session_id: str | None,
        labels: str | None,
    ) -> AgentSession:
        """Create a session that shares this one's turns up to `at_turn` (None: all of them).

        Raises AgentSessionNotFound, AgentSessionExists, and InvalidField if there is no such turn.
        """
        for _ in range(ID_ATTEMPTS):

            async def change(connection: Connection) -> Changed:
                parent = await _lock(connection, request, session_id)
                point = await _point(connection, parent, at_turn, "at_turn")
                name = new_session_id or self._conversations.new_id(parent.agent_role)
                return Changed(await branches.fork(connection, parent, point, name, labels))

            try:
                return (await self._run_once(request, session_id, change)).session
            except SessionIdTaken:
                if new_session_id is not None:
                    break
        taken = errors.AgentSessionExists.of(new_session_id or "")
        earlier = await record_and_raise(self._database, request, session_id, taken)
        return await self._conversations.get(request.tenant, earlier.session_id)

    async def rewind(
        self, request: Request, session_id: str, to_turn: int, expected: int | None
    ) -> Changed:
        """Make `to_turn` the newest turn. The branch that was the head is set aside, and returned.

        Raises AgentSessionNotFound, AgentSessionExpired, TurnConflict, and InvalidField if there is
        no such turn.
        """

        async def change(connection: Connection) -> Changed:
            session = await _lock(connection, request, session_id)
            _check_active(session)
            if expected is not None and expected != session.turn_count:
                raise errors.TurnConflict.of(session.session_id, session.turn_count, expected)
            point = await _point(connection, session, to_turn, "to_turn")
            branch = await branches.create_for_rewind(connection, session, point)
            return await _move_head(connection, session, branch, point)

        return await self._run_once(request, session_id, change)

    async def undo(self, request: Request, session_id: str) -> Changed:
        """Go back to the head before the last rewind; the branch since then is set aside.

        Raises AgentSessionNotFound, AgentSessionExpired, and SessionStateConflict if there is no
        rewind to undo.
        """

        async def change(connection: Connection) -> Changed:
            session = await _lock(connection, request, session_id)
            _check_active(session)
            previous = await branches.previous_head(connection, session.head_branch)
            if previous is None:
                raise errors.SessionStateConflict(
                    f"agent session {session_id!r} has no rewind to undo",
                    {"session_id": session_id},
                )
            count = previous.turn_count
            point = await branches.find_point(connection, previous.branch_id, count, count)
            return await _move_head(connection, session, previous.branch_id, point)

        return await self._run_once(request, session_id, change)

    async def _run_once(
        self,
        request: Request,
        session_id: str,
        change: Callable[[Connection], Awaitable[Changed]],
    ) -> Changed:
        result = await run_once(self._database, request, session_id, change)
        if isinstance(result, Replayed):
            now = await self._conversations.get(request.tenant, result.session_id)
            return Changed(now, result.branch_id)
        self._changed(request.tenant, result.session.session_id)
        return result


async def _lock(connection: Connection, request: Request, session_id: str) -> AgentSession:
    found = await sessions.lock(connection, request.tenant, session_id)
    if found is None:
        raise errors.AgentSessionNotFound.of(session_id)
    return found


def _check_active(session: AgentSession) -> None:
    if session.state is not AgentState.ACTIVE:
        raise errors.AgentSessionExpired.of(session.session_id, session.state)


async def _point(
    connection: Connection, session: AgentSession, turn: int | None, field: str
) -> BranchPoint:
    """The session's turn of this number (None: its newest). Raises InvalidField for `field`."""
    count = session.turn_count
    if turn is not None and turn > count:
        raise errors.InvalidField.of(field, f"must be from 0 to {count}, the turn count")
    number = count if turn is None else turn
    return await branches.find_point(connection, session.head_branch, count, number)


async def _move_head(
    connection: Connection, session: AgentSession, branch: int, point: BranchPoint
) -> Changed:
    moved = await sessions.move_head(
        connection, session.tenant, session.session_id, branch, point.turn_number, point.sums
    )
    return Changed(moved, session.head_branch)
