"""Statistics from parts: hours and days that were rolled up, and the rest, counted from its rows.

A background pass rolls finished hours and days (UTC) up (`stats.rollup`). A part whose rows have
changed since is in `late_hours` or `late_days` until it is rolled up again, and is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from session_service.domain.stats import Day, Latency, Preferred, Started, Tries, made

if TYPE_CHECKING:
    from collections.abc import Iterable

    from session_service.domain.histogram import Histogram
    from session_service.domain.session import AttemptResult, Outcome, Rung

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
_PARTS = (0.5, 0.95, 0.99)


def hour_of(time: datetime) -> datetime:
    """The start of its hour in UTC."""
    return time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def day_of(time: datetime) -> datetime:
    """The start of its day in UTC."""
    return hour_of(time).replace(hour=0)


@dataclass(frozen=True, slots=True)
class Progress:
    """What was rolled up: the hours from `start` to before `hours_end`, and the days to before
    `days_end`. All three are None before the first pass.
    """

    start: datetime | None = None
    hours_end: datetime | None = None
    days_end: datetime | None = None
    late_hours: frozenset[datetime] = frozenset()
    late_days: frozenset[datetime] = frozenset()

    def has_hour(self, hour: datetime) -> bool:
        """Whether the roll-up of the hour that begins at this time can be used."""
        return (
            self.start is not None
            and self.hours_end is not None
            and self.start <= hour < self.hours_end
            and hour not in self.late_hours
        )

    def has_day(self, day: datetime) -> bool:
        """Whether the roll-up of the day that begins at this time can be used."""
        return (
            self.start is not None
            and self.days_end is not None
            and self.start <= day < self.days_end
            and day not in self.late_days
            and not any(day <= hour < day + DAY for hour in self.late_hours)
        )


@dataclass(slots=True)
class Pieces:
    """A span in pieces: days and hours that are rolled up, and the rest."""

    days: list[datetime] = field(default_factory=list)
    hours: list[datetime] = field(default_factory=list)
    rest: list[tuple[datetime, datetime]] = field(default_factory=list)
    """Ranges from a time to before another one; in order, and no two of them meet."""


def pieces(start: datetime, end: datetime, progress: Progress) -> Pieces:
    """Divide the span into as few pieces as possible, which cover it and do not overlap."""
    found = Pieces()
    rest = []
    at = start
    while at < end:
        day, hour = day_of(at), hour_of(at)
        if at == day and at + DAY <= end and progress.has_day(day):
            found.days.append(day)
            at += DAY
        elif at == hour and at + HOUR <= end and progress.has_hour(hour):
            found.hours.append(hour)
            at += HOUR
        else:
            until = min(_next(at, hour, progress), end)
            rest.append((at, until))
            at = until
    found.rest = merged(rest)
    return found


def _next(at: datetime, hour: datetime, progress: Progress) -> datetime:
    """Where a roll-up may begin next: not before `start`, and not after what was rolled up."""
    ends = [end for end in (progress.hours_end, progress.days_end) if end is not None]
    if progress.start is None or not ends or at >= max(ends):
        return datetime.max.replace(tzinfo=UTC)
    return max(progress.start, hour + HOUR)


def merged(ranges: Iterable[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """The ranges in order. A range that begins where another one ends is joined with it."""
    found: list[tuple[datetime, datetime]] = []
    for start, end in sorted(ranges):
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


@dataclass(slots=True)
class Tally:
    """Starts with one outcome, added up from pieces.

    The percentiles of one piece are exact. Those of several are read from the sum of their
    histograms, which is within 1 %.
    """

    count: int = 0
    latency: Latency | None = None
    histogram: Histogram | None = None
    _pieces: int = 0

    def add(self, count: int, latency: Latency | None) -> None:
        """Add a piece."""
        self.count += count
        self.latency = latency
        self._pieces += 1

    def add_histogram(self, histogram: Histogram) -> None:
        """Add the histogram of a piece that was added."""
        self.histogram = histogram if self.histogram is None else self.histogram + histogram

    def started(self) -> Started:
        """The sum."""
        # A piece that was counted in parts has a histogram only.
        exact = self._pieces <= 1 and self.latency is not None
        if exact or self.histogram is None:
            return Started(self.count, self.latency)
        return Started(self.count, Latency(*self.histogram.percentiles(*_PARTS)))


@dataclass(slots=True)
class Sum:
    """The counts of one day, or of the whole span, added up from pieces."""

    outcomes: dict[Outcome, Tally] = field(default_factory=dict)
    creations: int = 0

    def of(self, outcome: Outcome) -> Tally:
        """The starts with this outcome; none at first."""
        found = self.outcomes.get(outcome)
        if found is None:
            found = self.outcomes[outcome] = Tally()
        return found

    def day(self, start: datetime) -> Day:
        """As a day, or as the span that begins then."""
        outcomes = {outcome: tally.started() for outcome, tally in self.outcomes.items()}
        return Day(start, outcomes, self.creations)


@dataclass(slots=True)
class Counted:
    """What was counted in a span, added up from pieces."""

    whole: Sum = field(default_factory=Sum)
    days: dict[datetime, Sum] = field(default_factory=dict)
    joins: int = 0
    replays: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    rungs: dict[Rung, Tries] = field(default_factory=dict)
    ends: dict[str, int] = field(default_factory=dict)
    lived: int = 0
    """Ended sessions that had become active."""
    lifetime: timedelta = timedelta(0)
    """The sum of their lifetimes."""
    choices: dict[str, int] = field(default_factory=dict)
    """By a field of `Preferred`."""

    def sums(self, day: datetime | None) -> list[Sum]:
        """Where a count of the day belongs: to it and to the whole. None: to the whole only."""
        if day is None:
            return [self.whole]
        found = self.days.get(day)
        if found is None:
            found = self.days[day] = Sum()
        return [found, self.whole]

    def add_attempts(self, day: datetime, rung: Rung, result: AttemptResult, count: int) -> None:
        """Add `count` attempts of the rung with this result."""
        self.rungs.setdefault(rung, Tries()).add(result, count)
        if made(rung, result):
            for each in self.sums(day):
                each.creations += count

    def add_ends(self, reason: str, count: int, lived: int, lifetime: timedelta) -> None:
        """Add ends with this reason."""
        self.ends[reason] = self.ends.get(reason, 0) + count
        self.lived += lived
        self.lifetime += lifetime

    @property
    def average_lifetime(self) -> timedelta | None:
        """Of those that had become active; None if there are none."""
        return self.lifetime / self.lived if self.lived else None

    @property
    def preferred(self) -> Preferred:
        """How often users continued or started fresh."""
        return Preferred(**self.choices)
