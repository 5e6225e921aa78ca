"""Who owns a transition, and for how long: taking one over, and holding on to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.storage.assignments import Now
from session_service.storage.database import compiled
from session_service.storage.events import event_insert, event_parameters
from session_service.storage.rows import make_session, session_columns
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Session
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Terms:
    """How long an owner has: its lease between renewals, and the whole transition."""

    owner: UUID
    lease: timedelta
    budget: timedelta

    def values(self) -> dict[str, object]:
        """The columns that say so."""
        return {
            "owner": self.owner,
            "lease_until": Now(self.lease),
            "deadline": Now(self.budget),
            "due_at": Now(self.lease),
            "cause": None,
        }


_CLAIMED = (
    sa.update(sessions)
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
        sessions.c.transition.is_not(None),
        (sessions.c.lease_until <= sa.func.now()) | (sessions.c.deadline <= sa.func.now()),
    )
    .values(
        epoch=sessions.c.epoch + 1,
        owner=sa.bindparam("owner", type_=sessions.c.owner.type),
        lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval),
        deadline=sa.func.now() + sa.bindparam("budget", type_=sa.Interval),
        due_at=sa.func.now() + sa.bindparam("lease", type_=sa.Interval),
        change_time=sa.func.now(),
        event_sequence=sessions.c.event_sequence + 1,
    )
    .returning(*session_columns())
    .cte("claimed")
)
_CLAIM = compiled(
    sa.select(*session_columns(_CLAIMED)).add_cte(event_insert(_CLAIMED)), make_session
)


async def claim(database: Database, session_id: UUID, epoch: int, terms: Terms) -> Session | None:
    """Take over a transition whose lease or deadline passed; None where it has not, or where
    somebody else was first.
    """
    params = {
        "session_id": session_id,
        "epoch": epoch,
        "owner": terms.owner,
        "lease": terms.lease,
        "budget": terms.budget,
        **event_parameters("TAKEN_OVER", {}),
    }
    return await database.fetch_one(_CLAIM, params)


class Renewal(StrEnum):
    """What became of a lease that was to be renewed."""

    KEPT = "KEPT"
    LOST = "LOST"
    """It ran out, or the session is another's now."""
    BUSY = "BUSY"
    """Somebody writes the session at this moment: nothing is known, and it must be asked again."""


_EACH = sa.select(
    sa.func.unnest(
        sa.bindparam("session_ids", type_=postgresql.ARRAY(sessions.c.session_id.type))
    ).label("session_id"),
    sa.func.unnest(sa.bindparam("epochs", type_=postgresql.ARRAY(sa.BigInteger))).label("epoch"),
).cte("each")
_OURS = (
    (sessions.c.session_id == _EACH.c.session_id)
    & (sessions.c.epoch == _EACH.c.epoch)
    & (sessions.c.lease_until > sa.func.now())
)
# Nobody is waited for. Others lock two rows in an order of their own, which could be a deadlock;
# and one row that is long locked would cost all others their leases.
_LOCKED = (
    sa.select(sessions.c.session_id)
    .join(_EACH, _OURS)
    .with_for_update(of=sessions, key_share=True, skip_locked=True)
    .cte("locked")
)
_KEPT = (
    sa.update(sessions)
    .where(sessions.c.session_id == _LOCKED.c.session_id)
    .values(lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(sessions.c.session_id, sessions.c.epoch)
    .cte("kept")
)
_RENEW = compiled(
    sa.select(
        _EACH.c.session_id,
        _EACH.c.epoch,
        sa.case(
            (_KEPT.c.session_id.is_not(None), sa.text("'KEPT'")),
            # As it was before this statement.
            (sessions.c.session_id.is_not(None), sa.text("'BUSY'")),
            else_=sa.text("'LOST'"),
        ),
    ).select_from(
        _EACH.outerjoin(
            _KEPT, (_KEPT.c.session_id == _EACH.c.session_id) & (_KEPT.c.epoch == _EACH.c.epoch)
        ).outerjoin(sessions, _OURS)
    ),
    lambda row: ((row[0], row[1]), Renewal(row[2])),
)


async def renew(
    database: Database, owned: Sequence[tuple[UUID, int]], lease: timedelta
) -> dict[tuple[UUID, int], Renewal]:
    """Hold the leases of these sessions at these epochs longer, all with one statement that waits
    for no lock; what became of each.
    """
    params = {
        "session_ids": [session_id for session_id, _ in owned],
        "epochs": [epoch for _, epoch in owned],
        "lease": lease,
    }
    return dict(await database.fetch_all(_RENEW, params))
