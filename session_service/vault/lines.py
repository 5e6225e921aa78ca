"""What a session can go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.domain.checkpoint import in_order
from session_service.storage import checkpoint_lists

if TYPE_CHECKING:
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Session
    from session_service.storage.database import Database


async def candidates(database: Database, session: Session | None) -> tuple[Checkpoint, ...]:
    """The checkpoints that a session can go back to, in the order in which to try.

    Costs nothing where it has none, as its row says.
    """
    if session is None or session.checkpoint_id is None:
        return ()
    head = session.checkpoint_id
    return in_order(head, await checkpoint_lists.of_session(database, session.session_id, head))
