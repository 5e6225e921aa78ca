"""Read sessions and decisions: by id, by key, in pages.

`require` reads a session that must exist. `check_etag` rejects a call whose etag is out of date.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.next_action import explain
from session_service.storage.session import decisions, listing, reads

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.decision import Decision
    from session_service.domain.next_action import Explanation, Timings
    from session_service.domain.session import Key, Record, Session
    from session_service.storage.database import Database
    from session_service.storage.scan import Listed
    from session_service.storage.session.listing import Page


def etag_of(session: Session) -> str:
    """The session's etag (AIP-154). It changes with the epoch: notes, such as the user's activity
    or a hold, leave it unchanged.
    """
    return f"{session.epoch:x}"


def check_etag(record: Record, etag: str) -> None:
    """Raise EtagMismatch if the session has changed since the caller read this etag."""
    if etag != etag_of(record.session):
        raise errors.EtagMismatch(
            "the session changed since it was read; read it again before a new attempt",
            {"etag": etag_of(record.session)},
        )


async def require(database: Database, tenant: str, session_id: UUID) -> Record:
    """Read the tenant's session. Raises SessionNotFound."""
    record = await reads.get(database, tenant, session_id)
    if record is None:
        raise errors.SessionNotFound(
            f"no session {session_id}; FindLiveSession finds one by its key"
        )
    return record


class Lookup:
    """Reads sessions and decisions from the database. It never calls the provider."""

    def __init__(self, database: Database, timings: Timings) -> None:
        self._database = database
        self._timings = timings

    async def get(self, tenant: str, session_id: UUID) -> Record:
        """Read the tenant's session. Raises SessionNotFound."""
        return await require(self._database, tenant, session_id)

    async def explain(self, tenant: str, session_id: UUID) -> Explanation:
        """Explain why the tenant's session is not paused yet. Raises SessionNotFound."""
        return explain(await require(self._database, tenant, session_id), self._timings)

    async def live(self, key: Key) -> Record:
        """Read the live session of the key. Raises SessionNotFound."""
        record = await reads.live_at(self._database, key)
        if record is None:
            raise errors.SessionNotFound("this key has no live session; StartSession creates one")
        return record

    async def touch(self, tenant: str, session_id: UUID, activity: str = "") -> Record:
        """Record that the user is active now, if the session runs; return the session.

        Raises SessionNotFound.
        """
        record = await reads.touch(self._database, tenant, session_id, activity)
        if record is None:
            raise errors.SessionNotFound(f"no session {session_id}")
        return record

    async def page(self, wanted: Page) -> Listed[Record]:
        """Read up to `wanted.size` sessions. There may be more even if there are fewer here."""
        return await listing.page(self._database, wanted)

    async def decisions(
        self, tenant: str, session_id: UUID | None, last: UUID | None, size: int
    ) -> list[Decision]:
        """Read up to `size` decisions of a session that are older than `last`, newest first.
        Without `last` the newest ones are read, and without `session_id` those of all sessions.
        """
        return await decisions.page(self._database, tenant, session_id, last, size)
