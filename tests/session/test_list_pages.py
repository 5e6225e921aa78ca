"""ListSessions page by page: whatever the filter, its order and the bound of a scan, all pages
together have what a filter in Python has, once each and in order.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

from hypothesis import example, given, reject
from hypothesis import strategies as st

from session_service.domain import filters
from session_service.domain.states import LIVE, State
from session_service.storage.database import Database
from session_service.storage.session import listing
from session_service.storage.session.listing import Page
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.storage.scan import Position

T0 = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 300
#: Scans that end after so many entries: a few, a page or more, and all.
BOUNDS = (8, 70, 2000)


@dataclass(frozen=True)
class Row:
    """A session as the filter sees it."""

    session_id: UUID
    project_id: str
    user_id: str
    slot: str
    state: State
    create_time: datetime
    last_active_time: datetime
    seen_at: datetime

    @property
    def live(self) -> bool:
        """Whether the state is a live one."""
        return self.state in LIVE


def rows(random: Random) -> list[Row]:
    """Sessions, many of which share their times. Of the ACTIVE ones `seen_at` lags behind."""
    made: list[Row] = []
    keys: set[tuple[str, str, str]] = set()
    for number in range(COUNT):
        project, user, slot = (
            f"{kind}{min(random.randrange(many), random.randrange(many))}"
            for kind, many in (("p", 4), ("u", 6), ("s", 3))
        )
        state = random.choice([*State, State.ENDED, State.ENDED])
        if state in LIVE:
            if (project, user, slot) in keys:
                state = State.ENDED
            keys.add((project, user, slot))
        created = T0 + timedelta(minutes=random.randrange(100))
        active = created + timedelta(minutes=random.randrange(60))
        lag = timedelta(seconds=random.randrange(300) if state is State.ACTIVE else 0)
        made.append(
            Row(UUID(int=number), project, user, slot, state, created, active, active - lag)
        )
    return made


async def fill(database: Database, made: list[Row]) -> None:
    """Insert the rows."""
    async with database.connection(FILL_SECONDS) as connection:
        for row in made:
            await connection.execute(
                """
                INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state,
                    transition, generation, epoch, spec, fingerprint, policy, create_time,
                    last_active_time)
                VALUES (%s, 't', %s, %s, %s, %s, %s, 1, 1, '{}', 'f', '{}', %s, %s)
                """,
                (
                    row.session_id, row.project_id, row.user_id, row.slot, row.state,
                    {"STARTING": "START", "PAUSING": "PAUSE", "ENDING": "END"}.get(row.state),
                    row.create_time, row.last_active_time,
                ),
            )  # fmt: skip
            await connection.execute(
                "UPDATE sessions SET seen_at = %s WHERE session_id = %s",
                (row.seen_at, row.session_id),
            )


Filter = tuple[str, "Callable[[Row], bool]"]
TIMES = st.integers(-5, 165).map(lambda minutes: T0 + timedelta(minutes=minutes))
COMPARE: dict[str, Callable[[datetime, datetime], bool]] = {
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "=": lambda a, b: a == b,
}


def of_time(name: str, comparison: str, time: datetime) -> Filter:
    """A comparison of a time."""
    return (
        f'{name} {comparison} "{time.isoformat()}"',
        lambda row: COMPARE[comparison](getattr(row, name), time),
    )


def of_value(name: str, value: object, text: str) -> Filter:
    """An equality."""
    return f"{name} = {text}", lambda row: getattr(row, name) == value


def of_text(name: str, value: str) -> Filter:
    """An equality of a quoted text."""
    return of_value(name, value, f'"{value}"')


COMPARISONS = st.one_of(
    *(
        st.builds(of_text, st.just(name), st.sampled_from([f"{name[0]}{n}" for n in range(4)]))
        for name in ("project_id", "user_id", "slot")
    ),
    st.sampled_from(State).map(lambda state: of_value("state", state, state)),
    st.booleans().map(lambda live: of_value("live", live, str(live).lower())),
    st.builds(
        of_time,
        st.sampled_from(["create_time", "last_active_time"]),
        st.sampled_from(list(COMPARE)),
        TIMES,
    ),
)


def joined(pair: tuple[Filter, Filter], word: str) -> Filter:
    """Two filters joined, in parentheses."""
    (left, one), (right, other) = pair
    if word == "OR":
        return f"({left} OR {right})", lambda row: one(row) or other(row)
    return f"({left} AND {right})", lambda row: one(row) and other(row)


#: One alternative is served by an index, the other is not; and two that read the same entries.
EITHER = joined((of_text("project_id", "p0"), of_text("slot", "s0")), "OR")
TWO_SLOTS = joined((of_text("slot", "s0"), of_text("slot", "s1")), "OR")
FILTERS = st.just(("", lambda row: True)) | st.recursive(
    COMPARISONS,
    lambda inner: st.builds(joined, st.tuples(inner, inner), st.sampled_from(["AND", "OR"])),
    max_leaves=5,
)


async def walk(
    database: Database,
    text: str,
    *,
    seen: bool,
    descending: bool,
    size: int,
    bound: int,
    meanwhile: Callable[[], Awaitable[None]] | None = None,
) -> list[UUID]:
    """The ids of all pages, one after another."""
    found: list[UUID] = []
    after: Position | None = None
    alternatives = filters.parse(text)
    while True:
        wanted = Page("t", alternatives, seen, descending, after, size, bound)
        page = await listing.page(database, wanted)
        assert len(page.rows) <= size
        found += [record.session.session_id for record in page.rows]
        after = page.after
        if after is None:
            return found
        if meanwhile is not None:
            await meanwhile()


def test_all_pages_together_are_what_the_filter_says(database_url: str) -> None:
    """In both orders, both ways."""
    made = rows(Random(7))

    with asyncio.Runner() as runner:
        database = Database(database_url, max_size=2)
        runner.run(database.__aenter__())
        runner.run(fill(database, made))

        @given(
            FILTERS,
            st.booleans(),
            st.booleans(),
            st.sampled_from((7, 60)),
            st.sampled_from(BOUNDS),
        )
        # A branch ends at a row that the other branch lists.
        @example(EITHER, False, False, 7, 8)
        @example(EITHER, True, True, 7, 8)
        @example(TWO_SLOTS, False, False, 7, 8)
        def check(wanted: Filter, seen: bool, descending: bool, size: int, bound: int) -> None:
            text, matches = wanted
            try:
                filters.parse(text)
            except filters.BadFilter:
                reject()
            expected = sorted(
                filter(matches, made),
                key=lambda row: (row.seen_at if seen else row.create_time, row.session_id),
                reverse=descending,
            )
            # A scan is never shorter than a page.
            bound = max(bound, size + 1)
            walked = walk(database, text, seen=seen, descending=descending, size=size, bound=bound)
            assert runner.run(walked) == [row.session_id for row in expected]

        check()
        runner.run(database.__aexit__())


async def test_nothing_that_matched_throughout_is_lost_while_rows_change(
    database_url: str,
) -> None:
    """In order of creation: rows are touched and ended between the pages."""
    random = Random(11)
    made = rows(random)
    ended: set[UUID] = set()
    active = [row for row in made if row.state is State.ACTIVE]

    async with Database(database_url, max_size=2) as database:
        await fill(database, made)

        async def meanwhile() -> None:
            async with database.connection() as connection:
                touched = random.choice(active).session_id
                await connection.execute(
                    "UPDATE sessions SET last_active_time = now() WHERE session_id = %s",
                    (touched,),
                )
                if random.random() < 0.2:
                    ended.add(touched)
                    await connection.execute(
                        "UPDATE sessions SET state = 'ENDED' WHERE session_id = %s", (touched,)
                    )

        found = await walk(
            database,
            "state = ACTIVE AND slot = s0 OR slot = s1",
            seen=False,
            descending=False,
            size=3,
            bound=8,
            meanwhile=meanwhile,
        )
        matched = {row.session_id for row in active if row.slot in ("s0", "s1")}
        assert len(found) == len(set(found))
        assert matched - ended <= set(found) <= matched
