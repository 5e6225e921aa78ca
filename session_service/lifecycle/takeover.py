"""Taking a transition over whose owner is gone: the public single shot, and who does which work.

ARCHITECTURE.md has the table: per transition, what a taker-over finds, and whether it finishes or
undoes.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, assert_never

from session_service.domain.states import Transition
from session_service.storage import sessions, transitions

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from session_service.domain.session import Record, Session
    from session_service.lifecycle.climbing import Climber
    from session_service.lifecycle.ownership import Held, Ownership
    from session_service.lifecycle.resting import Rester
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


class Work:
    """Carries transitions out, those begun here and those taken over."""

    def __init__(
        self, database: Database, ownership: Ownership, climber: Climber, rester: Rester
    ) -> None:
        self._database = database
        self._ownership = ownership
        self._climber = climber
        self._rester = rester
        climber.on_replaced = self.begin

    @property
    def terms(self) -> transitions.Terms:
        """What an intent of this replica says of its owner."""
        return self._ownership.terms

    def begin(self, session: Session, began: float) -> asyncio.Task[None]:
        """Work on a transition whose intent this process just committed."""
        return self._ownership.carry(session, began, self._work_of(session))

    async def take_over(self, record: Record) -> asyncio.Task[None] | None:
        """Take over the record's transition if its lease or deadline passed, and finish or undo it.

        None where there is nothing to take over, or somebody else was first.
        """
        if not record.lapsed:
            return None
        began = monotonic()
        session = await transitions.claim(
            self._database, record.session.session_id, record.session.epoch, self.terms
        )
        if session is None:
            return None
        _log.warning(
            "took over a transition whose owner is gone",
            extra={
                "action": "take_over",
                "session_id": str(session.session_id),
                "transition": session.transition,
                "epoch": session.epoch,
            },
        )
        return self._ownership.carry(session, began, self._work_of(session), taken_over=True)

    async def take_over_session(self, session_id: UUID) -> bool:
        """The single shot: take over this session's transition and see it through.

        True where it was this call that did; the keeper's loop is put around it.
        """
        record = await sessions.find(self._database, session_id)
        task = None if record is None else await self.take_over(record)
        if task is None:
            return False
        await task
        return True

    def _work_of(self, session: Session) -> Callable[[Held], Awaitable[None]]:
        """Who does the work of the session's transition."""
        match session.transition:
            case Transition.START:
                return self._climber.carry_out
            case Transition.PAUSE | Transition.END | Transition.PURGE:
                return self._rester.carry_out
            case Transition.REPLACE | None:
                raise AssertionError(f"nothing to carry out: {session.transition}")
            case other:
                assert_never(other)
