"""Hearing of agent sessions that changed, in this replica and in others.

A NOTIFY takes a lock that all commits of the cluster share: with 32 writers it leaves a third of
the appends a second (measured). So no append makes one in its own commit: a replica tells the
others a moment later, of all sessions at once. A notice that is lost costs time only: a poll, one
query for all sessions that are watched here, stands behind it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from session_service import loops
from session_service.storage import agent_watching, connections

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from session_service.storage.database import Database

    Name = tuple[str, str]

_log = logging.getLogger(__name__)
CHANNEL = "roost_agent"
#: Between two notices of this replica, in s.
REST = 0.05
#: Between two polls, in s.
POLL = 5.0
#: Between tries to connect again, in s.
RECONNECT = 1.0
#: A notice holds less than 8,000 bytes.
ROOM = 7000


class Changes:
    """Wakes those who watch a session when it changes, whichever replica did it."""

    def __init__(self, url: str, database: Database) -> None:
        self._url = url
        self._database = database
        self._watchers: dict[Name, set[asyncio.Event]] = {}
        self._marks: dict[Name, tuple[int, int, str]] = {}
        self._untold: set[Name] = set()
        self._telling = asyncio.Event()
        self.stopping = False

    def changed(self, tenant: str, session_id: str) -> None:
        """Say, after its commit, that this replica has changed a session."""
        name = (tenant, session_id)
        self._wake(name)
        self._untold.add(name)
        self._telling.set()

    def stop(self) -> None:
        """Wake all who watch, for the last time: `stopping` says so."""
        self.stopping = True
        for name in self._watchers:
            self._wake(name)

    @contextmanager
    def watch(self, tenant: str, session_id: str) -> Generator[asyncio.Event]:
        """An event that is set at each change; begin to watch before reading the rows."""
        name = (tenant, session_id)
        event = asyncio.Event()
        watchers = self._watchers.setdefault(name, set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(name, None)
                self._marks.pop(name, None)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Listen, tell and poll for as long as the context is open."""
        async with AsyncExitStack() as stack:
            for name, shot, every in (
                ("agent-listen", self._listen, RECONNECT),
                ("agent-poll", self._poll, POLL),
            ):
                await stack.enter_async_context(loops.running(name, shot, every=every))
            telling = loops.running(
                "agent-tell", self._tell, every=3600.0, woken=self._telling, rest=REST
            )
            await stack.enter_async_context(telling)
            yield

    def _wake(self, name: Name) -> None:
        for event in self._watchers.get(name, ()):
            event.set()

    async def _tell(self) -> None:
        """Send what changed since the last time, in as few notices as it fits into."""
        untold, self._untold = self._untold, set()
        if not untold:
            return
        async with self._database.connection() as connection:
            await connection.execute(
                "SELECT pg_notify(%s, notice) FROM unnest(%s::text[]) AS notice",
                [CHANNEL, list(_notices(untold))],
            )

    async def _listen(self) -> None:
        async with connections.listening(self._url, CHANNEL) as payloads:
            async for payload in payloads:
                for tenant, session_id in json.loads(payload):
                    self._wake((tenant, session_id))

    async def _poll(self) -> None:
        """Wake whoever watches a session that is not as it was at the last poll."""
        watched = list(self._watchers)
        if not watched:
            return
        now = await agent_watching.marks(self._database, watched)
        for name in watched:
            # One that is gone has no mark, and may have had none before: it went too soon for that.
            if name not in now or self._marks.get(name) != now[name]:
                self._wake(name)
        self._marks = {name: now[name] for name in watched if name in now}


def _notices(names: set[Name]) -> Generator[str]:
    """JSON arrays of names, each short enough for a notice."""
    batch: list[Name] = []
    size = 0
    for name in names:
        length = len(json.dumps(name))
        if batch and size + length > ROOM:
            yield json.dumps(batch)
            batch, size = [], 0
        batch.append(name)
        size += length + 2
    yield json.dumps(batch)
