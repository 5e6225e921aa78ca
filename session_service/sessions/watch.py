"""WatchSession: a stream of a session's events, from a given event number on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.pace import Pace
from session_service.sessions.lookup import require
from session_service.storage.session import events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from uuid import UUID

    from session_service.domain.session import Record
    from session_service.storage.database import Database
    from session_service.storage.notifications import Notices
    from session_service.storage.session.events import Event

#: Events read at once. A slow client keeps no more than these in memory.
BATCH = 100
#: The longest wait for a notification before the rows are read anyway, in s: notifications can be
#: lost. Each watcher waits for a random part of it, so that the watchers of a replica do not all
#: read at the same time. After a broken LISTEN connection is restored, all watchers are woken.
POLL = 60.0


@dataclass(frozen=True, slots=True)
class WatchedEvent:
    """An event, and the session as it was when the event was sent. `event` is None if retention has
    deleted all events that the watcher has not received.
    """

    event: Event | None
    record: Record
    past_is_gone: bool = False
    """Whether events before this one were deleted before this watcher could read them."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """No event for a while. The last one that was sent has this number."""

    sequence: int


class Watch:
    """Streams the events of sessions."""

    def __init__(self, database: Database, notices: Notices) -> None:
        self._database = database
        self._notices = notices

    async def watch(
        self,
        tenant: str,
        session_id: UUID,
        after: int,
        pace: Pace | None = None,
        begun: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[WatchedEvent | Quiet, None]:
        """Yield the events after number `after`, old and new, until the caller closes the stream.

        With a `pace` that has heartbeats, Quiet is one. When the pace is over, Quiet is the last,
        and the stream ends. `begun` is awaited once no change can be missed any more.

        Raises SessionNotFound, also when the session's rows are deleted later; InvalidField if
        `after` is greater than the newest event's number; ServiceStopping when this replica stops.
        """
        # Subscribe first, read second: a change that commits between the two sets the notice. In
        # the other order it would be missed until the poll. `clear` comes before the read for the
        # same reason.
        with self._notices.watch(session_id) as notice:
            record = await require(self._database, tenant, session_id)
            newest = record.session.event_sequence
            if after > newest:
                raise errors.InvalidField.of(
                    "after_sequence", f"must be from 0 to {newest}, the newest event's number"
                )
            seen = after
            pace = pace or Pace()
            if begun is not None:
                await begun()
            while not self._notices.stopping:
                if pace.silent:
                    yield Quiet(seen)
                    pace.sent()
                notice.clear()
                found = await events.after(self._database, session_id, seen, BATCH)
                # After the events: read before them, the session could be older than an event that
                # is sent with it.
                record = await require(self._database, tenant, session_id)
                if not found and record.session.event_sequence > seen:
                    # Either an event was committed between the two reads (the next round finds it),
                    # or retention has deleted all events up to the session's newest number.
                    if await events.after(self._database, session_id, seen, 1):
                        continue
                    seen = record.session.event_sequence
                    yield WatchedEvent(None, record, past_is_gone=True)
                    pace.sent()
                for event in found:
                    yield WatchedEvent(event, record, past_is_gone=event.sequence > seen + 1)
                    seen = event.sequence
                    pace.sent()
                if pace.over:
                    # Not before the first round, nor before what came meanwhile was sent.
                    break
                if len(found) < BATCH:
                    await pace.wait(notice, POLL * random.uniform(0.5, 1.0))
            if self._notices.stopping:
                raise errors.ServiceStopping(
                    "this replica is stopping; call WatchSession again with the last sequence "
                    "received",
                    {"after_sequence": str(seen)},
                )
            yield Quiet(seen)
