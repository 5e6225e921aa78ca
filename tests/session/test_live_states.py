"""The live states are written once, in `domain/states.py`, and their partial indexes are used."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from psycopg import sql

from session_service.domain.states import LIVE
from session_service.storage import policy
from session_service.storage.database import Database
from session_service.storage.session import gauges, live_counts, reads
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from session_service.storage.database import Statement

ROOT = Path(__file__).parents[2]
NAMES = frozenset(str(state) for state in LIVE)
SESSIONS = 20_000
_FILL = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
    fingerprint, spec, policy, create_time)
SELECT gen_random_uuid(), 'default', 'nest', 'user ' || n, 'default',
    CASE WHEN n %% 20 = 0 THEN 'ACTIVE' ELSE 'ENDED' END, 1, 1, 'f', '{}', '{}',
    now() - n * interval '1 second'
FROM generate_series(1, %s) n
"""


def sources() -> Iterator[Path]:
    """Every module but `domain/states.py`, and but the migrations, which never change."""
    for folder in ("session_service", "bench", "local"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place != "session_service/domain/states.py" and "/migrations/" not in place:
                yield path


def named_together(source: str) -> set[int]:
    """The lines of strings and collections that name all four live states."""
    lines = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Constant | ast.JoinedStr | ast.Tuple | ast.List | ast.Set):
            continue
        words: set[str] = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                words.update(re.findall(r"[A-Z]+", part.value))
            elif isinstance(part, ast.Attribute):
                words.add(part.attr)
        if words >= NAMES:
            lines.add(node.lineno)
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "QUERY = \"state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')\"",
        "QUERY = f\"WHERE {x} AND state IN ('PAUSED', 'PAUSING', 'ACTIVE', 'STARTING')\"",
        "LIVE = {State.STARTING, State.ACTIVE, State.PAUSING, State.PAUSED}",
    ],
)
def test_a_second_list_is_found(source: str) -> None:
    assert named_together(source) == {1}


def test_the_live_states_are_written_once() -> None:
    """A second list would be wrong, without an error, when a state is added."""
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sources()
        for line in sorted(named_together(path.read_text()))
    ]
    assert not found


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Database]:
    """A database with many sessions, few of them live."""
    async with Database(database_url, max_size=2) as database:
        async with database.connection(FILL_SECONDS) as connection:
            await connection.execute(_FILL, [SESSIONS])
            await connection.execute("ANALYZE sessions")
        yield database


@pytest.mark.parametrize(
    "statement",
    [reads._LIVE_AT, live_counts._RECOUNT, policy._WALK, gauges._LIVE_AGES],
    ids=["live_at", "recount", "outdated", "gauges"],
)
async def test_queries_of_live_sessions_use_a_partial_index(
    filled: Database, statement: Statement[object]
) -> None:
    """Also with a generic plan, which does not know the values of the parameters."""
    names: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        names.append(match[1])
        return f"${len(names)}"

    query = re.sub(r"%\((\w+)\)s", numbered, statement.sql).replace("%%", "%")
    values = {
        "tenant": "default",
        "project_id": "nest",
        "user_id": "user 20",
        "slot": "default",
        "most": 100,
        "version": "1",
        **statement.constants,
    }
    async with filled.connection() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE live AS {query}".encode())
        given = sql.SQL(", ").join(sql.Literal(values[name]) for name in names)
        explain = sql.SQL("EXPLAIN EXECUTE live ({})").format(given)
        cursor = await connection.execute(explain)
        plan = "\n".join(str(row[0]) for row in await cursor.fetchall())
    assert "sessions_live_" in plan, plan
