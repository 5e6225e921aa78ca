"""Reading a session for a call: it must be there, and as the caller read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.storage import sessions

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.session import Record, Session
    from session_service.storage.database import Database


def etag_of(session: Session) -> str:
    """The session's etag (AIP-154): moves with every change but activity."""
    return f"{session.epoch:x}"


def check_etag(record: Record, etag: str) -> None:
    """Raise EtagMismatch unless the session is as the caller read it."""
    if etag != etag_of(record.session):
        raise errors.EtagMismatch(
            "the session changed since it was read; read it again and decide anew",
            {"etag": etag_of(record.session)},
        )


async def require(database: Database, tenant: str, session_id: UUID) -> Record:
    """The tenant's session. Raises SessionNotFound."""
    record = await sessions.get(database, tenant, session_id)
    if record is None:
        raise errors.SessionNotFound(
            f"no session {session_id}; FindLiveSession finds one by its key"
        )
    return record
