"""Notes on the way: what a climb learns is written at once, and what the rows say is read again."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_service.lifecycle.ownership import OwnershipLost
from session_service.storage import sessions, transitions

if TYPE_CHECKING:
    from session_service.lifecycle.climb import Climb
    from session_service.storage.database import Database
    from session_service.storage.transitions import Change


class Notes:
    """Keeps a climb and its rows the same."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, climb: Climb, change: Change) -> None:
        """Write a note on the way. Raises OwnershipLost where the epoch has moved on."""
        noted = replace(change, advance=False)
        if await transitions.write(self._database, noted) is None:
            raise OwnershipLost
        await self.reread(climb)

    async def reread(self, climb: Climb) -> None:
        """Read it as it is now. Raises OwnershipLost where the epoch has moved on."""
        record = await sessions.find(self._database, climb.held.session_id)
        if record is None or record.container is None or record.session.epoch != climb.held.epoch:
            raise OwnershipLost
        climb.session, climb.container, climb.now = record.session, record.container, record.now
