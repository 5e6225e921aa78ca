"""The janitor: what has to be tidied now and then. Public single shots; loops are around them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.storage import agent_expiry, ages, choices, decisions, ends, events, offers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import timedelta

    from session_service.storage.ages import Ages
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Swept:
    """What one pass did, in rows."""

    expired: int
    purged: int
    turns: int
    requests: int


#: Deleted in one statement, and in one pass, at most.
BATCH = 5_000
PASS_BATCHES = 200


@dataclass(frozen=True, slots=True)
class Tidied:
    """What one pass over what is kept for a time deleted, in rows."""

    events: int
    decisions: int
    choices: int
    tokens: int
    ends: int


async def tidy(database: Database, events_kept: timedelta, decisions_kept: timedelta) -> Tidied:
    """Delete events, decisions, the choices that they carried out, and tokens whose time is over,
    in batches. Safe in any number of replicas.

    Ends are kept as long as decisions: figures are counted from both.

    Raises StorageUnavailable.
    """
    tidied = Tidied(
        await _batches(lambda: events.trim(database, events_kept, BATCH)),
        await _batches(lambda: decisions.trim(database, decisions_kept, BATCH)),
        await _batches(lambda: choices.trim(database, decisions_kept, BATCH)),
        await _batches(lambda: offers.trim(database, BATCH)),
        await _batches(lambda: ends.trim(database, decisions_kept, BATCH)),
    )
    if tidied != Tidied(0, 0, 0, 0, 0):
        _log.info(
            "deleted %d events, %d decisions, %d choices, %d tokens, %d ends",
            tidied.events,
            tidied.decisions,
            tidied.choices,
            tidied.tokens,
            tidied.ends,
            extra={"action": "tidy"},
        )
    return tidied


async def watch(database: Database) -> Ages:
    """Tell, in one line, how old and how far behind things are. Raises StorageUnavailable."""
    seen = await ages.look(database)
    _log.info(
        "oldest live session %s; %d past their lifetime, %d due, %d orphans",
        "none" if seen.oldest is None else f"{seen.oldest.total_seconds():.0f} s",
        seen.overaged,
        seen.due,
        seen.orphans,
        extra={
            "action": "ages",
            "oldest_seconds": None if seen.oldest is None else seen.oldest.total_seconds(),
            "overaged": seen.overaged,
            "due": seen.due,
            "orphans": seen.orphans,
        },
    )
    return seen


async def _batches(trim: Callable[[], Awaitable[int]]) -> int:
    total = 0
    for _ in range(PASS_BATCHES):
        gone = await trim()
        total += gone
        if gone < BATCH:
            break
    return total


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
