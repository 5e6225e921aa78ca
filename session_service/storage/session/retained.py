"""How far rows may be deleted that the statistics count."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.storage.tables import stats_progress
from session_service.storage.tables.schema import TIME

if TYPE_CHECKING:
    from datetime import datetime

#: The name of the progress of the roll-ups of sessions in `stats_progress`.
NAME = "sessions"


def is_counted(time: sa.ColumnElement[datetime]) -> sa.ColumnElement[bool]:
    """Whether a row of this time may be deleted that the statistics count: if it is older than the
    bind `older_than`, which `rollups.note_trim` returned, and of a day that was rolled up.

    Two conditions, and not one with the earlier time: the planner knows how many rows are older
    than a value. Of a time from a table it expects that a third of all rows are, and would read the
    whole table to find out that none is.
    """
    days_end = sa.select(stats_progress.c.days_end).where(stats_progress.c.name == NAME)
    never = sa.text("'infinity'::timestamptz")
    rolled_up = sa.func.coalesce(days_end.scalar_subquery(), never)
    return sa.and_(time < sa.bindparam("older_than", type_=TIME), time < rolled_up)
