"""The janitor: what has to be tidied now and then. Public single shots; loops are around them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.storage import agent_expiry

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What one pass did, in rows."""

    expired: int
    purged: int
    turns: int
    requests: int


async def sweep(database: Database, retention: timedelta) -> Swept:
    """One pass over the agent sessions: expire, purge, delete what nothing reaches, forget.

    Safe in any number of replicas at once, and wherever it breaks off.
    """
    swept = Swept(
        await agent_expiry.expire(database, retention),
        await agent_expiry.purge(database),
        await agent_expiry.trim(database),
        await agent_expiry.forget(database),
    )
    if swept != Swept(0, 0, 0, 0):
        _log.info(
            "agent sessions: %d expired, %d purged with %d turns",
            swept.expired,
            swept.purged,
            swept.turns,
            extra={"action": "sweep"},
        )
    return swept
