"""Reading sessions and decisions: by id, by key, in pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.idleness import explain
from session_service.lifecycle.reading import require
from session_service.storage import decisions, listing, sessions

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.decision import Decision
    from session_service.domain.idleness import Explanation
    from session_service.domain.keeping import Habits
    from session_service.domain.session import Key, Record
    from session_service.storage.database import Database
    from session_service.storage.listing import Page


class Lookups:
    """What can be read without asking the provider."""

    def __init__(self, database: Database, habits: Habits) -> None:
        self._database = database
        self._habits = habits

    async def get(self, tenant: str, session_id: UUID) -> Record:
        """The tenant's session. Raises SessionNotFound."""
        return await require(self._database, tenant, session_id)

    async def explain(self, tenant: str, session_id: UUID) -> Explanation:
        """What keeps the tenant's session awake. Raises SessionNotFound."""
        return explain(await require(self._database, tenant, session_id), self._habits)

    async def live(self, key: Key) -> Record:
        """The live session at the key. Raises SessionNotFound."""
        record = await sessions.live_at(self._database, key)
        if record is None:
            raise errors.SessionNotFound("no live session at this key; StartSession makes one")
        return record

    async def touch(self, tenant: str, session_id: UUID, activity: str = "") -> Record:
        """The session, its activity noted if it runs. Raises SessionNotFound."""
        record = await sessions.touch(self._database, tenant, session_id, activity)
        if record is None:
            raise errors.SessionNotFound(f"no session {session_id}")
        return record

    async def page(self, wanted: Page) -> list[Record]:
        """Up to `wanted.size` sessions."""
        return await listing.page(self._database, wanted)

    async def decisions(
        self, tenant: str, session_id: UUID | None, last: UUID | None, size: int
    ) -> list[Decision]:
        """Up to `size` decisions, newest first, older than `last`."""
        return await decisions.page(self._database, tenant, session_id, last, size)
