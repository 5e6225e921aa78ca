"""The figures as a table, for people."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from session_service.domain.session import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from session_service.domain.figures import Figures, Started

_LABEL = 27
_SECONDS = ((86_400, "d"), (3600, "h"), (60, "min"))


def text(figures: Figures) -> str:
    """All of it, in lines."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    span = figures.span
    whose = "all projects" if span.project_id is None else f"project {span.project_id}"
    yield f"{whose}, {moment(span.start)} to {moment(span.end)}"
    yield ""
    yield from _five(figures)
    for rows in (_recovery(figures), _outcomes(figures.whole.outcomes)):
        if len(rows) > 1:
            yield ""
            yield from _columns(rows)
    yield ""
    counted = {"joined": figures.joins, "replayed": figures.replays}
    yield _labelled("starts besides those", _listed(counted.items()))
    yield _labelled("refused", _listed(figures.refusals.items()) or "none")
    yield _labelled("ended", _listed(figures.ends.items()) or "none")
    now = figures.current
    oldest = "no live session" if now.oldest is None else f"oldest live {duration(now.oldest)}"
    counted = {"past lifetime": now.overaged, "due": now.due, "orphans": now.orphans}
    yield _labelled("now, everywhere", f"{oldest}, {_listed(counted.items())}")


def _five(figures: Figures) -> Iterator[str]:
    whole, preferred = figures.whole, figures.preferred
    reused = whole.outcomes.get(Outcome.REUSED)
    found = 0 if reused is None else reused.count
    yield _figure(
        "reuse rate",
        _part(found, whole.starts),
        f"{found} of {whole.starts} starts found a running container",
    )
    average = figures.average_lifetime
    yield _figure(
        "average session lifetime",
        "-" if average is None else duration(average),
        f"{sum(figures.ends.values())} sessions ended",
    )
    yield _figure(
        "container creations",
        f"{figures.creations_per_hour:.2f}/h",
        f"{whole.creations} came up",
    )
    tries = figures.recovered
    yield _figure(
        "state recovery",
        _part(tries.succeeded, tries.count),
        f"{tries.succeeded} of {tries.count} tries brought back all that the rung could",
    )
    asked = preferred.asked_continue + preferred.asked_new
    yield _figure(
        "users continue",
        _part(preferred.asked_continue, asked),
        f"{preferred.asked_continue} continued, {preferred.asked_new} began anew; by a kept "
        f"preference {preferred.auto_continue} and {preferred.auto_new}",
    )


def _recovery(figures: Figures) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("rung", "tried", "succeeded", "degraded", "failed", "rate")]
    rows += [
        (
            str(rung),
            *(str(n) for n in (tried.count, tried.succeeded, tried.degraded, tried.failed)),
            _part(tried.succeeded, tried.count),
        )
        for rung, tried in figures.rungs.items()
    ]
    return rows


def _outcomes(outcomes: dict[Outcome, Started]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("outcome", "starts", "p50", "p95", "p99")]
    for outcome in Outcome:
        started = outcomes.get(outcome)
        if started is None:
            continue
        latency = started.latency
        told = (latency.p50, latency.p95, latency.p99) if latency is not None else ()
        cells = tuple(duration(each) for each in told) or ("-", "-", "-")
        rows.append((str(outcome), str(started.count), *cells))
    return rows


def _figure(label: str, value: str, more: str) -> str:
    return f"{label:<{_LABEL}}{value:>10}   {more}"


def _labelled(label: str, value: str) -> str:
    return f"{label:<{_LABEL}}{value}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width + 2) for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first.ljust(max(widths[0], 12))}{''.join(cells)}"


def _part(count: int, whole: int) -> str:
    return f"{100 * count / whole:.1f} %" if whole else "-"


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts)


def moment(time: datetime) -> str:
    """A time, by UTC, to the minute."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def duration(span: timedelta) -> str:
    """A span by its two largest units: 41 ms, 2.4 s, 3 min 5 s, 5 h 3 min, 2 d 7 h."""
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    left = round(seconds)
    for position, (size, unit) in enumerate(_SECONDS):
        if left >= size:
            smaller, name = (*_SECONDS, (1, "s"))[position + 1]
            rest = left % size // smaller
            return f"{left // size} {unit}" + (f" {rest} {name}" if rest else "")
    raise AssertionError("a minute is the smallest of them")
