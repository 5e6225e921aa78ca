"""Who owns a transition, and for how long: taking one over, and holding on to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.assignments import Now
from session_service.storage.database import compiled
from session_service.storage.events import event_insert, event_parameters
from session_service.storage.rows import make_session, session_columns
from session_service.storage.tables import sessions

if TYPE_CHECKING:
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
_RENEW = compiled(
    sa.update(sessions)
    .where(
        sessions.c.session_id == sa.bindparam("session_id", type_=sessions.c.session_id.type),
        sessions.c.epoch == sa.bindparam("epoch", type_=sa.BigInteger),
        sessions.c.lease_until > sa.func.now(),
    )
    .values(lease_until=sa.func.now() + sa.bindparam("lease", type_=sa.Interval))
    .returning(sessions.c.epoch),
    lambda row: int(row[0]),
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


async def renew(database: Database, session_id: UUID, epoch: int, lease: timedelta) -> bool:
    """Hold the lease longer; False where it ran out or the session is another's now."""
    params = {"session_id": session_id, "epoch": epoch, "lease": lease}
    return await database.fetch_one(_RENEW, params) is not None
