"""The figures over time as a picture: reuse rate, and how long starts took, day by day."""

from __future__ import annotations

import math
from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from session_service.domain.session import Outcome
from session_service.figures import plot
from session_service.figures.plot import Panel, Series, Tick
from session_service.figures.table import moment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date

    from session_service.domain.figures import Day, Figures

HEIGHT = 150
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: Reuses take no time, and have no line.
TIMED = [outcome for outcome in Outcome if outcome is not Outcome.REUSED]
LEGEND = "Lines: half of the day's starts took at most so long. Dashed, or a dash: 95 of 100 did."
#: Days with a label at most.
LABELS = 9
DAY = timedelta(days=1)


def svg(figures: Figures) -> str:
    """The picture, as a file."""
    span = figures.span
    whose = "all projects" if span.project_id is None else span.project_id
    title = f"Sessions of {whose}"
    spanned = f"{moment(span.start)} to {moment(span.end)}; days by UTC"
    return plot.picture(546, title, spanned, _elements(figures, title, spanned))


def _elements(figures: Figures, title: str, spanned: str) -> Iterator[str]:
    days = _days(figures)
    yield plot.text(plot.LEFT, 30, title, "head")
    yield plot.text(plot.LEFT, 48, spanned, "small")
    yield from _rates(days).draw()
    latencies = _latencies(days)
    yield from latencies.draw()
    named = [(series.colour, series.name) for series in latencies.series if not series.faint]
    if named:
        yield from plot.legend(504, named, LEGEND)


def _days(figures: Figures) -> list[tuple[date, Day | None]]:
    """Every day of the span; None for one on which nothing happened."""
    span = figures.span
    by_date = {day.start.astimezone(UTC).date(): day for day in figures.days}
    first = span.start.astimezone(UTC).date()
    last = (span.end - timedelta(microseconds=1)).astimezone(UTC).date()
    dates = [first + n * DAY for n in range((last - first).days + 1)]
    return [(each, by_date.get(each)) for each in dates]


def _x_ticks(days: Sequence[tuple[date, Day | None]]) -> list[Tick]:
    step = math.ceil(len(days) / LABELS)
    return [
        Tick(place, f"{MONTHS[each.month - 1]} {each.day}")
        for place, (each, _) in enumerate(days)
        if place % step == 0
    ]


def _rates(days: Sequence[tuple[date, Day | None]]) -> Panel:
    values = [None if day is None or not day.starts else 100 * day.reuse_rate for _, day in days]
    return Panel(
        "Reuse rate: starts that found a running container, in % of all",
        98,
        HEIGHT,
        len(days),
        lambda value: value / 100,
        [Tick(value, f"{value} %") for value in (0, 25, 50, 75, 100)],
        _x_ticks(days),
        [Series("reuse rate", 4, values)],
        "" if any(value is not None for value in values) else "no starts in this span",
    )


def _latencies(days: Sequence[tuple[date, Day | None]]) -> Panel:
    lines = [
        Series(outcome, number, values, faint=faint)
        for number, outcome in enumerate(TIMED)
        for faint in (True, False)
        if any(values := _took(days, outcome, tail=faint))
    ]
    shown = [value for series in lines for value in series.values if value is not None]
    low, high = _decades(shown)
    return Panel(
        "How long starts took, from the wish to its outcome (logarithmic)",
        308,
        HEIGHT,
        len(days),
        lambda value: (math.log10(value) - low) / (high - low),
        [Tick(10.0**n, _milliseconds(n)) for n in range(low, high + 1)],
        _x_ticks(days),
        lines,
        "" if lines else "no starts but reuses in this span",
    )


def _took(
    days: Sequence[tuple[date, Day | None]], outcome: Outcome, *, tail: bool
) -> list[float | None]:
    """In ms, by day: the median, or what 95 of 100 took at most."""
    values: list[float | None] = []
    for _, day in days:
        started = None if day is None else day.outcomes.get(outcome)
        latency = None if started is None else started.latency
        if latency is None:
            values.append(None)
        else:
            took = latency.p95 if tail else latency.p50
            values.append(max(took / timedelta(milliseconds=1), 0.1))
    return values


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around them."""
    if not values:
        return 1, 4
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def _milliseconds(power: int) -> str:
    if power >= 3:
        return f"{10 ** (power - 3)} s"
    return f"{10.0**power:g} ms"
