"""Statistics as a text table."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest

from session_service.domain.session import Outcome, Rung
from session_service.domain.stats import (
    Current,
    Day,
    Figures,
    Latency,
    Preferred,
    Span,
    Started,
    Tries,
)
from session_service.stats import table

START = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def milliseconds(*numbers: float) -> Latency:
    return Latency(*(timedelta(milliseconds=number) for number in numbers))


def day(number: int, reused: int = 0, created: int = 0, took: float = 100) -> Day:
    """The day that is `number` days after the first."""
    outcomes = {}
    if reused:
        outcomes[Outcome.REUSED] = Started(reused)
    if created:
        outcomes[Outcome.CREATED] = Started(created, milliseconds(took, took * 3, took * 9))
    return Day(START + number * DAY, outcomes, created)


def figures(whole: Day | None = None) -> Figures:
    """The figures of ten days."""
    return Figures(
        Span("default", "nest", START, START + 10 * DAY),
        whole or Day(START),
        days=[],
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
def test_durations_show_their_two_largest_units(span: timedelta, words: str) -> None:
    assert table.duration(span) == words


def test_the_table_shows_the_five_figures() -> None:
    """Each figure with the counts behind it."""
    total = Day(START, {Outcome.REUSED: Started(3), Outcome.CREATED: day(0, 0, 1).outcomes[
        Outcome.CREATED]}, 6)  # fmt: skip
    shown = table.text(figures(total))
    lines = {line.strip() for line in shown.splitlines()}
    assert re.search(r"reuse rate +75\.0 % +3 of 4 starts", shown)
    assert re.search(r"average session lifetime +5 h 3 min +3 sessions", shown)
    assert re.search(r"container creations +0\.03/h +6 containers started", shown)
    assert re.search(r"state recovery +75\.0 % +6 of 8 attempts", shown)
    assert re.search(r"users continue +75\.0 % +3 continued, 1 started fresh", shown)
    assert "RESUME            8          6         1       1   75.0 %" in lines
    assert "CREATED            1  100 ms  300 ms  900 ms" in lines
    assert "REUSED             3       -       -       -" in lines
    assert re.search(r"rejected +PROVIDER_CAPACITY 4", shown)
    assert re.search(
        r"now, all projects +oldest live 2 d 7 h, past lifetime 0, due 5, orphans 1", shown
    )
