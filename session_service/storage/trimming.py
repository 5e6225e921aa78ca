"""Deleting rows whose time is over, so many at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.storage.database import compiled
from session_service.storage.rows import scalar

if TYPE_CHECKING:
    from session_service.storage.database import Statement


def trimming(column: sa.Column[Any], old: sa.ColumnElement[bool]) -> Statement[int]:
    """Delete up to `most` rows of the column's table that are old; how many. Any: a key of
    whichever type.
    """
    chosen = sa.select(column).where(old).limit(sa.bindparam("most", type_=sa.BigInteger))
    gone = sa.delete(column.table).where(column.in_(chosen)).returning(column).cte("gone")
    return compiled(sa.select(sa.func.count()).select_from(gone), scalar(int))
