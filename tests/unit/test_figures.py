"""The figures as a table and as a picture: what people see of them."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import pytest

from session_service.domain.figures import (
    Current,
    Day,
    Figures,
    Latency,
    Preferred,
    Span,
    Started,
    Tries,
)
from session_service.domain.session import Outcome, Rung
from session_service.figures import picture, table

START = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SVG = "{http://www.w3.org/2000/svg}"


def milliseconds(*numbers: float) -> Latency:
    return Latency(*(timedelta(milliseconds=number) for number in numbers))


def day(number: int, reused: int = 0, created: int = 0, took: float = 100) -> Day:
    """The day so many after the first."""
    outcomes = {}
    if reused:
        outcomes[Outcome.REUSED] = Started(reused)
    if created:
        outcomes[Outcome.CREATED] = Started(created, milliseconds(took, took * 3, took * 9))
    return Day(START + number * DAY, outcomes, created)


def figures(
    days: list[Day], project_id: str | None = "nest", length: int = 10, whole: Day | None = None
) -> Figures:
    return Figures(
        Span("default", project_id, START, START + length * DAY),
        whole or Day(START),
        days,
        joins=3,
        replays=2,
        refusals={"PROVIDER_CAPACITY": 4},
        rungs={Rung.RESUME: Tries(6, 1, 1), Rung.CREATE: Tries(5, 0, 0)},
        ends={"EXPIRED": 2, "REQUESTED": 1},
        average_lifetime=timedelta(hours=5, minutes=3),
        preferred=Preferred(3, 1, 2, 0),
        current=Current(timedelta(days=2, hours=7), 0, 5, 1),
    )


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(0), "0 ms"),
        (timedelta(milliseconds=41), "41 ms"),
        (timedelta(milliseconds=2400), "2.4 s"),
        (timedelta(seconds=60), "1 min"),
        (timedelta(seconds=185), "3 min 5 s"),
        (timedelta(hours=5, minutes=3, seconds=9), "5 h 3 min"),
        (timedelta(days=2, hours=7), "2 d 7 h"),
        (timedelta(days=400), "400 d"),
    ],
)
def test_spans_are_told_by_their_two_largest_units(span: timedelta, words: str) -> None:
    assert table.duration(span) == words


def test_the_table_tells_the_five_figures() -> None:
    """Each with what it is made of."""
    whole = Day(START, {Outcome.REUSED: Started(3), Outcome.CREATED: day(0, 0, 1).outcomes[
        Outcome.CREATED]}, 6)  # fmt: skip
    told = table.text(figures([], whole=whole))
    lines = {line.strip() for line in told.splitlines()}
    assert re.search(r"reuse rate +75\.0 % +3 of 4 starts", told)
    assert re.search(r"average session lifetime +5 h 3 min +3 sessions", told)
    assert re.search(r"container creations +0\.03/h +6 came up", told)
    assert re.search(r"state recovery +75\.0 % +6 of 8 tries", told)
    assert re.search(r"users continue +75\.0 % +3 continued, 1 began anew", told)
    assert "RESUME            8          6         1       1   75.0 %" in lines
    assert "CREATED            1  100 ms  300 ms  900 ms" in lines
    assert "REUSED             3       -       -       -" in lines
    assert re.search(r"refused +PROVIDER_CAPACITY 4", told)
    assert re.search(
        r"now, everywhere +oldest live 2 d 7 h, past lifetime 0, due 5, orphans 1", told
    )


def drawn(found: Figures) -> ElementTree.Element:
    """The picture, parsed."""
    return ElementTree.fromstring(picture.svg(found))


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def test_days_without_starts_are_gaps() -> None:
    """No line goes over them, and a day between two of them is a mark."""
    root = drawn(figures([day(0, 3, 1), day(1, 3, 1), day(4, 3, 1), day(6, 2), day(7, 1, 1)]))
    lines = [line.attrib for line in root.iter(f"{SVG}polyline")]
    runs = [len(line["points"].split()) for line in lines if line["class"] == "line s4"]
    assert runs == [2, 2]
    created = [len(line["points"].split()) for line in lines if line["class"] == "line s3"]
    assert created == [2]
    marks = [g.attrib["class"] for g in root.iter(f"{SVG}g")]
    assert (marks.count("m4"), marks.count("m3")) == (5, 4 + 1)


def test_the_axes_have_units_and_the_series_a_legend() -> None:
    root = drawn(figures([day(n, 3, 1, took=40 * (n + 1)) for n in range(10)]))
    said = words(root)
    assert {"0 %", "100 %", "10 ms", "1 s", "Nov 1", "Nov 9", "CREATED"} <= set(said)
    assert "RESUMED" not in said


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "a & b", '"quoted"', "]]>", "bell\a and \u202e", "日本"]
)
def test_whatever_a_project_is_called_the_file_is_xml(name: str) -> None:
    """Its name is text, and nothing else."""
    root = drawn(figures([day(0, 1)], name))
    plain = "".join(letter for letter in name if letter.isprintable())
    assert f"Sessions of {plain}" in words(root)
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= {
        *("svg", "title", "desc", "style", "rect", "text", "line", "polyline", "g"),
        *("circle", "path"),
    }


def test_without_starts_it_says_so() -> None:
    root = drawn(figures([]))
    assert "no starts in this span" in words(root)
    assert "no starts but reuses in this span" in words(root)


@pytest.mark.parametrize("length", [1, 2, 31, 93, 366])
def test_all_that_is_drawn_is_within_the_picture(length: int) -> None:
    """However long the span, and however odd the values."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    days = [
        day(n, dice.randrange(3), dice.randrange(3), dice.choice([0, 0.001, 1, 1e3, 1e7]))
        for n in range(length)
        if dice.random() < 0.8
    ]
    root = drawn(figures(days, length=length))
    width, height = (float(root.attrib[name]) for name in ("width", "height"))
    for element in root.iter():
        places = [
            *((element.get("x"), element.get("y")),),
            *((element.get("x1"), element.get("y1")), (element.get("x2"), element.get("y2"))),
            *(point.split(",") for point in element.get("points", "").split()),
        ]
        for x, y in places:
            if x is not None and y is not None:
                assert 0 <= float(x) <= width
                assert 0 <= float(y) <= height
