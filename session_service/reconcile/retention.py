"""The retention pass: deletes rows whose time is over, and logs the ages of what is left."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.storage.session import choices as session_choices
from session_service.storage.session import decisions as session_decisions
from session_service.storage.session import events as session_events
from session_service.storage.session import gauges, rollups, stats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from session_service.storage.database import Database
    from session_service.storage.session.gauges import Gauges

_log = logging.getLogger(__name__)


#: Rows that one statement deletes at most.
BATCH = 5_000
#: Statements of one kind in a pass, at most.
PASS_BATCHES = 200


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many rows of each kind a pass deleted."""

    events: int
    decisions: int
    choices: int
    tokens: int
    ends: int


async def run_pass(
    database: Database, events_kept: timedelta, decisions_kept: timedelta
) -> Deleted:
    """Delete old events, decisions, choices and ends, and expired choice tokens, in batches.

    Ends (rows of finished sessions for the statistics) are kept as long as decisions, because the
    statistics count both. None that is counted is deleted before its day was rolled up. Roll-ups
    are deleted when all of their day is past the retention. Any number of replicas may run this at
    the same time.

    Raises StorageUnavailable.
    """
    before = await rollups.note_trim(database, decisions_kept)
    deleted = Deleted(
        await _batches(lambda: session_events.trim(database, events_kept, BATCH)),
        await _batches(lambda: session_decisions.trim(database, before, BATCH)),
        await _batches(lambda: session_choices.trim(database, before, BATCH)),
        await _batches(lambda: session_choices.trim_offers(database, BATCH)),
        await _batches(lambda: stats.trim(database, before, BATCH)),
    )
    await _batches(lambda: rollups.trim(database, BATCH))
    if deleted != Deleted(0, 0, 0, 0, 0):
        _log.info(
            "deleted %d events, %d decisions, %d choices, %d tokens, %d ends",
            deleted.events,
            deleted.decisions,
            deleted.choices,
            deleted.tokens,
            deleted.ends,
            extra={"action": "retention"},
        )
    return deleted


async def log_gauges(database: Database) -> Gauges:
    """Log in one line the age of the oldest session, and how much is overdue.

    Raises StorageUnavailable.
    """
    found = await gauges.read(database)
    _log.info(
        "oldest live session %s; %d past their lifetime, %d due, %d orphans",
        "none" if found.oldest is None else f"{found.oldest.total_seconds():.0f} s",
        found.overaged,
        found.due,
        found.orphans,
        extra={
            "action": "ages",
            "oldest_seconds": None if found.oldest is None else found.oldest.total_seconds(),
            "overaged": found.overaged,
            "due": found.due,
            "orphans": found.orphans,
        },
    )
    return found


async def _batches(trim: Callable[[], Awaitable[int]]) -> int:
    total = 0
    for _ in range(PASS_BATCHES):
        deleted = await trim()
        total += deleted
        if deleted < BATCH:
            break
    return total
