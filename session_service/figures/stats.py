"""GetSessionStats: the figures of a span, and how things stand now."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.domain.figures import Current, Figures, Preferred
from session_service.domain.session import Rung
from session_service.storage import ages, choices, stats

if TYPE_CHECKING:
    from session_service.domain.figures import Span
    from session_service.storage.database import Database

#: Counted at once in a replica: starts are to find connections.
AT_ONCE = 2


class Stats:
    """Counts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._places = asyncio.Semaphore(AT_ONCE)

    async def figures(self, span: Span) -> Figures:
        """All figures of a span. Raises StorageUnavailable."""
        async with self._places:
            counted = await stats.count(self._database, span)
            chosen = await choices.tally(
                self._database, span.tenant, span.project_id, span.start, span.end
            )
            seen = await ages.look(self._database)
        return Figures(
            span,
            counted.whole,
            [counted.days[start] for start in sorted(counted.days)],
            counted.joins,
            counted.replays,
            dict(sorted(counted.refusals.items())),
            {rung: counted.rungs[rung] for rung in Rung if rung in counted.rungs},
            dict(sorted(counted.ends.items())),
            counted.lifetime / counted.lived if counted.lived else None,
            Preferred(chosen.continued, chosen.fresh, chosen.auto_resumed, chosen.always_fresh),
            Current(seen.oldest, seen.overaged, seen.due, seen.orphans),
        )
