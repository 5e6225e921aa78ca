"""The pass that rolls the statistics of sessions up, in bounded steps, at one replica at a time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from session_service.storage import claims
from session_service.storage.session import rollups
from session_service.storage.session.retained import NAME

if TYPE_CHECKING:
    from session_service.storage.database import Database

#: How long one pass works at most, in s. What is left is done by the next one.
LONGEST = 20.0
#: How long a claim holds: longer than a pass and the statement that it ends with.
HOLD = timedelta(seconds=60)


@dataclass(slots=True)
class RolledUp:
    """What a pass rolled up."""

    hours: int = 0
    days: int = 0
    late_hours: int = 0
    late_days: int = 0


class RollUp:
    """Rolls finished hours and days up, oldest first, and again what changed later."""

    def __init__(self, database: Database, kept: timedelta, longest: float = LONGEST) -> None:
        """`kept`: how long decisions are kept. `longest`: how long a pass works, in s."""
        self._database = database
        self._kept = kept
        self._longest = longest

    async def shot(self, hold: timedelta = HOLD) -> RolledUp | None:
        """Make a pass; None if it is not due. Each step is a transaction of its own, and so a pass
        that breaks off has lost nothing. Raises StorageUnavailable.
        """
        if not await claims.claim(self._database, NAME, hold):
            return None
        database, done = self._database, RolledUp()
        await rollups.begin(database, self._kept)
        until = monotonic() + self._longest
        while monotonic() < until:
            # New periods first: retention waits for them, and late hours may come again and again.
            if await rollups.roll_up_day(database):
                done.days += 1
            elif await rollups.roll_up_hour(database):
                done.hours += 1
            elif await rollups.roll_up_late_hour(database):
                done.late_hours += 1
            elif await rollups.roll_up_late_day(database):
                done.late_days += 1
            else:
                await rollups.recount(database)
                return done
        await claims.release(database, NAME)
        return done
