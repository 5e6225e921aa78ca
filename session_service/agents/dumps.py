"""Dumps of agent sessions: import and export."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.agent import AgentSession, AgentState
from session_service.storage.agent import appends, listing, reads, sessions
from session_service.storage.agent.export import conversations
from session_service.storage.agent.reads import Position
from session_service.storage.database import BATCH_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.domain.agent import ImportedSession, ImportedTurn, SessionFilter, Turn
    from session_service.storage import scan
    from session_service.storage.database import Database

#: The most turns in one transaction of an import, and in one read; and bytes of turns, of each.
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
#: A stream whose reader takes nothing keeps that much.
READ_BYTES = 512 * 1024
#: Refusals that are reported one by one; the others are counted.
REPORTED = 100
#: The planner's statistics are updated after an import of this many turns or more.
ANALYZE_TURNS = 10_000
#: Sessions that an export lists at once; it reads as many of their turns as READ_BYTES holds.
SESSIONS = 500


@dataclass(frozen=True, slots=True)
class Refusal:
    """A record that was not imported. `record`: its number in the dump, from 1.

    `turn_number` 0: the record is a session. `reason`: one of the contract's ImportRefusal.
    """

    record: int
    session_id: str
    turn_number: int
    reason: str
    message: str


@dataclass(slots=True)
class ImportReport:
    """The counts of an import, and its first refusals."""

    imported_sessions: int = 0
    imported_turns: int = 0
    existing_sessions: int = 0
    existing_turns: int = 0
    refused: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def refuse(self, refusal: Refusal) -> None:
        """Count a refusal; keep it if it is one of the first."""
        self.refused += 1
        if len(self.refusals) < REPORTED:
            self.refusals.append(refusal)


class Import:
    """One dump that is being imported, record by record.

    Turns are collected and written in batches, one transaction each; a batch has turns of one
    session only. If the import breaks off, the batches that were committed stay. Repeat it from the
    start: sessions and turns that exist and are equal are left as they are.
    """

    def __init__(self, database: Database, tenant: str) -> None:
        self.report = ImportReport()
        self._database = database
        self._tenant = tenant
        self._batch: list[ImportedTurn] = []
        self._bytes = 0
        self._refused_session: str | None = None

    async def session(self, record: int, imported: ImportedSession) -> None:
        """Create the session, if it does not exist. Turns that follow are appended to it."""
        await self._flush()
        self._refused_session = None
        if await sessions.create_imported(self._database, self._tenant, imported):
            self.report.imported_sessions += 1
            return
        found = await sessions.get(self._database, self._tenant, imported.session_id, context=True)
        if found is not None and _is_same(found, imported):
            self.report.existing_sessions += 1
            return
        self._refused_session = imported.session_id
        self.report.refuse(
            Refusal(
                record,
                imported.session_id,
                0,
                "SESSION_DIFFERS",
                "a session of this id exists with another role or startup context",
            )
        )

    async def turn(self, imported: ImportedTurn) -> None:
        """Add the turn to the batch; write the batch if it is full or of another session."""
        if imported.session_id == self._refused_session:
            self._refuse(imported, "SESSION_REFUSED", "the record of its session was refused")
            return
        if self._batch and self._batch[0].session_id != imported.session_id:
            await self._flush()
        self._batch.append(imported)
        self._bytes += imported.turn.size
        if len(self._batch) >= BATCH or self._bytes >= BATCH_BYTES:
            await self._flush()

    async def finish(self) -> ImportReport:
        """Write the last batch; return the report."""
        await self._flush()
        self.report.refusals.sort(key=lambda refusal: refusal.record)
        if self.report.imported_turns >= ANALYZE_TURNS:
            await appends.analyze(self._database)
        return self.report

    async def _flush(self) -> None:
        """Write the batch.

        The turns to compare with are read before the transaction, so that the session's row is
        locked for the writing only. New turns are chosen by the locked row's turn count, so numbers
        have no gap, also after an append or a rewind in between. The comparison may then be with a
        turn that a rewind has just replaced: that can change the report, and no turn.
        """
        batch, self._batch, self._bytes = self._batch, [], 0
        if not batch:
            return
        session_id = batch[0].session_id
        existing = await self._existing(session_id, batch)
        async with self._database.transaction(BATCH_TIMEOUT) as connection:
            session = await sessions.lock(connection, self._tenant, session_id)
            if session is None:
                missing = errors.AgentSessionNotFound.of(session_id)
                for turn in batch:
                    self._refuse(turn, missing.reason, missing.message)
                return
            new = self._select_new(session, batch, existing)
            if new:
                await appends.append_imported(connection, session, new)
                self.report.imported_turns += len(new)

    async def _existing(self, session_id: str, batch: list[ImportedTurn]) -> dict[int, Turn]:
        """The session's turns with the numbers of the batch, by number."""
        first = min(turn.turn_number for turn in batch)
        last = max(turn.turn_number for turn in batch)
        found: dict[int, Turn] = {}
        position = Position(last=first - 1)
        while True:
            page = await reads.page(
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

    def _select_new(
        self, session: AgentSession, batch: list[ImportedTurn], existing: dict[int, Turn]
    ) -> list[ImportedTurn]:
        """The turns that follow the session's newest; the others are counted or refused."""
        new: list[ImportedTurn] = []
        count = session.turn_count
        for turn in batch:
            if turn.turn_number <= count:
                known = existing.get(turn.turn_number)
                if known is not None and known.messages == turn.turn.messages:
                    self.report.existing_turns += 1
                else:
                    self._refuse(
                        turn, "TURN_DIFFERS", "the session has another turn of this number"
                    )
            elif session.state is not AgentState.ACTIVE:
                self._refuse(turn, "SESSION_NOT_ACTIVE", "the session expired or was ended")
            elif turn.turn_number != count + 1:
                self._refuse(turn, "TURN_GAP", f"the session has {count} turns")
            else:
                new.append(turn)
                count += 1
        return new

    def _refuse(self, turn: ImportedTurn, reason: str, message: str) -> None:
        self.report.refuse(Refusal(turn.record, turn.session_id, turn.turn_number, reason, message))


def _is_same(found: AgentSession, imported: ImportedSession) -> bool:
    return (found.agent_role, found.startup_context) == (
        imported.new.agent_role,
        imported.new.startup_context,
    )


async def export(
    database: Database,
    tenant: str,
    wanted: SessionFilter,
    *,
    count: int = SESSIONS,
    size: int = READ_BYTES,
) -> AsyncGenerator[AgentSession | tuple[str, Turn], None]:
    """Each session, then its turns with its id; each session as it is when the export reads it.

    `count` sessions are listed at once, and about `size` bytes of them are read at once.
    """
    after: scan.Position | None = None
    while True:
        found = await listing.pages(database, tenant, wanted, after, count)
        rest = found.rows
        while rest:
            read, taken = await conversations(database, rest, size)
            rest = rest[taken:]
            for conversation in read:
                session = conversation.session
                yield session
                for turn in conversation.turns:
                    yield session.session_id, turn
                if not conversation.complete:
                    async for turn in _turns(database, session):
                        yield session.session_id, turn
        if found.after is None:
            return
        after = found.after


async def _turns(database: Database, session: AgentSession) -> AsyncGenerator[Turn, None]:
    """The turns of the head that `session` has. An append or rewind meanwhile does not show."""
    position = Position(session.head_branch, session.turn_count, 0)
    last = 0
    while last < session.turn_count:
        page = await reads.page(
            database,
            session.tenant,
            session.session_id,
            position,
            size=BATCH,
            max_bytes=READ_BYTES,
            descending=False,
        )
        if page is None or not page.turns:
            return
        for turn in page.turns:
            yield turn
        last = page.turns[-1].turn_number
        position = Position(session.head_branch, session.turn_count, last)
