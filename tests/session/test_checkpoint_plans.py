"""The checkpoints of one session are found without reading those of all others."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from bench.million.explain import Prepared
from session_service.storage.checkpoint import reads
from session_service.storage.database import Database
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COUNT = 20_000
#: The most pages that a few look-ups in indexes touch.
PAGES = 50
_FILL = """
INSERT INTO checkpoints (checkpoint_id, tenant, project_id, user_id, slot, number, session_id,
    generation, parent_id, kind, state, reason, app, spec, fingerprint, place)
SELECT lpad(to_hex(n), 32, '0')::uuid, 'default', 'nest', 'user ' || n, 'default', 1,
    lpad(to_hex(n / 2), 32, '0')::uuid, 1,
    CASE WHEN n %% 2 = 1 THEN lpad(to_hex(n - 1), 32, '0')::uuid END,
    'APPLICATION', 'READY', 'STOP', 'app', '{}', 'f', 'DATABASE'
FROM generate_series(1, %s) AS n
"""


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Database]:
    """A database with two checkpoints of each session; the second descends from the first."""
    async with Database(database_url, max_size=2) as database:
        async with database.connection(FILL_SECONDS) as connection:
            await connection.execute(_FILL, [COUNT])
            await connection.execute("ANALYZE checkpoints")
        yield database


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("head", [UUID(int=1001), None, UUID(int=1 << 100)])
async def test_the_checkpoints_of_a_session_are_found_by_indexes(
    filled: Database, plan: str, head: UUID | None
) -> None:
    statement = reads._OF_SESSION
    values = {**statement.constants, "session_id": UUID(int=700), "head": head}
    async with filled.connection() as connection:
        await connection.execute(f"SET plan_cache_mode = {plan}".encode())
        prepared = Prepared(connection, statement.sql, values)
        await prepared.prepare()
        cost = await prepared.analyze()
    assert cost.rows == (4 if head == UUID(int=1001) else 2)
    assert cost.pages < PAGES
