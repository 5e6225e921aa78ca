"""Streams of a session's changes: turns as they are appended, rewinds, states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.agent import AgentState, Turn
from session_service.pace import Pace
from session_service.storage.agent import reads, sessions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from session_service.storage.agent.changes import Changes
    from session_service.storage.agent.reads import Unseen
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Rewound:
    """A rewind: the conversation goes on after `to_turn`, on this branch. Later turns that the
    watcher has seen are not part of it any more.
    """

    to_turn: int
    branch_id: int


@dataclass(frozen=True, slots=True)
class Quiet:
    """No event for a while. The watcher has seen this turn of this branch, or did not ask for it.
    A branch of None is the head branch, which was not read yet.
    """

    branch_id: int | None
    turn: int


Event = Turn | Rewound | AgentState | Quiet


@dataclass(slots=True)
class _Cursor:
    """The last turn that the watcher has seen, its branch, and the last state."""

    branch_id: int | None
    turn: int
    state: AgentState | None = None

    def advance(self, found: Unseen) -> list[Event]:
        """Move past the turns that were read; return the events on the way."""
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


class Watch:
    """Streams the changes of agent sessions."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    async def watch(
        self,
        tenant: str,
        session_id: str,
        branch_id: int | None,
        after: int | None,
        pace: Pace | None = None,
        begun: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events after turn `after` of a branch (None: the head branch).

        If `after` is None, the events after the newest turn. If `pace` has heartbeats, a heartbeat
        is the event Quiet. `begun` is awaited once no change can be missed any more.

        Each round clears the event, reads the unseen turns, and only then waits: a change during
        the read sets the event, so the wait returns at once and no change is missed. No connection
        is held while it waits, or while the caller takes an event.

        The stream ends in four ways:

        - The caller cancels. The cancellation, or `aclose`, arrives at the `yield` or at an
          `await`, and the `with` removes the event from `Changes`.
        - The replica stops. The last event is Quiet, there is no error, and the caller resumes at
          another replica.
        - The pace is over. The stream ends as it does when the replica stops.
        - The session is purged. The stream raises AgentSessionNotFound.

        Raises AgentSessionNotFound, and InvalidField for a turn that does not exist.
        """
        with self._changes.watch(tenant, session_id) as changed:
            cursor = await self._begin(tenant, session_id, branch_id, after)
            pace = pace or Pace()
            if begun is not None:
                await begun()
            while not self._changes.stopping:
                changed.clear()
                found = await self._unseen(tenant, session_id, cursor)
                for event in cursor.advance(found):
                    yield event
                    pace.sent()
                if pace.silent:
                    yield Quiet(cursor.branch_id, cursor.turn)
                    pace.sent()
                if pace.over:
                    # Not before the first round, nor before what came meanwhile was sent.
                    break
                if cursor.turn >= found.session.turn_count:
                    await pace.wait(changed)
            yield Quiet(cursor.branch_id, cursor.turn)

    async def _begin(
        self, tenant: str, session_id: str, branch_id: int | None, after: int | None
    ) -> _Cursor:
        session = await sessions.get(self._database, tenant, session_id)
        if session is None:
            raise errors.AgentSessionNotFound.of(session_id)
        if after is None:
            return _Cursor(session.head_branch, session.turn_count)
        if branch_id in (None, session.head_branch) and after > session.turn_count:
            raise errors.InvalidField.of(
                "after_turn", f"must be from 0 to {session.turn_count}, the turn count"
            )
        return _Cursor(branch_id, after)

    async def _unseen(self, tenant: str, session_id: str, cursor: _Cursor) -> Unseen:
        found = await reads.unseen(
            self._database, tenant, session_id, cursor.branch_id, cursor.turn
        )
        if found is None:
            raise errors.AgentSessionNotFound.of(session_id)
        return found
