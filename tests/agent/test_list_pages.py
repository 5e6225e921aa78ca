"""ListAgentSessions page by page: whatever the filter, its order and the bound of a scan, all pages
together have what a filter in Python has, once each and in order.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from session_service.domain.agent import AgentState, SessionFilter
from session_service.storage.agent import listing
from session_service.storage.database import Database
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from session_service.storage.scan import Position

T0 = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 250
#: Scans that end after so many entries: a few, a page or more, and all.
BOUNDS = (8, 70, 2000)


@dataclass(frozen=True)
class Row:
    """A session as the filter sees it."""

    session_id: str
    role: str
    state: AgentState
    labels: dict[str, str]
    created_at: datetime
    last_query_at: datetime
    seen_at: datetime

    def satisfies(self, wanted: SessionFilter) -> bool:
        """The filter, in Python."""
        labels = json.loads(wanted.labels or "{}")
        return (
            wanted.agent_role in (None, self.role)
            and labels.items() <= self.labels.items()
            and (wanted.active_since is None or self.last_query_at >= wanted.active_since)
            and (not wanted.states or self.state in wanted.states)
            and (not wanted.session_ids or self.session_id in wanted.session_ids)
        )


def rows(random: Random) -> list[Row]:
    """Sessions, many of which share their times. Of the ACTIVE ones `seen_at` lags behind."""
    made = []
    for number in range(COUNT):
        state = random.choice(list(AgentState))
        created = T0 + timedelta(minutes=random.randrange(100))
        queried = created + timedelta(minutes=random.randrange(60))
        lag = timedelta(seconds=random.randrange(300) if state is AgentState.ACTIVE else 0)
        labels = {f"l{each}": f"v{random.randrange(2 + 9 * each)}" for each in range(2)}
        role = random.choice(["ceo", "cto", "cto", "cto"])
        made.append(Row(f"s{number:03}", role, state, labels, created, queried, queried - lag))
    return made


async def fill(database: Database, made: list[Row]) -> None:
    """Insert the rows."""
    async with database.connection(FILL_SECONDS) as connection:
        for number, row in enumerate(made):
            over = None if row.state is AgentState.ACTIVE else row.last_query_at
            await connection.execute(
                """
                INSERT INTO llm_sessions (tenant, session_id, agent_role, startup_context, state,
                    labels, head_branch, created_at, last_query_at, seen_at, ended_at, purge_at)
                VALUES ('t', %s, %s, '', %s, %s, %s, %s, %s, %s, %s, %s)
                """,
                (
                    row.session_id, row.role, row.state, json.dumps(row.labels), number + 1,
                    row.created_at, row.last_query_at, row.seen_at, over, over,
                ),
            )  # fmt: skip


FILTERS = st.builds(
    SessionFilter,
    agent_role=st.sampled_from([None, "ceo", "cto", "cfo"]),
    labels=st.sampled_from(
        [None, None, '{"l0": "v1"}', '{"l1": "v7"}', '{"l0": "v0", "l1": "v3"}']
    ),
    active_since=st.none() | st.integers(-5, 165).map(lambda m: T0 + timedelta(minutes=m)),
    states=st.lists(st.sampled_from(AgentState), unique=True, max_size=3).map(tuple),
    session_ids=st.just(()) | st.lists(st.sampled_from(["s001", "s100", "x"])).map(tuple),
)


async def walk(
    database: Database,
    wanted: SessionFilter,
    *,
    seen: bool,
    descending: bool,
    size: int,
    bound: int,
) -> list[str]:
    """The ids of all pages, one after another."""
    found: list[str] = []
    after: Position | None = None
    while True:
        page = await listing.page(
            database, "t", wanted, after, size, seen=seen, descending=descending, bound=bound
        )
        assert len(page.rows) <= size
        found += [session.session_id for session in page.rows]
        after = page.after
        if after is None:
            return found


def test_all_pages_together_are_what_the_filter_says(database_url: str) -> None:
    """In both orders, both ways; and read as an export reads them."""
    made = rows(Random(7))

    with asyncio.Runner() as runner:
        database = Database(database_url, max_size=2, timeout=30, answer=30)
        runner.run(database.__aenter__())
        runner.run(fill(database, made))

        @given(
            FILTERS,
            st.booleans(),
            st.booleans(),
            st.sampled_from((7, 60)),
            st.sampled_from(BOUNDS),
        )
        def check(
            wanted: SessionFilter, seen: bool, descending: bool, size: int, bound: int
        ) -> None:
            expected = sorted(
                (row for row in made if row.satisfies(wanted)),
                key=lambda row: (row.seen_at if seen else row.created_at, row.session_id),
                reverse=descending,
            )
            # A scan is never shorter than a page.
            bound = max(bound, size + 1)
            walked = walk(
                database, wanted, seen=seen, descending=descending, size=size, bound=bound
            )
            assert runner.run(walked) == [row.session_id for row in expected]
            first = runner.run(listing.pages(database, "t", wanted, None, 20))
            oldest = sorted(expected, key=lambda row: (row.created_at, row.session_id))
            assert [row.session_id for row in first.rows] == [row.session_id for row in oldest[:20]]

        check()
        runner.run(database.__aexit__())
