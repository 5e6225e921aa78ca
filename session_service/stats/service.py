"""GetSessionStats: the statistics of a time span, and the current gauges."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.domain.session import Rung
from session_service.domain.stats import Current, Figures
from session_service.storage.session import gauges, stats

if TYPE_CHECKING:
    from session_service.domain.stats import Span
    from session_service.storage.database import Database

#: The most calls that a replica counts at once. More would take database connections from starts.
AT_ONCE = 2


class Stats:
    """Counts the sessions of a time span from the rows of the database and their roll-ups."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._limit = asyncio.Semaphore(AT_ONCE)

    async def figures(self, span: Span) -> Figures:
        """All statistics of a span, and the current gauges. Raises StorageUnavailable."""
        async with self._limit:
            counted = await stats.count(self._database, span)
            now = await gauges.read(self._database)
        return Figures(
            span,
            counted.whole.day(span.start),
            [counted.days[start].day(start) for start in sorted(counted.days)],
            counted.joins,
            counted.replays,
            dict(sorted(counted.refusals.items())),
            {rung: counted.rungs[rung] for rung in Rung if rung in counted.rungs},
            dict(sorted(counted.ends.items())),
            counted.average_lifetime,
            counted.preferred,
            Current(now.oldest, now.overaged, now.due, now.orphans),
        )
