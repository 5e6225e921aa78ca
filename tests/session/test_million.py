"""The proof at a million sessions, at a size that takes minutes less: what it says can be trusted.

It shows that each listed statement can be executed, that a bad one is found, and that each call is
answered. The limits themselves hold at a million sessions only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from bench.million import judge, latency, seed, sizes
from bench.million.calls import CALLS
from bench.million.listed import LISTED
from bench.million.statements import Form, case, statements
from session_service.storage.tables import decisions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.database import Databases

ROWS = 20_000
SMALL = 1_000
#: What does not depend on the time of the seeding.
_DRAWN = """
SELECT md5(string_agg(concat_ws(' ', session_id, project_id, user_id, slot, state), ',' ORDER BY
    session_id)) FROM sessions
UNION ALL
SELECT md5(string_agg(concat_ws(' ', branch_id, turn_number, roles, contents), ',' ORDER BY
    branch_id, turn_number)) FROM llm_turns
"""

pytestmark = [pytest.mark.proof, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def seeded(databases: Databases) -> Iterator[dict[int, str]]:
    """Both databases, by the number of their sessions."""
    server = databases.create()
    made = {count: seed.create(server, f"roost_{count}", count) for count in (SMALL, ROWS)}
    yield made
    for url in (*made.values(), server):
        databases.drop(url)


def drawn(url: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(_DRAWN).fetchall()


def test_a_seed_gives_the_same_rows_again(
    databases: Databases, seeded: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    same = seed.create(seeded[SMALL], "again", SMALL)
    other = seed.create(seeded[SMALL], "other", SMALL, seed.SEED + 1)
    assert drawn(same) == drawn(seeded[SMALL]) != drawn(other)
    capsys.readouterr()
    assert seed.create(seeded[SMALL], "again", SMALL) == same
    assert "is there" in capsys.readouterr().out
    for url in (same, other):
        databases.drop(url)


async def test_every_listed_statement_can_be_executed(seeded: dict[int, str]) -> None:
    verdicts = await judge.judge(seeded[ROWS], ROWS, LISTED)
    assert {verdict.place for verdict in verdicts} == {each.place for each in LISTED if each.forms}
    assert [verdict for verdict in verdicts if verdict.error] == []
    # The judgement leaves nothing behind.
    assert drawn(seeded[ROWS]) == drawn(seeded[ROWS])


async def test_a_statement_that_reads_what_it_does_not_return_is_found(
    seeded: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = "storage.session.decisions:_BY_ID"
    good = next(each for each in LISTED if each.place == place)
    bad = Form(
        "by a column without an index",
        (case("none"),),
        arguments=(decisions.c.decision_id, lambda: decisions.c.explanation == "another"),
        values={"most": 10, "explanation_1": "another"},
    )
    listed = [good, statements("storage.database:trimming", bad)]
    verdicts = await judge.judge(seeded[ROWS], ROWS, listed)
    assert [verdict.form for verdict in verdicts if not verdict.passes] == [bad.name]
    assert judge.report(verdicts) == 1
    assert "by a column without an index: none  EXCEEDS ITS LIMIT" in capsys.readouterr().out


async def test_every_call_is_answered(seeded: dict[int, str]) -> None:
    told: list[str] = []
    measured = await latency.measure(
        (seeded[SMALL], SMALL), (seeded[ROWS], ROWS), rounds=3, seconds=5.0, tell=told.append
    )
    assert len(measured) == len(CALLS) + 1
    # The heading, the calls, the summary.
    assert len(told) == len(measured) + 2
    assert told[-1].startswith(f"{len(measured)} calls, ")
    assert {each.name: each.errors for each in measured if each.errors} == {}


async def test_sizes_and_unused_indexes_are_told(
    seeded: dict[int, str], capsys: pytest.CaptureFixture[str]
) -> None:
    tables = await sizes.tables(seeded[ROWS])
    by_name = {table.name: table for table in tables}
    assert by_name["sessions"].rows == pytest.approx(ROWS, rel=0.1)
    assert 500 < by_name["sessions"].per_row < 5_000
    sizes.report(tables, await sizes.unused(seeded[ROWS]))
    assert "sessions" in capsys.readouterr().out
