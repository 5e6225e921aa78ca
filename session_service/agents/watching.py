"""Watching a session: its turns as they come, from whatever turn was seen last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.agents import refusals
from session_service.domain.agent import AgentState, Turn
from session_service.storage import agent_sessions, agent_watching

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.storage.agent_changes import Changes
    from session_service.storage.agent_watching import Unseen
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Rewound:
    """The session goes on from an earlier turn than was seen, or on another branch."""

    to_turn: int
    branch_id: int


Event = Turn | Rewound | AgentState


@dataclass(slots=True)
class _Cursor:
    """What a watcher has seen."""

    branch_id: int | None
    turn: int
    state: AgentState | None = None

    def advance(self, found: Unseen) -> list[Event]:
        """Move to what was found; the events that this is."""
        events: list[Event] = []
        session = found.session
        if self.branch_id not in (None, session.head_branch) or found.common < self.turn:
            events.append(Rewound(found.common, session.head_branch))
        self.branch_id, self.turn = session.head_branch, found.common
        for turn in found.turns:
            events.append(turn)
            self.turn = turn.turn_number
        if self.state not in (None, session.state):
            events.append(session.state)
        self.state = session.state
        return events


class Watching:
    """Streams of what happens to sessions."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    async def watch(
        self, tenant: str, session_id: str, branch_id: int | None, after: int | None
    ) -> AsyncGenerator[Event, None]:
        """What happens after turn `after` of a branch (None: the session's own), until we stop.

        `after` None: after the newest. Raises AgentSessionNotFound, also when it is purged, and
        InvalidField for a turn that there is not.
        """
        with self._changes.watch(tenant, session_id) as changed:
            cursor = await self._begin(tenant, session_id, branch_id, after)
            while not self._changes.stopping:
                changed.clear()
                found = await self._unseen(tenant, session_id, cursor)
                for event in cursor.advance(found):
                    yield event
                if cursor.turn >= found.session.turn_count:
                    await changed.wait()

    async def _begin(
        self, tenant: str, session_id: str, branch_id: int | None, after: int | None
    ) -> _Cursor:
        session = await agent_sessions.get(self._database, tenant, session_id)
        if session is None:
            raise refusals.missing(session_id)
        if after is None:
            return _Cursor(session.head_branch, session.turn_count)
        if branch_id in (None, session.head_branch) and after > session.turn_count:
            raise errors.InvalidField.of(
                "after_turn", f"must be from 0 to {session.turn_count}, the turn count"
            )
        return _Cursor(branch_id, after)

    async def _unseen(self, tenant: str, session_id: str, cursor: _Cursor) -> Unseen:
        found = await agent_watching.unseen(
            self._database, tenant, session_id, cursor.branch_id, cursor.turn
        )
        if found is None:
            raise refusals.missing(session_id)
        return found
