"""What becomes of a session that a start was to replace, where that start comes to nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.domain.states import Transition
from session_service.lifecycle import outcomes
from session_service.storage import sessions

if TYPE_CHECKING:
    from session_service.domain.session import Session
    from session_service.storage.database import Database
    from session_service.storage.transitions import Change


async def given_back(database: Database, session: Session) -> list[Change]:
    """The changes that belong into the commit which gives this session's start up: whom it was to
    replace is what it was. None where it replaces nobody, or that is decided.
    """
    if session.predecessor_id is None:
        return []
    record = await sessions.find(database, session.predecessor_id)
    if record is None or record.session.transition is not Transition.REPLACE:
        return []
    if record.session.successor_id != session.session_id:
        return []
    return [outcomes.gone_back(record.session, None)]
