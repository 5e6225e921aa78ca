"""What passes and later pages read follows what they do, and not how many rows there are."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from bench.million.explain import Prepared
from session_service.domain import filters
from session_service.storage.agent import rollups as agent_rollups
from session_service.storage.database import Database
from session_service.storage.scan import Position
from session_service.storage.session import decisions, due, inventory, listing, rollups
from session_service.storage.session.listing import Page
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

#: The most pages that a few look-ups in indexes touch. The tables have some hundreds to thousands.
PAGES = 50
#: The last block range of a BRIN index is not summarized while it is not full, and so it is read.
BLOCK_RANGE = 128
NOW = datetime.now(UTC)
_FILL = (
    """
    INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
        spec, fingerprint, policy, create_time, last_active_time, due_at)
    SELECT lpad(to_hex(n), 32, '0')::uuid, 'default', 'nest', 'u' || n, 'default', 'PAUSED', 1, 1,
        '{}', 'f', '{}', now() - n * interval '1 minute', now() - n * interval '1 minute', now()
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO containers (session_id, generation, name, app, container_id, state)
    SELECT session_id, 1, session_id, 'app', session_id, 'SUSPENDED' FROM sessions
    """,
    """
    INSERT INTO decisions (decision_id, tenant, session_id, project_id, method, rule, explanation,
        attempts, inputs, request_hash, create_time)
    SELECT session_id, tenant, session_id, project_id, 'StartSession', 'SEEN_LATELY', '', '[]',
        '{}', '', create_time
    FROM sessions
    """,
    """
    INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state, labels,
        head_branch, created_at, last_query_at, seen_at)
    SELECT 'default', n, 'role', repeat('x', 100), 'ACTIVE', '{}', n, at, at, at
    FROM generate_series(1, 20000) AS n, LATERAL (SELECT now() - n * interval '1 minute' AS at) AS t
    """,
    """
    INSERT INTO stats_rollups (tenant, project_id, hours, start_time, figures)
    SELECT 'default', n, 1, date_trunc('hour', now()) - n * interval '1 hour', '[]'
    FROM generate_series(1, 20000) AS n
    """,
    """
    INSERT INTO stats_progress (name, due_at, days_end, trim_time)
    VALUES ('sessions', now(), now(), now() - interval '10 years')
    """,
    "VACUUM ANALYZE",
)


@pytest.fixture
async def filled(database_url: str) -> AsyncIterator[Database]:
    """A database with many rows, all of one tenant."""
    async with Database(database_url, max_size=2, timeout=60) as database:
        async with database.connection(FILL_SECONDS) as connection:
            for statement in _FILL:
                await connection.execute(statement.encode())
        yield database


async def pages(database: Database, sql: str, values: Mapping[str, object], plan: str) -> int:
    """The pages that a statement touches, by this plan, when catalogs and hints have been read."""
    counted = []
    for _ in range(2):
        async with database.transaction() as connection:
            await connection.execute(f"SET LOCAL plan_cache_mode = {plan}".encode())
            prepared = Prepared(connection, sql, values)
            await prepared.prepare()
            counted.append((await prepared.analyze()).pages)
            await connection.execute("DEALLOCATE ALL")
    return min(counted)


async def test_a_pass_without_work_reads_a_few_pages(filled: Database) -> None:
    from_the_first = {
        "start": NOW - timedelta(days=80), "end": NOW, "tenant": "", "seen": NOW, "id": "",
        "most": agent_rollups.SEEN,
    }  # fmt: skip
    cases: dict[str, tuple[str, Mapping[str, object]]] = {
        "decisions, none of which is old": (
            decisions._TRIM.sql,
            {**decisions._TRIM.constants, "older_than": NOW - timedelta(days=90), "most": 5000},
        ),
        "roll-ups, none of which is old": (rollups._TRIM.sql, {"most": 5000}),
        "agent sessions without a turn": (
            agent_rollups._SEEN,
            {"since": NOW, **from_the_first},
        ),
        "agent sessions with a turn, after the last of them": (
            agent_rollups._SEEN,
            {"since": NOW - timedelta(days=80), **from_the_first, "tenant": "default", "seen": NOW},
        ),
        "the apps of containers": (inventory._APPS.sql, {}),
        "a few of many due sessions": (
            due._CLAIM_THESE.sql,
            {**due._CLAIM_THESE.constants, "ids": [UUID(int=1 << 100)], "most": 16,
             "hold": timedelta(seconds=30)},
        ),
    }  # fmt: skip
    read = {
        name: await pages(filled, sql, values, "force_custom_plan")
        for name, (sql, values) in cases.items()
    }
    assert {name: count for name, count in read.items() if count > PAGES + BLOCK_RANGE} == {}


@pytest.mark.parametrize("plan", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("descending", [True, False])
async def test_a_later_page_of_a_range_does_not_read_those_before(
    filled: Database, plan: str, descending: bool
) -> None:
    comparison = "<" if descending else ">"
    bound = NOW + timedelta(days=1) if descending else NOW - timedelta(days=100)
    forms, values = listing.forms(
        filters.parse(f'last_active_time {comparison} "{bound.isoformat()}" AND slot = "x"')
    )
    statement = listing.statement(forms, seen=True, descending=descending, after=True, bound=10)
    middle = Position(NOW - timedelta(minutes=10_000), UUID(int=0))
    wanted = Page("default", (), True, descending, middle, 5)
    given = {**statement.constants, **listing.parameters(wanted, values)}
    assert await pages(filled, statement.sql, given, plan) < PAGES
