"""PutHold and ReleaseHold. A session with a hold is not paused for being idle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import holds
from session_service.domain.states import State
from session_service.storage.session import holds as session_holds

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.holds import Hold
    from session_service.domain.session import Record
    from session_service.storage.database import Database

#: States in which a hold can be put: the session is starting, runs, or is being paused.
HOLDABLE = frozenset({State.STARTING, State.ACTIVE, State.PAUSING})


class Holds:
    """Puts and releases holds. The calls have no request id, because repeating one is harmless."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, tenant: str, session_id: UUID, name: str, ttl: timedelta) -> Hold:
        """Hold the session until now + `ttl`. A hold of the same name is replaced.

        Raises SessionNotFound; SessionStateConflict unless the state is one of `HOLDABLE`;
        QuotaExceeded if the session already has the greatest number of holds.
        """

        def new_holds(record: Record) -> tuple[Hold, ...]:
            if record.session.state not in HOLDABLE:
                raise errors.SessionStateConflict(
                    f"the session is {record.session.state}; only a running session can be held: "
                    "resume it first"
                )
            try:
                return holds.put(record.session.holds, name, ttl, record.now)
            except holds.TooMany:
                raise errors.QuotaExceeded(
                    f"the session already has {holds.MOST} holds; release one, or reuse its name"
                ) from None

        changed = await session_holds.change(
            self._database, tenant, session_id, "HOLD_PUT", name, new_holds
        )
        if changed is None:
            raise errors.SessionNotFound(f"no session {session_id}")
        return next(hold for hold in changed if hold.name == name)

    async def release(self, tenant: str, session_id: UUID, name: str) -> None:
        """Release the hold. Succeeds if there is no such hold. Raises SessionNotFound."""

        def new_holds(record: Record) -> tuple[Hold, ...] | None:
            if all(hold.name != name for hold in holds.load(record.session.holds)):
                return None
            return holds.release(record.session.holds, name, record.now)

        changed = await session_holds.change(
            self._database, tenant, session_id, "HOLD_RELEASED", name, new_holds
        )
        if changed is None:
            raise errors.SessionNotFound(f"no session {session_id}")
