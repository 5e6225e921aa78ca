"""The retention pass over agent sessions: expire, purge, delete. A background loop repeats it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.storage.agent import expiry

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Removed:
    """The counts of a pass: expired and purged sessions, deleted turns and request records."""

    expired: int
    purged: int
    turns: int
    requests: int


async def run_pass(database: Database, retention: timedelta) -> Removed:
    """Expire idle sessions, and purge sessions whose retention has passed. Delete turns that no
    session reaches, and old request records.

    Any number of replicas may run a pass at once, and a pass may break off at any point (see
    `storage.agent.expiry`). `retention` is how long an expired session can be brought back.
    """
    removed = Removed(
        await expiry.expire_sessions(database, retention),
        await expiry.purge_sessions(database),
        await expiry.delete_unreachable_turns(database),
        await expiry.delete_old_requests(database),
    )
    if removed != Removed(0, 0, 0, 0):
        _log.info(
            "agent sessions: %d expired, %d purged; %d turns and %d request records deleted",
            removed.expired,
            removed.purged,
            removed.turns,
            removed.requests,
            extra={"action": "agent_retention"},
        )
    return removed
