"""Statistics as a text table."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import TYPE_CHECKING

from session_service.domain.session import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from session_service.domain.stats import Figures, Started

_LABEL = 27
_SECONDS = ((86_400, "d"), (3600, "h"), (60, "min"))


def text(figures: Figures) -> str:
    """The table, as lines of text."""
    return "\n".join(_lines(figures)) + "\n"


def _lines(figures: Figures) -> Iterator[str]:
    span = figures.span
    scope = "all projects" if span.project_id is None else f"project {span.project_id}"
    yield f"{scope}, {moment(span.start)} to {moment(span.end)}"
    yield ""
    yield from _main_figures(figures)
    for rows in (_recovery(figures), _outcomes(figures.whole.outcomes)):
        if len(rows) > 1:
            yield ""
            yield from _columns(rows)
    yield ""
    counted = {"joined": figures.joins, "replayed": figures.replays}
    yield _labelled("not counted as starts", _joined(counted.items()))
    yield _labelled("rejected", _joined(figures.refusals.items()) or "none")
    yield _labelled("ended", _joined(figures.ends.items()) or "none")
    now = figures.current
    oldest = "no live session" if now.oldest is None else f"oldest live {duration(now.oldest)}"
    counted = {"past lifetime": now.overaged, "due": now.due, "orphans": now.orphans}
    yield _labelled("now, all projects", f"{oldest}, {_joined(counted.items())}")


def _main_figures(figures: Figures) -> Iterator[str]:
    whole, preferred = figures.whole, figures.preferred
    reused = whole.outcomes.get(Outcome.REUSED)
    reuses = 0 if reused is None else reused.count
    yield _figure(
        "reuse rate",
        _percentage(reuses, whole.starts),
        f"{reuses} of {whole.starts} starts found a running container",
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
        f"{whole.creations} containers started",
    )
    attempts = figures.recovered
    yield _figure(
        "state recovery",
        _percentage(attempts.succeeded, attempts.count),
        f"{attempts.succeeded} of {attempts.count} attempts restored all that their rung can",
    )
    asked = preferred.asked_continue + preferred.asked_new
    yield _figure(
        "users continue",
        _percentage(preferred.asked_continue, asked),
        f"{preferred.asked_continue} continued, {preferred.asked_new} started fresh; by a saved "
        f"preference {preferred.auto_continue} and {preferred.auto_new}",
    )


def _recovery(figures: Figures) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("rung", "tried", "succeeded", "degraded", "failed", "rate")]
    rows += [
        (
            str(rung),
            *(str(n) for n in (tried.count, tried.succeeded, tried.degraded, tried.failed)),
            _percentage(tried.succeeded, tried.count),
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
        percentiles = (latency.p50, latency.p95, latency.p99) if latency is not None else ()
        cells = tuple(duration(each) for each in percentiles) or ("-", "-", "-")
        rows.append((str(outcome), str(started.count), *cells))
    return rows


def _figure(label: str, value: str, more: str) -> str:
    return f"{label:<{_LABEL}}{value:>10}   {more}"


def _labelled(label: str, value: str) -> str:
    return f"{label:<{_LABEL}}{value}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The rows with the first column aligned left, and the others right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = (cell.rjust(width + 2) for cell, width in zip(others, widths[1:], strict=True))
        yield f"{first.ljust(max(widths[0], 12))}{''.join(cells)}"


def _percentage(count: int, whole: int) -> str:
    return f"{100 * count / whole:.1f} %" if whole else "-"


def _joined(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts)


def moment(time: datetime) -> str:
    """A time in UTC, to the minute."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def duration(span: timedelta) -> str:
    """A duration in its two largest units: 41 ms, 2.4 s, 3 min 5 s, 5 h 3 min, 2 d 7 h."""
    seconds = span.total_seconds()
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    left = round(seconds)
    for position, (size, unit) in enumerate(_SECONDS):
        if left >= size:
            smaller, name = (*_SECONDS, (1, "s"))[position + 1]
            remainder = left % size // smaller
            return f"{left // size} {unit}" + (f" {remainder} {name}" if remainder else "")
    raise AssertionError("a minute is the smallest unit in _SECONDS")
