"""Hearing of sessions that changed, so that whoever waits for one need not poll fast.

A notice can be missed (the connection drops, the server restarts), so that every wait has a slow
poll behind it: a notice saves time, its lack loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import psycopg
import sqlalchemy as sa

from session_service import loops
from session_service.storage import connections

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from uuid import UUID

_log = logging.getLogger(__name__)
#: Who waits for a session listens here; the payload is its id.
CHANNEL = "roost_session"
#: Between tries to connect again, in s.
RECONNECT = 1.0


def notice(session_id: sa.ColumnElement[UUID]) -> sa.ColumnElement[None]:
    """Tell all who wait for this session; for the columns of the statement that changes it."""
    return sa.func.pg_notify(CHANNEL, sa.cast(session_id, sa.Text))


class Notices:
    """Wakes those who watch a session when any replica commits a change of it."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self.stopping = False

    def stop(self) -> None:
        """Wake all who watch, for the last time: `stopping` says so."""
        self.stopping = True
        self._wake_all()

    @contextmanager
    def watch(self, session_id: UUID) -> Generator[asyncio.Event]:
        """An event that is set at each notice; begin to watch before reading the row."""
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
        async with connections.listening(self._url, CHANNEL) as payloads:
            # What was committed while nobody listened: let everybody look once.
            self._wake_all()
            async for session_id in payloads:
                for event in self._watchers.get(session_id, ()):
                    event.set()

    def _wake_all(self) -> None:
        for watchers in self._watchers.values():
            for event in watchers:
                event.set()
