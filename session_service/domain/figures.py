"""The five figures of a time span, and what they are made of: pure counts, and their ratios."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain.session import AttemptResult, Outcome, Rung

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: Calls that are starts; what other methods do is in the figures of rungs and creations only.
STARTS = ("StartSession", "ResumeSession")
#: Rungs that make a container.
CREATING = frozenset({Rung.CREATE, Rung.RESTORE})
#: The longest span that is counted.
LONGEST = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Span:
    """Whose figures, from when on, and before when; `project_id` None: all of the tenant's."""

    tenant: str
    project_id: str | None
    start: datetime
    end: datetime

    @property
    def hours(self) -> float:
        """Its length."""
        return (self.end - self.start) / timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long half, 95 of 100 and 99 of 100 took at most."""

    p50: timedelta
    p95: timedelta
    p99: timedelta


@dataclass(frozen=True, slots=True)
class Started:
    """Starts with one outcome; those that reused have no latency."""

    count: int
    latency: Latency | None = None


@dataclass(slots=True)
class Tries:
    """How often a rung was tried, and how that went."""

    succeeded: int = 0
    degraded: int = 0
    failed: int = 0

    @property
    def count(self) -> int:
        """All of them."""
        return self.succeeded + self.degraded + self.failed

    def add(self, result: AttemptResult, count: int) -> None:
        """Count so many more that went so."""
        match result:
            case AttemptResult.SUCCEEDED:
                self.succeeded += count
            case AttemptResult.DEGRADED:
                self.degraded += count
            case AttemptResult.FAILED:
                self.failed += count


def made(rung: Rung, result: AttemptResult) -> bool:
    """Whether such a try made a container that came up."""
    return rung in CREATING and result is not AttemptResult.FAILED


@dataclass(slots=True)
class Day:
    """What one day of UTC, or a whole span, saw."""

    start: datetime
    outcomes: dict[Outcome, Started] = field(default_factory=dict)
    creations: int = 0

    @property
    def starts(self) -> int:
        """Starts that were answered, joins and replays apart."""
        return sum(started.count for started in self.outcomes.values())

    @property
    def reuse_rate(self) -> float:
        """The part of them that found a running container; 0 where there were none."""
        reused = self.outcomes.get(Outcome.REUSED)
        return reused.count / self.starts if reused is not None else 0.0


@dataclass(frozen=True, slots=True)
class Preferred:
    """How users chose: asked, and by a preference that they had given."""

    asked_continue: int = 0
    asked_new: int = 0
    auto_continue: int = 0
    auto_new: int = 0


@dataclass(frozen=True, slots=True)
class Current:
    """How old and how far behind things are now; `oldest` None where no session is live."""

    oldest: timedelta | None
    overaged: int
    due: int
    orphans: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All of a span."""

    span: Span
    whole: Day
    days: list[Day]
    joins: int
    replays: int
    refusals: Mapping[str, int]
    """By reason."""
    rungs: Mapping[Rung, Tries]
    ends: Mapping[str, int]
    """By reason."""
    average_lifetime: timedelta | None
    """Of those that stood; None where none ended."""
    preferred: Preferred
    current: Current

    @property
    def recovered(self) -> Tries:
        """Tries to bring back what was there, on whichever rung: a creation brings back nothing."""
        every = Tries()
        for rung, tries in self.rungs.items():
            if rung is not Rung.CREATE:
                every.succeeded += tries.succeeded
                every.degraded += tries.degraded
                every.failed += tries.failed
        return every

    @property
    def creations_per_hour(self) -> float:
        """Containers created, per hour of the span."""
        return self.whole.creations / self.span.hours
