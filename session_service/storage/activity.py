"""The pass that moves an indexed time after the time of the last activity, in chunks.

A touch, a reuse and an append write the exact time, which no index has; lists are ordered by the
indexed one. The pass walks over the rows that can be active, a chunk a statement, and moves the
indexed time of those whose activity it does not show. One replica walks at a time: it holds a claim
in a row of `activity_passes` for HOLD, renews it while it walks, and says at the end when the next
walk is due, PERIOD after this one began. If it dies or fails, another begins after HOLD.

A row is moved only if its indexed time is older than MOVED_AFTER. So a session that is always
active costs an update of its indexes at every second walk, and not at each.

How late the indexed time can be. A walk visits each row once. An activity is shown by the first
walk that meets the row more than MOVED_AFTER after the indexed time, so by the second walk after
the activity at the latest: within 2 * (PERIOD + LOOK), which is 3.5 minutes, and what a walk takes.
The protos promise five minutes. Only a walk of more than a minute, one that failed, or a row that
was locked at both walks makes it later.
"""

from __future__ import annotations

from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from session_service.storage.database import BATCH_TIMEOUT, Database, Statement, one

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: Between the beginnings of two walks.
PERIOD = timedelta(seconds=90)
#: How long a claim holds, and how often the walk renews it, in s.
HOLD = timedelta(seconds=60)
RENEW = 15.0
#: How often a replica looks whether a walk is due, in s.
LOOK = 15.0
#: How old an indexed time is when it is moved, at least.
MOVED_AFTER = timedelta(seconds=100)
#: Rows that a chunk reads. It locks those that it moves for as long as it runs, some 10 ms. It is a
#: literal in the statements, for the reason that `storage/scan` gives.
CHUNK = 500
_CLAIM = Statement["datetime"](
    """
    UPDATE activity_passes SET due_at = now() + %(hold)s
    WHERE subject = %(subject)s AND due_at <= now() RETURNING now()
    """,
    {},
    lambda row: row[0],
)
_RENEW = Statement(
    "UPDATE activity_passes SET due_at = now() + %(hold)s WHERE subject = %(subject)s RETURNING 1",
    {},
    lambda row: int(row[0]),
)
_COMPLETE = Statement(
    """
    UPDATE activity_passes
    SET walk_time = %(began)s, due_at = greatest(now(), %(began)s + %(period)s)
    WHERE subject = %(subject)s RETURNING 1
    """,
    {},
    lambda row: int(row[0]),
)


class Chunk(NamedTuple):
    """What a chunk did. `last`: the position of its last row, as the statement's binds; None if it
    was the last chunk. Any: a key's columns.
    """

    moved: int
    last: Mapping[str, Any] | None


class Walk(NamedTuple):
    """A walk over the rows of some states, of one tenant after another.

    `tenant` finds the tenant after the bind `tenant`; `chunk` has the binds `state`, `tenant` and
    those of the position; `first` is the position before every row. A chunk is of one tenant, since
    of a comparison with a tenant the planner knows no more than how many rows have a greater one.
    """

    tenant: Statement[str]
    chunk: Statement[Chunk]
    first: Mapping[str, Any]
    states: tuple[str, ...]


async def claim(database: Database, subject: str) -> datetime | None:
    """Claim the walk over this subject; None if it is not due. Returns the database's time."""
    return await database.fetch_one(_CLAIM, {"subject": subject, "hold": HOLD})


async def walk_if_due(database: Database, subject: str, walk: Walk) -> int | None:
    """Walk if it is due, and note that the walk was complete; None if it is not due.

    Raises StorageUnavailable.
    """
    began = await claim(database, subject)
    if began is None:
        return None
    moved = await run(database, walk, subject=subject)
    params = {"subject": subject, "began": began, "period": PERIOD}
    await database.fetch_one(_COMPLETE, params)
    return moved


async def run(
    database: Database, walk: Walk, moved_after: timedelta = MOVED_AFTER, *, subject: str = ""
) -> int:
    """Walk once over all rows; return how many were moved. It may break off at any point.

    `subject`: the claim to renew meanwhile; empty if there is none.
    """
    moved, renew_at = 0, monotonic() + RENEW
    for state in walk.states:
        tenant: str | None = ""
        while tenant is not None:
            of = {"state": state, "tenant": tenant, "moved_after": moved_after}
            position: Mapping[str, Any] | None = walk.first if tenant else None
            while position is not None:
                async with database.connection(BATCH_TIMEOUT) as connection:
                    chunk = await one(connection, walk.chunk, {**of, **position})
                moved += 0 if chunk is None else chunk.moved
                if subject and monotonic() > renew_at:
                    await database.fetch_one(_RENEW, {"subject": subject, "hold": HOLD})
                    renew_at = monotonic() + RENEW
                position = None if chunk is None else chunk.last
            tenant = await database.fetch_one(walk.tenant, {"state": state, "tenant": tenant})
    return moved
