"""A page of a list reads no more entries than its bound, wherever the sessions that match are."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from session_service.domain import filters
from session_service.storage.database import Database
from session_service.storage.scan import Position
from session_service.storage.session import listing
from session_service.storage.session.listing import Page
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BOUND = 100
SIZE = 20
#: The live sessions are the newest tenth; one project has half of all, the oldest half.
_FILL = """
INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch, spec,
    fingerprint, policy, create_time, last_active_time)
SELECT lpad(to_hex(n), 32, '0')::uuid, 't',
    CASE WHEN n <= 3000 THEN 'large' ELSE 'p' || n %% 50 END,
    'u' || n, 'default',
    CASE WHEN n <= 5400 THEN 'ENDED' WHEN n %% 5 = 0 THEN 'ACTIVE' ELSE 'PAUSED' END,
    1, 1, jsonb_build_object('image', repeat('x', 300)), 'f', '{}',
    '2026-01-01'::timestamptz + n * interval '1 s', '2026-01-01'::timestamptz + n * interval '1 s'
FROM generate_series(1, 6000) n
"""
FILTERS = {
    "": 1,
    'user_id = "u7"': 1,
    'user_id = "nobody" AND slot = "x"': 1,
    'project_id = "large"': 1,
    'project_id = "large" AND slot = "x"': 1,
    'project_id = "large" AND live = true': 1,
    'project_id = "p7" AND state = PAUSED': 1,
    "live = true": 4,
    "live = false": 2,
    "state = PAUSING": 1,
    'slot = "x"': 1,
    'state = ENDED AND slot = "x"': 1,
    'user_id = "u7" OR project_id = "large" OR state = ACTIVE': 3,
    'create_time > "2026-01-01T01:00:00Z" AND slot = "x"': 1,
    'last_active_time < "2026-01-01T01:00:00Z" AND slot = "x"': 1,
}


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Database]:
    """A database with many sessions, whose statistics are up to date."""
    async with Database(database_url, max_size=2) as database:
        async with database.connection(FILL_SECONDS) as connection:
            await connection.execute(_FILL, {})
            await connection.execute("VACUUM ANALYZE sessions")
        yield database


def entries_read(node: dict[str, Any]) -> int:
    """The rows that scans of sessions visited, except by id. Any: JSON."""
    count = 0
    if node.get("Relation Name") == "sessions" and node.get("Index Name") != "sessions_pkey":
        removed = node.get("Rows Removed by Filter", 0)
        count = int((node["Actual Rows"] + removed) * node["Actual Loops"])
    return count + sum(entries_read(child) for child in node.get("Plans", ()))


@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
async def test_no_page_reads_more_than_its_bound(filled: Database, mode: str) -> None:
    """In both orders, both ways, from the beginning and from the middle, with the plans of a
    prepared statement and with those for its values.
    """
    middle = Position(datetime(2026, 1, 1, 0, 45, tzinfo=UTC), "0" * 32)
    orders = [
        (seen, descending, after)
        for seen in (False, True)
        for descending in (False, True)
        for after in (None, middle)
    ]
    async with filled.connection() as connection:
        await connection.execute(f"SET plan_cache_mode = {mode}".encode())
        for text, branches in FILTERS.items():
            forms, values = listing.forms(filters.parse(text))
            for seen, descending, after in orders:
                wanted = Page("t", (), seen, descending, after, SIZE, BOUND)
                statement = listing.statement(
                    forms,
                    seen=seen,
                    descending=descending,
                    after=after is not None,
                    bound=BOUND,
                )
                cursor = await connection.execute(
                    f"EXPLAIN (ANALYZE, FORMAT JSON) {statement.sql}".encode(),
                    {**statement.constants, **listing.parameters(wanted, values)},
                )
                (found,) = await cursor.fetchone() or ("",)
                plan = json.loads(found) if isinstance(found, str) else found
                read = entries_read(plan[0]["Plan"])
                assert read <= branches * BOUND, (text, seen, descending, after, read)
