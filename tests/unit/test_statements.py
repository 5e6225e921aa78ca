"""Every statement of session_service is in the list of `bench.million`, which judges its cost."""

from __future__ import annotations

from itertools import product

import pytest

from bench.million import explain
from bench.million.calls import CALLS
from bench.million.listed import LISTED
from bench.million.statements import DEFAULT, Listed, text_of
from tests import statement_sites

FOUND = statement_sites.search()


def by_place(listed: Listed) -> str:
    return listed.place


def test_every_statement_is_listed() -> None:
    listed = [each.place for each in LISTED]
    assert len(set(listed)) == len(listed)
    assert sorted(FOUND.places - set(listed)) == [], "add these to bench/million/listed"
    assert sorted(set(listed) - FOUND.places) == [], "these are gone"


def test_no_statement_is_hidden_from_the_search() -> None:
    assert FOUND.hidden == []


def test_every_combination_of_flags_is_listed() -> None:
    """A function of flags makes a statement for each combination of them."""
    listed = {each.place: each for each in LISTED}
    for place, names in FOUND.flags.items():
        wanted = {tuple(values) for values in product((False, True), repeat=len(names))}
        made = {
            tuple((form.flags or {})[name] for name in names)
            for form in listed[place].forms
            if set(form.flags or ()) == set(names)
        }
        assert made == wanted, place


# Some have hundreds of forms: seconds of computing, and many times that on a busy machine.
@pytest.mark.timeout(240)
@pytest.mark.parametrize("listed", LISTED, ids=by_place)
def test_each_entry_can_be_run(listed: Listed) -> None:
    """Each form exists, and each of its binds has a value in each case; no value is for nothing."""
    if not listed.forms:
        assert listed.because
        return
    used: set[str] = set()
    given: set[str] = set()
    names = [(form.name, case.name) for form in listed.forms for case in form.cases]
    assert len(set(names)) == len(names)
    for form in listed.forms:
        text = text_of(listed, form)
        binds = set(explain.binds(text.sql))
        used |= binds
        assert form.cases
        for case in form.cases:
            values = {**text.constants, **listed.defaults, **form.values, **case.values}
            assert binds <= set(values), (form.name, case.name)
            given |= set(form.values) | set(case.values)
            limit = case.limit or form.limit
            assert limit == DEFAULT or limit.because
    assert given <= used


def test_each_call_has_a_name_of_its_own() -> None:
    names = [call.name for call in CALLS]
    assert len(set(names)) == len(names)


# --- the search itself --------------------------------------------------------------------------


def found(source: str) -> statement_sites.Found:
    return statement_sites.search(
        [("module", "from session_service.storage.database import *\n" + source)]
    )


def test_variables_and_functions_that_make_statements_are_found() -> None:
    source = """
_ONE = compiled(lambda: query, make)
_TWO: Statement[int] = Statement("SELECT 1", {}, tuple)
_TYPED = Statement[int]("SELECT 1", {}, tuple)
_MANY = {key: database.trimming(key, old) for key in keys}
def _made(*, flag):
    inner = compiled(lambda: query, make)
    return inner
class Loop:
    async def shot(self):
        await connection.execute("SELECT 1")
"""
    places = {
        f"module:{name}" for name in ("_ONE", "_TWO", "_TYPED", "_MANY", "_made", "Loop.shot")
    }
    assert found(source).places == places
    assert found(source).flags == {"module:_made": ("flag",)}


def test_a_statement_within_an_argument_is_found() -> None:
    assert found("_ALL = tuple(make(compiled(f, g)) for f in fs)").places == {"module:_ALL"}
    assert found("_ALL = merged([Statement(sql, {}, tuple)])").places == {"module:_ALL"}


@pytest.mark.parametrize(
    "source",
    [
        "from session_service.storage.database import compiled as c",
        "make = compiled",
        "make = partial(compiled, build)",
        "call(database.trimming)",
    ],
)
def test_another_name_for_a_maker_is_rejected(source: str) -> None:
    assert found(source).hidden


def test_only_modules_with_a_database_send_statements() -> None:
    source = "class A:\n    def b(self):\n        self.things.copy(1)\n        pipe.execute(2)\n"
    assert statement_sites.search([("module", source)]).places == set()
    assert found(source).places == {"module:A.b"}


# --- pages and rows of a plan -------------------------------------------------------------------


def node(kind: str, pages: int, rows: float, *below: explain.Node, **more: object) -> explain.Node:
    counted = {"Shared Hit Blocks": pages, "Actual Rows": rows, "Actual Loops": 1}
    return {"Node Type": kind, **counted, "Plans": list(below), **more}


def test_binds_are_numbered_in_their_order() -> None:
    text = "SELECT %(b)s, %(a)s, %(b)s::int %% 2"
    assert explain.binds(text) == ["b", "a"]
    assert explain.numbered(text) == "SELECT $1, $2, $1::int % 2"


def test_pages_of_a_plan_are_counted_once() -> None:
    scan = node("Index Scan", 7, 3)
    assert explain.pages(node("Limit", 7, 3, node("Sort", 7, 3, scan))) == 7
    assert explain.pages(node("Nested Loop", 9, 3, scan, node("Seq Scan", 2, 1))) == 9


def test_pages_of_a_query_in_with_are_counted_once() -> None:
    update = node("ModifyTable", 30, 1, **{"Parent Relationship": "InitPlan"})
    plan = node("CTE Scan", 30, 1, update)
    assert explain.pages(plan) == 30


def test_pages_of_a_write_at_the_end_are_counted() -> None:
    """The top node does not contain them: such a write is carried out after it."""
    insert = node("ModifyTable", 12, 0, node("CTE Scan", 0, 5, **{"Parent Relationship": "Outer"}))
    plan = node("Result", 3, 1, node("Index Scan", 3, 1), insert)
    assert explain.pages(plan) == 15
    assert explain.rows(plan) == 5


def test_rows_are_those_returned_or_written() -> None:
    assert explain.rows(node("Index Scan", 4, 2)) == 2
    deleted = node("ModifyTable", 50, 20, node("Index Scan", 20, 20))
    assert explain.rows(node("Aggregate", 50, 1, deleted)) == 20
