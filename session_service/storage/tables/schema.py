"""The metadata of all tables, and the types and columns that several tables use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

if TYPE_CHECKING:
    from collections.abc import Sequence

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "ck": "%(table_name)s_%(constraint_name)s",
        "fk": "%(table_name)s_%(column_0_name)s_fkey",
    }
)

UUID = postgresql.UUID(as_uuid=True)
TIME = sa.DateTime(timezone=True)

#: Indexes of lists compare texts as bytes, and the conditions of lists too (`bytewise`). So only
#: the index that a list is made for can serve it. Without that the planner may prefer an index of
#: all sessions and skip those that do not match, and then reads every session where they come
#: first.
BYTEWISE = 'COLLATE "C"'


def bytewise(column: sa.Column[str]) -> sa.ColumnElement[str]:
    """The column as the indexes of lists have it."""
    return sa.collate(column, "C")


def list_index(
    name: str,
    texts: Sequence[sa.Column[str]],
    order: Sequence[sa.Column[Any]],
    where: str | None = None,
) -> sa.Index:
    """An index for a list that is filtered by texts. Any: columns of every type."""
    return sa.Index(
        name,
        *texts,
        *order,
        postgresql_ops={column.name: BYTEWISE for column in texts},
        postgresql_where=None if where is None else sa.text(where),
    )


def time_index(name: str, time: sa.Column[Any]) -> sa.Index:
    """An index on a time by which rows are stored, for short ranges of it. Any: a time.

    It costs next to nothing to write and to keep. A range of pages that is full is summarized at
    once: until then, all of its rows are read for every time.
    """
    ranges = {"pages_per_range": 32, "autosummarize": "on"}
    return sa.Index(name, time, postgresql_using="brin", postgresql_with=ranges)


def key_columns(*, primary_key: bool = False) -> list[sa.Column[str]]:
    """The columns of a session's key."""
    names = ("tenant", "project_id", "user_id", "slot")
    return [sa.Column(name, sa.Text, nullable=False, primary_key=primary_key) for name in names]
