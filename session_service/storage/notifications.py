"""Notices about changed sessions (LISTEN and NOTIFY), so that a call that waits for a session does
not have to poll often.

A notice can be missed, for example when the connection is lost or the server restarts. Every wait
therefore also polls slowly: a missed notice costs time, and never correctness.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa

from session_service import loops
from session_service.storage.listening import listening

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from uuid import UUID

_log = logging.getLogger(__name__)
#: The channel of the notices. The payload is the session's id.
CHANNEL = "roost_session"
#: The pause before the listener connects again, in s.
RECONNECT = 1.0


def notice(session_id: sa.ColumnElement[UUID]) -> sa.ColumnElement[None]:
    """A column for the statement that changes a session: it sends a notice at the commit."""
    return sa.func.pg_notify(CHANNEL, sa.cast(session_id, sa.Text))


class Notices:
    """Wakes the watchers of a session when any replica commits a change of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.stopping = False

    def stop(self) -> None:
        """Set `stopping` and wake all watchers."""
        self.stopping = True
        self._wake_all()

    @contextmanager
    def watch(self, session_id: UUID) -> Generator[asyncio.Event]:
        """An event that is set at each notice about the session.

        Begin to watch before you read the row. Otherwise a change that is committed between the
        read and the watch is missed until the next poll.
        """
        event = asyncio.Event()
        watchers = self._watchers.setdefault(str(session_id), set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(str(session_id), None)

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None, None]:
        """Listen in the background for as long as the context is open."""
        task = asyncio.create_task(self._listen(), name="notices")
        try:
            yield
        finally:
            await loops.end({task})

    async def _listen(self) -> None:
        while True:
            try:
                await self._listen_once()
            except psycopg.Error as error:
                _log.warning(
                    "not listening for changed sessions: %s",
                    type(error).__name__,
                    extra={"action": "listen"},
                )
            await asyncio.sleep(RECONNECT)

    async def _listen_once(self) -> None:
        async with listening(self._url, CHANNEL) as payloads:
            # There were no notices while the connection was down. All watchers read once.
            self._wake_all()
            async for session_id in payloads:
                for event in self._watchers.get(session_id, ()):
                    event.set()

    def _wake_all(self) -> None:
        for watchers in self._watchers.values():
            for event in watchers:
                event.set()
