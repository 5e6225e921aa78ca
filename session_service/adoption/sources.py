"""The sources of older rows: a table in a PostgreSQL, or a CSV file. Read in pieces."""

from __future__ import annotations

import asyncio
import csv
from contextlib import asynccontextmanager
from itertools import islice
from typing import TYPE_CHECKING, Protocol, TextIO

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from session_service.adoption.mapping import BadColumns

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from session_service.adoption.mapping import Field
    from session_service.adoption.rows import Raw

#: The largest number of rows in memory at once.
PIECE = 2000
#: Timeout of the connection to the older database, in s.
CONNECT_TIMEOUT = 10


class BadSource(Exception):
    """The rows cannot be read; the message is one line that says where, and contains no secret."""


class Source(Protocol):
    """The rows of an older table."""

    @property
    def columns(self) -> Sequence[str]:
        """The names of its columns, in order."""
        ...

    def pieces(self, columns: Mapping[Field, str]) -> AsyncIterator[list[Raw]]:
        """All rows in pieces, as text by field. Raises BadSource."""
        ...


class CsvSource:
    """A CSV file with a header line."""

    def __init__(self, file: TextIO, name: str) -> None:
        """Read the header; blocks. Raises BadSource."""
        self._reader = csv.reader(file, strict=True)
        self._name = name
        header = self._take(1)
        if not header:
            raise BadSource(f"{name}: is empty; the first line must name the columns")
        self.columns = [name.strip() for name in header[0]]

    def _take(self, count: int) -> list[list[str]]:
        try:
            return list(islice(self._reader, count))
        except csv.Error as error:
            raise BadSource(f"{self._name}: line {self._reader.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise BadSource(
                f"{self._name}: after line {self._reader.line_num}: is not UTF-8"
            ) from None

    async def pieces(self, columns: Mapping[Field, str]) -> AsyncIterator[list[Raw]]:
        """All rows; empty lines are ignored."""
        places = {field: self.columns.index(name) for field, name in columns.items()}
        while taken := await asyncio.to_thread(self._take, PIECE):
            yield [self._raw(row, places) for row in taken if row]

    def _raw(self, row: list[str], places: Mapping[Field, int]) -> Raw:
        if len(row) != len(self.columns):
            raise BadSource(
                f"{self._name}: near line {self._reader.line_num}: a row has {len(row)} values, "
                f"but there are {len(self.columns)} columns"
            )
        return {field: row[place] or None for field, place in places.items()}


class TableSource:
    """A table in a PostgreSQL, in one snapshot."""

    def __init__(
        self, connection: psycopg.AsyncConnection, table: sql.Composable, columns: Sequence[str]
    ) -> None:
        self._connection = connection
        self._table = table
        self.columns = columns

    async def pieces(self, columns: Mapping[Field, str]) -> AsyncIterator[list[Raw]]:
        """All rows through a server-side cursor, each value as PostgreSQL's text."""
        fields = list(columns)
        values = sql.SQL(", ").join(
            sql.SQL("{}::text").format(sql.Identifier(columns[field])) for field in fields
        )
        query = sql.SQL("SELECT {} FROM {}").format(values, self._table)
        try:
            async with self._connection.cursor(name="adoption") as cursor:
                await cursor.execute(query)
                while taken := await cursor.fetchmany(PIECE):
                    yield [dict(zip(fields, row, strict=True)) for row in taken]
        except psycopg.Error as error:
            raise BadSource(_plain(error)) from None


@asynccontextmanager
async def table_source(url: str, table: str) -> AsyncGenerator[TableSource]:
    """The table at this address, in one read-only transaction. Raises BadSource."""
    name = sql.Identifier(*table.split("."))
    where = place_of(url)
    try:
        connection = await psycopg.AsyncConnection.connect(url, connect_timeout=CONNECT_TIMEOUT)
    except psycopg.Error:
        # The driver's own text may contain the password of the address.
        raise BadSource(
            f"{where}: no database answers, or it rejects this user and password"
        ) from None
    async with connection:
        await connection.set_read_only(True)
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        try:
            await connection.execute("SET LOCAL timezone = 'UTC'")
            await connection.execute("SET LOCAL datestyle = 'ISO'")
            query = sql.SQL("SELECT * FROM {} LIMIT 0").format(name)
            cursor = await connection.execute(query)
        except psycopg.errors.UndefinedTable:
            raise BadSource(
                f"{where}: has no table {table!r}. If it is the older platform's database, give "
                "--table"
            ) from None
        except psycopg.Error as error:
            raise BadSource(f"{where}: {_plain(error)}") from None
        columns = [column.name for column in cursor.description or ()]
        if not columns:
            raise BadColumns(f"{table} has no columns")
        yield TableSource(connection, name, columns)


def place_of(url: str) -> str:
    """The host, port and name of a database, without user and password."""
    try:
        found = conninfo_to_dict(url)
    except psycopg.Error:
        return "the database"
    host = found.get("host") or found.get("hostaddr") or "localhost"
    return f"{host}:{found.get('port') or 5432}/{found.get('dbname') or ''}"


def _plain(error: psycopg.Error) -> str:
    """The server's message in one line, without the driver's own text."""
    return " ".join((error.diag.message_primary or "the connection was lost").split())
