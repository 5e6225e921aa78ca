"""The pass that rolls the figures of agent sessions up, at one replica at a time."""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from session_service.storage import claims
from session_service.storage.agent import rollups
from session_service.storage.agent.stats import NAME

if TYPE_CHECKING:
    from session_service.storage.database import Database

#: How long one pass works at most after it has looked for appends, in s.
LONGEST = 20.0
#: How long a claim holds, which is how often a pass is made while there is nothing left to do.
HOLD = timedelta(seconds=60)


async def run_pass(database: Database, hold: timedelta = HOLD) -> bool:
    """Roll finished days up, and those that changed since; False if the pass is not due. Each step
    is a transaction of its own. Raises StorageUnavailable.
    """
    if not await claims.claim(database, NAME, hold):
        return False
    await rollups.begin(database)
    await rollups.roll_up_seen(database)
    until = monotonic() + LONGEST
    while monotonic() < until:
        if not (await rollups.roll_up_late(database) or await rollups.roll_up_day(database)):
            return True
    await claims.release(database, NAME)
    return True
