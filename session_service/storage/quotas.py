"""How many live sessions a tenant may have: counted under a lock, and never kept.

A number that is kept beside the rows drifts from them with the first path that forgets it. The
count reads the tenant's part of the live key's index, no further than the quota itself.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.database import Connection, compiled, one
from session_service.storage.rows import scalar
from session_service.storage.sessions import LIVE
from session_service.storage.tables import sessions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@dataclass(frozen=True, slots=True)
class Quota:
    """The most live sessions that a tenant may have."""

    tenant: str
    most: int


class QuotaReached(Exception):
    """The transaction would have left the tenant with more."""

    def __init__(self, quota: Quota) -> None:
        super().__init__(f"{quota.tenant} has {quota.most} live sessions")
        self.quota = quota


_TENANT = sa.bindparam("tenant", type_=sa.Text)
#: Of this use of advisory locks alone: another's keys are hashed with another seed.
_SEED = 7_685
_LOCK = compiled(
    sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(_TENANT, _SEED))),
    lambda row: True,
)
_COUNT = compiled(
    sa.select(sa.func.count()).select_from(
        sa.select(sa.literal_column("1"))
        .select_from(sessions)
        .where(sessions.c.tenant == _TENANT, LIVE)
        .limit(sa.bindparam("most", type_=sa.BigInteger))
        .subquery()
    ),
    scalar(int),
)


@asynccontextmanager
async def held_to(connection: Connection, quota: Quota | None) -> AsyncGenerator[None, None]:
    """Around what a transaction writes that can make a session live: raises QuotaReached after it
    where the tenant then has too many, so that the transaction is undone. None: no quota.

    The tenant's lock is taken first and held to the commit: of two at once, the second counts what
    the first left. Counted after the write and not before, so that a key which somebody else opened
    meanwhile is found to be taken, and is no matter of room.
    """
    if quota is None:
        yield
        return
    await one(connection, _LOCK, {"tenant": quota.tenant})
    yield
    # Of its own, so that its snapshot is younger than the lock.
    count = await one(connection, _COUNT, {"tenant": quota.tenant, "most": quota.most + 1})
    if (count or 0) > quota.most:
        raise QuotaReached(quota)
