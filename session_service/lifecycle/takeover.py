"""Taking a transition over whose owner is gone: the public single shot, and who does which work.

ARCHITECTURE.md has the table: per transition, what a taker-over finds, and whether it finishes or
undoes.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any, assert_never

from session_service import points
from session_service.domain.deepening import deepens
from session_service.domain.states import Transition
from session_service.storage import leases, sessions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
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
        self._committing: set[asyncio.Task[asyncio.Task[None] | None]] = set()
        climber.lander.on_begun = self.begin

    @property
    def terms(self) -> leases.Terms:
        """What an intent of this replica says of its owner."""
        return self._ownership.terms

    async def commit(
        self, intent: Coroutine[Any, Any, Session | None]
    ) -> asyncio.Task[None] | None:
        """Commit an intent and begin its work, both or neither, whether or not the caller stays.

        None where the intent was not committed. Any: what coroutines send and receive, unused.
        """
        began = monotonic()

        async def both() -> asyncio.Task[None] | None:
            session = await points.around("intent", intent)
            return None if session is None else self.begin(session, began)

        return await self._whole(both())

    async def _whole(
        self, steps: Coroutine[Any, Any, asyncio.Task[None] | None]
    ) -> asyncio.Task[None] | None:
        """Run the steps to their end, also when the caller is cancelled in between."""
        task = asyncio.create_task(steps)
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        return await asyncio.shield(task)

    def begin(self, session: Session, began: float) -> asyncio.Task[None]:
        """Work on a transition whose intent this process just committed."""
        return self._ownership.carry(session, began, self._work_of(session))

    async def take_over(self, record: Record, *, came: bool = False) -> asyncio.Task[None] | None:
        """Take over the record's transition if its lease or deadline passed, and finish or undo it.

        `came` says that it is done for somebody who wants the session: a rest is then not deepened.
        None where there is nothing to take over, or somebody else was first.
        """
        return await self._whole(self._claim(record, came=came)) if record.lapsed else None

    async def _claim(self, record: Record, *, came: bool) -> asyncio.Task[None] | None:
        began = monotonic()
        session = await leases.claim(
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
        if came and deepens(session):
            # After the claim, from which the work counts, and before the work.
            await sessions.touch(self._database, session.tenant, session.session_id)
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
