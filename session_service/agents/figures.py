"""What can be asked of many sessions at once: words, and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.storage import agent_search, agent_stats

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.storage.agent_search import Found, Search
    from session_service.storage.agent_stats import Stats
    from session_service.storage.database import Database


class Figures:
    """Searches and counts."""

    def __init__(self, database: Database, language: str) -> None:
        """`language`: the text search configuration that the index is made with."""
        self._database = database
        self._language = language

    async def search(self, wanted: Search) -> Found:
        """The messages that match, best first."""
        return await agent_search.search(self._database, self._language, wanted)

    async def stats(
        self, tenant: str, agent_role: str | None, start: datetime, end: datetime
    ) -> list[Stats]:
        """The figures of the sessions created from `start` on and before `end`, by role."""
        return await agent_stats.stats(self._database, tenant, agent_role, start, end)
