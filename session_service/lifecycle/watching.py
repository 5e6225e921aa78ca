"""WatchSession: what happens to a session, from a given event on, as it happens."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.lifecycle.reading import require
from session_service.storage import events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from uuid import UUID

    from session_service.domain.session import Record
    from session_service.storage.database import Database
    from session_service.storage.events import Event
    from session_service.storage.notifications import Notices

#: Events read at once: a watcher that is slow holds no more in memory.
BATCH = 100
#: A notice can be missed: so long, in s, until a watcher looks all the same, or somewhat sooner, so
#: that those of a replica do not all look at once. Who listens again after a break wakes everybody.
POLL = 60.0


@dataclass(frozen=True, slots=True)
class Happened:
    """An event, and the session as it is when it is told; `event` None: all events are gone."""

    event: Event | None
    record: Record
    past_is_gone: bool = False


class Watching:
    """Streams of what happens to sessions."""

    def __init__(self, database: Database, notices: Notices) -> None:
        self._database = database
        self._notices = notices

    async def watch(
        self, tenant: str, session_id: UUID, after: int
    ) -> AsyncGenerator[Happened, None]:
        """What happens after event number `after`, until the caller stops.

        Raises SessionNotFound, also once the session's rows are deleted, InvalidField for an event
        that there is not yet, and ServiceStopping when this replica goes away.
        """
        with self._notices.watch(session_id) as notice:
            record = await require(self._database, tenant, session_id)
            newest = record.session.event_sequence
            if after > newest:
                raise errors.InvalidField.of(
                    "after_sequence", f"must be from 0 to {newest}, the newest event's number"
                )
            seen = after
            while not self._notices.stopping:
                notice.clear()
                found = await events.after(self._database, session_id, seen, BATCH)
                # In this order, so that no event is told with a session from before it.
                record = await require(self._database, tenant, session_id)
                if not found and record.session.event_sequence > seen:
                    # Committed between the two reads, which the next round finds, or gone.
                    if await events.after(self._database, session_id, seen, 1):
                        continue
                    seen = record.session.event_sequence
                    yield Happened(None, record, past_is_gone=True)
                for event in found:
                    yield Happened(event, record, past_is_gone=event.sequence > seen + 1)
                    seen = event.sequence
                if len(found) < BATCH:
                    await _until(notice)
            raise errors.ServiceStopping(
                "this replica stops; watch again, after the last number that was seen"
            )


async def _until(notice: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(POLL * random.uniform(0.5, 1.0)):
            await notice.wait()
