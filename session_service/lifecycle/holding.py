"""PutHold and ReleaseHold: keep a session from going idle for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import holds
from session_service.domain.states import State
from session_service.storage import holding

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.holds import Hold
    from session_service.domain.session import Record
    from session_service.storage.database import Database

#: States in which a session can be held: it runs, or is about to.
HOLDABLE = frozenset({State.STARTING, State.ACTIVE, State.PAUSING})


class Holding:
    """Puts holds and takes them away. Holds need no request id: repeating one is harmless."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def put(self, tenant: str, session_id: UUID, name: str, ttl: timedelta) -> Hold:
        """Hold the session until now + `ttl`; a hold of the name is set anew.

        Raises SessionNotFound, SessionStateConflict where it does not run, QuotaExceeded.
        """

        def make(record: Record) -> tuple[Hold, ...]:
            if record.session.state not in HOLDABLE:
                raise errors.SessionStateConflict(
                    f"the session is {record.session.state}; only one that runs can be held: "
                    "resume it first"
                )
            try:
                return holds.put(record.session.holds, name, ttl, record.now)
            except holds.TooMany:
                raise errors.QuotaExceeded(
                    f"the session has {holds.MOST} holds already; release one, or use its name"
                ) from None

        made = await holding.change(self._database, tenant, session_id, "HOLD_PUT", name, make)
        if made is None:
            raise errors.SessionNotFound(f"no session {session_id}")
        return next(hold for hold in made if hold.name == name)

    async def release(self, tenant: str, session_id: UUID, name: str) -> None:
        """Give the hold back; one that is not there is a success. Raises SessionNotFound."""

        def make(record: Record) -> tuple[Hold, ...] | None:
            if all(hold.name != name for hold in holds.load(record.session.holds)):
                return None
            return holds.release(record.session.holds, name, record.now)

        made = await holding.change(self._database, tenant, session_id, "HOLD_RELEASED", name, make)
        if made is None:
            raise errors.SessionNotFound(f"no session {session_id}")
