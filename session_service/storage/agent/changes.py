"""Changes of agent sessions: wakes this replica's watchers, and notifies the other replicas.

A change becomes known in three ways:

- In this replica, a use case calls `changed` after its commit, and its watchers wake at once.
- To the other replicas, a background loop sends one NOTIFY a moment later, with all sessions that
  changed since the last one. The append itself sends none: NOTIFY takes a lock that all commits of
  the cluster share, and with 32 writers that leaves a third of the appends a second (measured).
- If a notice is lost (a replica dies before it sends, a connection breaks), a poll finds the
  change: one query for all sessions that are watched here. A lost notice costs time, and no event.

A watcher registers first (`watch`) and reads the rows then: a change after its read sets the event,
and a change before its read is in the rows.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from session_service import loops
from session_service.storage.agent.tables import llm_sessions
from session_service.storage.database import Database, compiled
from session_service.storage.listening import listening

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

    SessionKey = tuple[str, str]
    """Tenant and session id."""
    Mark = tuple[int, int, str]
    """Head branch, turn count, state: every change of a session changes one of them."""

CHANNEL = "roost_agent"
#: Bytes of a notice's payload; PostgreSQL's limit is 8,000.
NOTICE_BYTES = 7000
#: The interval of the loop that sends notices, in s, when nothing changes.
_IDLE = 3600.0
_TEXTS = ARRAY(sa.Text)
_asked = (
    sa.func.unnest(sa.bindparam("tenants", type_=_TEXTS), sa.bindparam("session_ids", type_=_TEXTS))
    .table_valued("tenant", "session_id")
    .render_derived()
)
_MARKS = compiled(
    lambda: sa.select(
        llm_sessions.c.tenant,
        llm_sessions.c.session_id,
        llm_sessions.c.head_branch,
        llm_sessions.c.turn_count,
        llm_sessions.c.state,
    ).join(
        _asked,
        (llm_sessions.c.tenant == _asked.c.tenant)
        & (llm_sessions.c.session_id == _asked.c.session_id),
    ),
    lambda row: ((str(row[0]), str(row[1])), (int(row[2]), int(row[3]), str(row[4]))),
)


@dataclass(frozen=True, slots=True)
class ChangeTimings:
    """Seconds: the least time between two notices, between polls, and until a reconnect."""

    notice_pause: float = 0.05
    poll_interval: float = 5.0
    reconnect_pause: float = 1.0


class Changes:
    """Wakes the watchers of a session when any replica changes it."""

    def __init__(self, url: str, database: Database, timings: ChangeTimings | None = None) -> None:
        """`url`: the database's address; the listener has a connection of its own."""
        self._url = url
        self._database = database
        self._timings = timings or ChangeTimings()
        self._watchers: dict[SessionKey, set[asyncio.Event]] = {}
        self._marks: dict[SessionKey, Mark] = {}
        self._unsent: set[SessionKey] = set()
        self._unsent_added = asyncio.Event()
        self.changed_here = asyncio.Event()
        """Set at each change by this replica. The index job waits for it, and clears it."""
        self.stopping = False

    def changed(self, tenant: str, session_id: str) -> None:
        """Report, after its commit, a change by this replica."""
        key = (tenant, session_id)
        self._wake(key)
        self._unsent.add(key)
        self._unsent_added.set()
        self.changed_here.set()

    def stop(self) -> None:
        """Wake all watchers for the last time; they see `stopping`, and end their streams."""
        self.stopping = True
        for key in self._watchers:
            self._wake(key)

    @contextmanager
    def watch(self, tenant: str, session_id: str) -> Generator[asyncio.Event]:
        """An event that is set at each change of the session. Read its rows after this."""
        key = (tenant, session_id)
        event = asyncio.Event()
        watchers = self._watchers.setdefault(key, set())
        watchers.add(event)
        try:
            yield event
        finally:
            watchers.discard(event)
            if not watchers:
                self._watchers.pop(key, None)
                self._marks.pop(key, None)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Listen, send notices and poll for as long as the context is open."""
        timings = self._timings
        async with AsyncExitStack() as stack:
            for name, shot, every in (
                ("agent-listen", self._listen, timings.reconnect_pause),
                ("agent-poll", self._poll, timings.poll_interval),
            ):
                await stack.enter_async_context(loops.running(name, shot, every=every))
            sending = loops.running(
                "agent-notify",
                self._send,
                every=_IDLE,
                woken=self._unsent_added,
                min_pause=timings.notice_pause,
            )
            await stack.enter_async_context(sending)
            yield

    def _wake(self, key: SessionKey) -> None:
        for event in self._watchers.get(key, ()):
            event.set()

    async def _send(self) -> None:
        """Send the sessions that changed since the last time, in as few notices as possible."""
        unsent, self._unsent = self._unsent, set()
        if not unsent:
            return
        async with self._database.connection() as connection:
            await connection.execute(
                "SELECT pg_notify(%s, notice) FROM unnest(%s::text[]) AS notice",
                [CHANNEL, list(_payloads(unsent))],
            )

    async def _listen(self) -> None:
        async with listening(self._url, CHANNEL) as payloads:
            async for payload in payloads:
                for tenant, session_id in json.loads(payload):
                    self._wake((tenant, session_id))

    async def _poll(self) -> None:
        """Wake the watchers of each session whose mark is not as at the last poll."""
        watched = list(self._watchers)
        if not watched:
            return
        marks = await self._read_marks(watched)
        for key in watched:
            # A purged session has no mark. It may never have had one: created, watched and purged
            # between two polls. So its watchers wake at every poll until they find it gone.
            if key not in marks or self._marks.get(key) != marks[key]:
                self._wake(key)
        self._marks = {key: marks[key] for key in watched if key in marks}

    async def _read_marks(self, keys: Sequence[SessionKey]) -> dict[SessionKey, Mark]:
        """The marks of those of the sessions that exist."""
        params = {
            "tenants": [tenant for tenant, _ in keys],
            "session_ids": [session_id for _, session_id in keys],
        }
        return dict(await self._database.fetch_all(_MARKS, params))


def _payloads(keys: set[SessionKey]) -> Generator[str]:
    """JSON arrays of [tenant, session id], each short enough for a notice."""
    batch: list[SessionKey] = []
    size = 0
    for key in keys:
        length = len(json.dumps(key))
        if batch and size + length > NOTICE_BYTES:
            yield json.dumps(batch)
            batch, size = [], 0
        batch.append(key)
        size += length + 2
    yield json.dumps(batch)
