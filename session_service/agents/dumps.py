"""Taking dumps in and giving them out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from session_service.agents import refusals
from session_service.domain.agent import AgentSession, AgentState
from session_service.storage import agent_listing, agent_moves, agent_reading, agent_sessions
from session_service.storage.agent_listing import After
from session_service.storage.agent_reading import Position
from session_service.storage.connections import PATIENT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.domain.agent import Imported, ImportedTurn, SessionFilter, Turn
    from session_service.storage.database import Connection, Database

#: Turns that are written in one transaction, and their size in bytes.
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
#: Refusals that are told one by one.
TOLD = 100
#: From so many new turns on, the planner is told.
MANY = 10_000
SESSIONS = 20


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that could not be taken."""

    record: int
    session_id: str
    turn_number: int
    reason: str
    message: str


@dataclass(slots=True)
class Report:
    """What came of a dump."""

    imported_sessions: int = 0
    imported_turns: int = 0
    existing_sessions: int = 0
    existing_turns: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, refusal: Refusal) -> None:
        """Count a refusal, and keep the first ones."""
        self.refused += 1
        if len(self.refusals) < TOLD:
            self.refusals.append(refusal)


class Import:
    """One dump on its way in. Whatever was taken stays when it breaks off: repeat it from the
    start, and what is there is left as it is.
    """

    def __init__(self, database: Database, tenant: str) -> None:
        self.report = Report()
        self._database = database
        self._tenant = tenant
        self._batch: list[ImportedTurn] = []
        self._bytes = 0
        self._refused: str | None = None

    async def session(self, record: int, wanted: Imported) -> None:
        """Take a session, unless it is there."""
        await self._flush()
        self._refused = None
        if await agent_moves.make(self._database, self._tenant, wanted):
            self.report.imported_sessions += 1
            return
        found = await agent_sessions.get(
            self._database, self._tenant, wanted.session_id, context=True
        )
        if found is not None and _alike(found, wanted):
            self.report.existing_sessions += 1
            return
        self._refused = wanted.session_id
        self.report.refuse(
            Refusal(
                record,
                wanted.session_id,
                0,
                "SESSION_DIFFERS",
                "there is a session of this id with another role or startup context",
            )
        )

    async def turn(self, wanted: ImportedTurn) -> None:
        """Take a turn; it is written with others of its session."""
        if wanted.session_id == self._refused:
            self._refuse(wanted, "SESSION_REFUSED", "its session was refused")
            return
        if self._batch and self._batch[0].session_id != wanted.session_id:
            await self._flush()
        self._batch.append(wanted)
        self._bytes += wanted.turn.size
        if len(self._batch) >= BATCH or self._bytes >= BATCH_BYTES:
            await self._flush()

    async def finish(self) -> Report:
        """Write what is left, and tell what came of it all."""
        await self._flush()
        self.report.refusals.sort(key=lambda refusal: refusal.record)
        if self.report.imported_turns >= MANY:
            await agent_moves.analyze(self._database)
        return self.report

    async def _flush(self) -> None:
        batch, self._batch, self._bytes = self._batch, [], 0
        if not batch:
            return
        session_id = batch[0].session_id
        there = await self._there(session_id, batch)
        async with self._database.transaction(PATIENT) as connection:
            session = await agent_sessions.lock(connection, self._tenant, session_id)
            if session is None:
                missing = refusals.missing(session_id)
                for turn in batch:
                    self._refuse(turn, missing.reason, missing.message)
                return
            new = self._sort(session, batch, there)
            if new:
                await self._add(connection, session, new)

    async def _there(self, session_id: str, batch: list[ImportedTurn]) -> dict[int, Turn]:
        """Those of the batch's turns that the session has."""
        first = min(turn.turn_number for turn in batch)
        last = max(turn.turn_number for turn in batch)
        found: dict[int, Turn] = {}
        position = Position(last=first - 1)
        while True:
            page = await agent_reading.page(
                self._database,
                self._tenant,
                session_id,
                position,
                size=BATCH,
                max_bytes=BATCH_BYTES,
                descending=False,
            )
            if page is None or not page.turns:
                return found
            found |= {turn.turn_number: turn for turn in page.turns}
            newest = page.turns[-1].turn_number
            if newest >= min(page.high, last):
                return found
            position = Position(page.branch_id, page.high, newest)

    def _sort(
        self, session: AgentSession, batch: list[ImportedTurn], there: dict[int, Turn]
    ) -> list[ImportedTurn]:
        """Those that are new and follow; the others are counted or refused."""
        new: list[ImportedTurn] = []
        count = session.turn_count
        for turn in batch:
            if turn.turn_number <= count:
                known = there.get(turn.turn_number)
                if known is not None and known.messages == turn.turn.messages:
                    self.report.existing_turns += 1
                else:
                    self._refuse(turn, "TURN_DIFFERS", "the session has another turn there")
            elif session.state is not AgentState.ACTIVE:
                self._refuse(turn, "SESSION_NOT_ACTIVE", "the session expired or was ended")
            elif turn.turn_number != count + 1:
                self._refuse(turn, "TURN_GAP", f"the session has {count} turns")
            else:
                new.append(turn)
                count += 1
        return new

    async def _add(
        self, connection: Connection, session: AgentSession, new: list[ImportedTurn]
    ) -> None:
        await agent_moves.add(connection, session, new)
        self.report.imported_turns += len(new)

    def _refuse(self, turn: ImportedTurn, reason: str, message: str) -> None:
        self.report.refuse(Refusal(turn.record, turn.session_id, turn.turn_number, reason, message))


def _alike(found: AgentSession, wanted: Imported) -> bool:
    opening = wanted.opening
    return (found.agent_role, found.startup_context) == (
        opening.agent_role,
        opening.startup_context,
    )


async def export(
    database: Database, tenant: str, wanted: SessionFilter
) -> AsyncGenerator[AgentSession | tuple[str, Turn], None]:
    """Each session, then its turns; each session's as of the time when it is reached."""
    after: After | None = None
    while True:
        sessions = await agent_listing.page(
            database, tenant, wanted, after, SESSIONS, descending=False, context=True
        )
        for session in sessions:
            yield session
            async for turn in _turns(database, session):
                yield session.session_id, turn
        if len(sessions) < SESSIONS:
            return
        after = After(sessions[-1].created_at, sessions[-1].session_id)


async def _turns(database: Database, session: AgentSession) -> AsyncGenerator[Turn, None]:
    """The turns up to the session's turn count, whatever is appended or rewound meanwhile."""
    position = Position(session.head_branch, session.turn_count, 0)
    last = 0
    while last < session.turn_count:
        page = await agent_reading.page(
            database,
            session.tenant,
            session.session_id,
            position,
            size=BATCH,
            max_bytes=BATCH_BYTES,
            descending=False,
        )
        if page is None or not page.turns:
            return
        for turn in page.turns:
            yield turn
        last = page.turns[-1].turn_number
        position = Position(session.head_branch, session.turn_count, last)
