"""Runs a statement by EXPLAIN ANALYZE, and counts the pages and rows of its plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg import sql
from psycopg.adapt import PyFormat, Transformer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import psycopg

    Connection = psycopg.AsyncConnection[tuple[Any, ...]]

_BIND = re.compile(r"%\((\w+)\)s|%%")
#: After so many executions PostgreSQL compares the costs of custom plans with that of a generic
#: one (`plancache.c`).
CUSTOM_PLANS = 5
#: They read no page themselves. Those that such a node is charged with were read by the query whose
#: rows it passes on, which is a node of its own.
_PASSES_ON = frozenset({"CTE Scan", "WorkTable Scan"})
_PAGES = (
    *("Shared Hit Blocks", "Shared Read Blocks", "Local Hit Blocks", "Local Read Blocks"),
    *("Temp Read Blocks", "Temp Written Blocks"),
)
#: A node of a plan, as EXPLAIN writes it. Any: numbers, texts, nodes.
Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one execution cost."""

    pages: int
    """Pages that were read or written, from the cache or not."""
    rows: int
    """Rows that were returned or written, whichever are more."""
    milliseconds: float

    @property
    def quick(self) -> bool:
        """Whether it may be executed again."""
        return self.milliseconds < 500


def binds(text: str) -> list[str]:
    """The names of the binds of a statement, in order, each once."""
    return list(dict.fromkeys(match[1] for match in _BIND.finditer(text) if match[1]))


def numbered(text: str) -> str:
    """The statement with $1, $2 … in place of its named binds."""
    places = {name: f"${index}" for index, name in enumerate(binds(text), 1)}
    return _BIND.sub(lambda match: places[match[1]] if match[1] else "%", text)


class Prepared:
    """A statement on a connection, prepared with the types that the driver sends for its values."""

    def __init__(self, connection: Connection, text: str, values: Mapping[str, object]) -> None:
        self._connection = connection
        self._text = text
        self._values = [values[name] for name in binds(text)]
        self._name = "judged"

    async def prepare(self) -> None:
        """Prepare it, as the driver does at its first execution."""
        types = await self._types()
        listed = f"({', '.join(types)})" if types else ""
        command = f"PREPARE {self._name} {listed} AS {numbered(self._text)}"
        await self._connection.execute(command.encode())

    async def becomes_generic(self) -> bool:
        """Whether PostgreSQL chooses a generic plan, once it has made enough custom ones."""
        for _ in range(CUSTOM_PLANS + 1):
            await self._connection.execute(b"EXPLAIN " + self._execution())
        cursor = await self._connection.execute(
            "SELECT generic_plans > 0 FROM pg_prepared_statements WHERE name = %s", [self._name]
        )
        row = await cursor.fetchone()
        return bool(row and row[0])

    async def analyze(self) -> Cost:
        """Execute it, and count."""
        options = b"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) "
        cursor = await self._connection.execute(options + self._execution())
        row = await cursor.fetchone()
        assert row is not None, "EXPLAIN returns a row"
        explained: Node = row[0][0]
        return Cost(pages(explained["Plan"]), rows(explained["Plan"]), explained["Execution Time"])

    def _execution(self) -> bytes:
        if not self._values:
            return f"EXECUTE {self._name}".encode()
        literals = sql.SQL(", ").join(sql.Literal(value) for value in self._values)
        composed = sql.SQL("EXECUTE {} ({})").format(sql.Identifier(self._name), literals)
        return composed.as_bytes(self._connection)

    async def _types(self) -> list[str]:
        transformer = Transformer(self._connection)
        oids = [
            0 if value is None else transformer.get_dumper(value, PyFormat.AUTO).oid
            for value in self._values
        ]
        # Type 0: PostgreSQL infers it from the statement.
        cursor = await self._connection.execute(
            "SELECT CASE oid WHEN 0 THEN 'unknown' ELSE format_type(oid, NULL) END"
            " FROM unnest(%s::oid[]) WITH ORDINALITY AS given (oid, place) ORDER BY place",
            [oids],
        )
        return [str(row[0]) for row in await cursor.fetchall()]


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _charged(node: Node) -> int:
    return sum(int(node.get(name, 0)) for name in _PAGES)


def pages(plan: Node) -> int:
    """The pages of a plan.

    A node is charged with the pages of the nodes below it, too, but not with those of a statement
    in WITH that is carried out at the end. So what each node reads itself is added up.
    """
    total = 0
    for node in _nodes(plan):
        if node["Node Type"] not in _PASSES_ON:
            below = sum(_charged(child) for child in node.get("Plans", ()))
            total += max(0, _charged(node) - below)
    return total


def _count(node: Node) -> int:
    return round(float(node.get("Actual Rows", 0)) * float(node.get("Actual Loops", 1)))


def rows(plan: Node) -> int:
    """The rows that a plan returns or writes, whichever are more."""
    written = 0
    for node in _nodes(plan):
        if node["Node Type"] == "ModifyTable":
            sources: Sequence[Node] = node.get("Plans", ())
            # One that returns nothing shows no rows; its source does.
            written += _count(node) or sum(
                _count(source) for source in sources if source.get("Parent Relationship") == "Outer"
            )
    return max(_count(plan), written)
