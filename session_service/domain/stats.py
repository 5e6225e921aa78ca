"""The statistics of a time span: counts, and ratios of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain.session import AttemptResult, Outcome, Rung

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

#: Methods that count as starts. Others count only in the attempts by rung and the creations.
STARTS = ("StartSession", "ResumeSession")
#: Rungs that create a container.
CREATING = frozenset({Rung.CREATE, Rung.RESTORE})
#: What stands for the id of a project in the roll-ups of all projects. No project has this id.
ALL_PROJECTS = ""
#: The longest span that one request may ask for.
LONGEST = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Span:
    """The time from `start` to before `end`, for a tenant. `project_id` None: all projects."""

    tenant: str
    project_id: str | None
    start: datetime
    end: datetime

    @property
    def hours(self) -> float:
        """Its length in hours."""
        return (self.end - self.start) / timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of a duration."""

    p50: timedelta
    p95: timedelta
    p99: timedelta


@dataclass(frozen=True, slots=True)
class Started:
    """Starts with one outcome. Reuses have no latency."""

    count: int
    latency: Latency | None = None


@dataclass(slots=True)
class Tries:
    """Attempts of one rung, by result."""

    succeeded: int = 0
    degraded: int = 0
    failed: int = 0

    @property
    def count(self) -> int:
        """The number of attempts, whatever their result."""
        return self.succeeded + self.degraded + self.failed

    def add(self, result: AttemptResult, count: int) -> None:
        """Add `count` attempts with this result."""
        match result:
            case AttemptResult.SUCCEEDED:
                self.succeeded += count
            case AttemptResult.DEGRADED:
                self.degraded += count
            case AttemptResult.FAILED:
                self.failed += count


def made(rung: Rung, result: AttemptResult) -> bool:
    """Whether an attempt of this rung, with this result, created a container that started."""
    return rung in CREATING and result is not AttemptResult.FAILED


@dataclass(slots=True)
class Day:
    """The counts of one day in UTC, or of a whole span."""

    start: datetime
    outcomes: dict[Outcome, Started] = field(default_factory=dict)
    creations: int = 0

    @property
    def starts(self) -> int:
        """The number of starts that were answered, without joins and replays."""
        return sum(started.count for started in self.outcomes.values())

    @property
    def reuse_rate(self) -> float:
        """The share of starts that found a running container; 0 without starts."""
        reused = self.outcomes.get(Outcome.REUSED)
        return reused.count / self.starts if reused is not None else 0.0


@dataclass(frozen=True, slots=True)
class Preferred:
    """How often users continued or started fresh: when asked, and by a saved preference."""

    asked_continue: int = 0
    asked_new: int = 0
    auto_continue: int = 0
    auto_new: int = 0


@dataclass(frozen=True, slots=True)
class Current:
    """The installation's gauges at present; `oldest` is None if no session is live."""

    oldest: timedelta | None
    overaged: int
    due: int
    orphans: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All statistics of a span."""

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
    """The average for ended sessions that had become ACTIVE; None if there are none."""
    preferred: Preferred
    current: Current

    @property
    def recovered(self) -> Tries:
        """Attempts of all rungs but CREATE: those that could bring state back."""
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
