"""Ended sessions whose `due_at` has passed: found, forgotten and deferred in batches.

Nothing is claimed. Each write is fenced by the epoch that was read and skips rows that another
replica has locked, so any number of replicas may do this at once, and breaking off at any point
leaves consistent rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.domain.next_action import Ended
from session_service.domain.session import EndReason, PauseDepth
from session_service.storage.database import BATCH_TIMEOUT, compiled
from session_service.storage.notifications import notice
from session_service.storage.tables import containers, session_events, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class DueEnded:
    """An ended session that is due, and the database's time."""

    session_id: UUID
    epoch: int
    due_at: datetime
    facts: Ended
    now: datetime


#: Due sessions that are read at most to find ended ones among them: if many others are due, a batch
#: must not read them all.
SCAN = 4000
#: Ended sessions in a batch.
BATCH = 1000

_OLDEST = (
    sa.select(
        sessions.c.session_id,
        sessions.c.generation,
        sessions.c.epoch,
        sessions.c.state,
        sessions.c.due_at,
        sessions.c.change_time,
        sessions.c.end_time,
        sessions.c.purge_time,
        sessions.c.end_reason,
        sessions.c.checkpoint_id,
        sessions.c.pause_depth,
    )
    .where(sessions.c.due_at <= sa.func.now())
    .order_by(sessions.c.due_at)
    # A literal: the planner must know that it is few.
    .limit(sa.literal_column(str(SCAN)))
    .subquery("oldest")
)
# Limited before their containers are read, and read only until there are enough.
_ENDED = (
    sa.select(_OLDEST)
    .where(_OLDEST.c.state == sa.text("'ENDED'"))
    .limit(sa.literal_column(str(BATCH)))
    .subquery("ended")
)


def _make(row: Sequence[Any]) -> DueEnded:
    session_id, epoch, due_at, *columns, now = row
    changed, ended, purge, reason, checkpoint, depth, wanted, destroyed = columns
    why = None if reason is None else EndReason(reason)
    how = None if depth is None else PauseDepth(depth)
    facts = Ended.of(changed, ended, purge, why, checkpoint, how, wanted, destroyed)
    return DueEnded(session_id, epoch, due_at, facts, now)


_FIND = compiled(
    lambda: sa.select(
        _ENDED.c.session_id,
        _ENDED.c.epoch,
        _ENDED.c.due_at,
        _ENDED.c.change_time,
        _ENDED.c.end_time,
        _ENDED.c.purge_time,
        _ENDED.c.end_reason,
        _ENDED.c.checkpoint_id,
        _ENDED.c.pause_depth,
        containers.c.wanted,
        containers.c.destroy_time,
        sa.func.now(),
    ).select_from(
        _ENDED.outerjoin(
            containers,
            (containers.c.session_id == _ENDED.c.session_id)
            & (containers.c.generation == _ENDED.c.generation),
        )
    ),
    _make,
)
_IDS = postgresql.ARRAY(postgresql.UUID(as_uuid=True))
_NUMBERS = postgresql.ARRAY(sa.BigInteger)
_TIME = sa.DateTime(timezone=True)
_READ = (
    sa.func.unnest(sa.bindparam("ids", type_=_IDS), sa.bindparam("epochs", type_=_NUMBERS))
    .table_valued("id", "epoch", name="read")
    .render_derived()
)
_CHOSEN = (
    sa.select(sessions.c.session_id)
    .join(_READ, (_READ.c.id == sessions.c.session_id) & (_READ.c.epoch == sessions.c.epoch))
    .where(
        sessions.c.state == sa.text("'ENDED'"),
        # A container that may still exist at the provider needs its row, to be destroyed.
        ~sa.exists().where(
            containers.c.session_id == sessions.c.session_id,
            containers.c.destroy_time.is_(None),
        ),
    )
    .with_for_update(of=sessions, skip_locked=True)
    .cte("chosen")
)
#: OFFSET keeps the condition on the time away from the index of all present containers, which the
#: planner may read whole to combine it with the ids.
_THEIRS = (
    sa.select(containers.c.session_id, containers.c.destroy_time)
    .where(containers.c.session_id == sa.any_(sa.bindparam("ids", type_=_IDS)))
    .offset(sa.literal_column("0"))
    .subquery("theirs")
)
_KEPT = compiled(
    lambda: sa.select(_THEIRS.c.session_id).where(_THEIRS.c.destroy_time.is_(None)).distinct(),
    lambda row: row[0],
)
_GONE = (
    sa.delete(sessions)
    .where(sessions.c.session_id == _CHOSEN.c.session_id)
    .returning(sessions.c.session_id)
    .cte("gone")
)


def _with(table: sa.Table, name: str) -> sa.CTE:
    """Deletes the rows of the chosen sessions in one go, and not by the foreign key, which takes a
    statement for each session.
    """
    deleted = sa.delete(table).where(table.c.session_id == _CHOSEN.c.session_id)
    return deleted.returning(table.c.session_id).cte(name)


# The notices wake the calls that watch a session: they end when its row does not exist.
_FORGET = compiled(
    lambda: sa.select(_GONE.c.session_id, notice(_GONE.c.session_id)).add_cte(
        _with(containers, "their_containers"), _with(session_events, "their_events")
    ),
    lambda row: row[0],
)
_DEFERRED = (
    sa.func.unnest(
        sa.bindparam("ids", type_=_IDS),
        sa.bindparam("epochs", type_=_NUMBERS),
        sa.bindparam("found", type_=postgresql.ARRAY(_TIME)),
        sa.bindparam("times", type_=postgresql.ARRAY(_TIME)),
    )
    .table_valued("id", "epoch", "found", "time", name="deferred")
    .render_derived()
)
_UNLOCKED = (
    sa.select(sessions.c.session_id, _DEFERRED.c.time)
    .join(_DEFERRED, sessions.c.session_id == _DEFERRED.c.id)
    .where(
        sessions.c.epoch == _DEFERRED.c.epoch,
        # Not if something else has made it due since.
        sessions.c.due_at == _DEFERRED.c.found,
    )
    .with_for_update(of=sessions, skip_locked=True)
    .cte("unlocked")
)
_DEFER = compiled(
    lambda: (
        sa.update(sessions)
        .where(sessions.c.session_id == _UNLOCKED.c.session_id)
        .values(due_at=_UNLOCKED.c.time)
        .returning(sessions.c.epoch)
    ),
    lambda row: True,
)


async def find(database: Database) -> list[DueEnded]:
    """Up to BATCH ended sessions among the SCAN sessions that are due for longest."""
    return await database.fetch_all(_FIND, {}, BATCH_TIMEOUT)


async def kept(database: Database, found: Sequence[DueEnded]) -> set[UUID]:
    """Those of the sessions of which a container is not known to be destroyed."""
    return set(await database.fetch_all(_KEPT, {"ids": [each.session_id for each in found]}))


async def forget(database: Database, epochs: Mapping[UUID, int]) -> set[UUID]:
    """Delete the rows of these ended sessions, of which each epoch was read, with those of their
    containers and events; their decisions stay. Returns the ids of those that were deleted: not one
    that has changed since it was read, that another replica works on, or of which a container is
    not known to be destroyed.
    """
    params = {"ids": list(epochs), "epochs": list(epochs.values())}
    return set(await database.fetch_all(_FORGET, params, BATCH_TIMEOUT))


async def defer(database: Database, found: Sequence[DueEnded], times: Sequence[datetime]) -> int:
    """Make each of these sessions due again at its time; those that have changed, or that another
    replica works on, stay as they are. Returns how many were deferred.
    """
    params = {
        "ids": [each.session_id for each in found],
        "epochs": [each.epoch for each in found],
        "found": [each.due_at for each in found],
        "times": list(times),
    }
    return len(await database.fetch_all(_DEFER, params, BATCH_TIMEOUT))
