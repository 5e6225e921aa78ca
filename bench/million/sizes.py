"""What rows weigh, and which indexes nothing uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterable

_TABLES = """
SELECT c.relname, greatest(c.reltuples, 0)::bigint, pg_table_size(c.oid), pg_indexes_size(c.oid)
FROM pg_class c WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
    AND c.relname <> 'alembic_version'
ORDER BY pg_total_relation_size(c.oid) DESC
"""
_INDEXES = """
SELECT s.relname, s.indexrelname, pg_relation_size(s.indexrelid), i.indisunique
FROM pg_stat_user_indexes s JOIN pg_index i USING (indexrelid)
WHERE s.idx_scan = 0 AND s.relname <> 'alembic_version' ORDER BY 3 DESC, 2
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its rows, and the bytes of them and of its indexes."""

    name: str
    rows: int
    own: int
    indexes: int

    @property
    def per_row(self) -> float:
        """Bytes for each row, indexes included."""
        return (self.own + self.indexes) / max(self.rows, 1)


@dataclass(frozen=True, slots=True)
class Index:
    """An index without a scan. A unique one is still needed, to reject what is there already."""

    table: str
    name: str
    size: int
    unique: bool


async def tables(url: str) -> list[Table]:
    """All tables with rows, the largest first."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        # A vacuum that reads some pages of a table estimates its rows from these.
        await connection.execute("ANALYZE")
        rows = await (await connection.execute(_TABLES)).fetchall()
    return [Table(*row) for row in rows if row[1]]


async def unused(url: str) -> list[Index]:
    """The indexes that no statement has scanned since the database was created."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        rows = await (await connection.execute(_INDEXES)).fetchall()
    return [Index(*row) for row in rows]


def report(found: Iterable[Table], idle: Iterable[Index]) -> None:
    """Print both."""
    print(f"{'table':22}{'rows':>10}{'MB':>9}{'bytes a row':>13}{'of indexes':>12}")
    for table in found:
        size = table.own + table.indexes
        print(
            f"{table.name:22}{table.rows:10}{size / 1e6:9.1f}{table.per_row:13.0f}"
            f"{table.indexes / size:12.0%}"
        )
    for index in idle:
        kept = " (unique: it rejects what is there already)" if index.unique else ""
        print(f"no scan of {index.name} on {index.table}, {index.size / 1e6:.1f} MB{kept}")
