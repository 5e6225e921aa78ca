"""Comparing the provider's listing with the rows: pure judgements, one container at a time.

A listing is of the past: what changed since it began, or so shortly before that reads may lag
behind, is not judged by it. What is judged is proved anew before anything is lost by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from session_service.domain.session import ContainerState, PauseDepth
from session_service.domain.states import State

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime, timedelta
    from uuid import UUID


@dataclass(frozen=True, slots=True)
class Tracked:
    """A container's row, as far as a listing can say something about it."""

    session_id: UUID
    generation: int
    epoch: int
    app: str
    container_id: str
    state: State
    in_flight: bool
    current: bool
    """Whether it is the session's newest generation."""
    wanted: bool
    pause_depth: PauseDepth | None
    boot_time: datetime | None
    verified_at: datetime | None
    change_time: datetime
    create_time: datetime
    cordoned: bool
    """Whether it was taken out of routing, so that no traffic reaches it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A container as the listing has it."""

    container_id: str
    state: ContainerState
    last_start_time: datetime | None
    create_time: datetime | None
    labels: Mapping[str, str]


class Verdict(StrEnum):
    """What a listing says of a container that has a row."""

    NOTHING = "NOTHING"
    VERIFIED = "VERIFIED"
    """It runs, on the boot that was proved, and that was not noted for long."""
    RESTARTED = "RESTARTED"
    """It runs, and started anew since it was proved: the next start is to look."""
    FELL = "FELL"
    """It should run, and is at rest."""
    SANK = "SANK"
    """It should be suspended, and is stopped: its memory is gone."""
    WOKE = "WOKE"
    """It should be at rest, and runs."""
    STRAYED = "STRAYED"
    """It should be at rest and runs, out of routing: no traffic woke it, and none reaches it."""
    WOKE_ENDED = "WOKE_ENDED"
    """Its session is over, and it runs."""
    MISSING = "MISSING"
    """It is not there. Not yet proof that it is lost."""


#: At rest for certain; anything else that is not running is in the provider's hands.
RESTING = frozenset({ContainerState.SUSPENDED, ContainerState.STOPPED, ContainerState.FAILED})


def judge(
    row: Tracked, listed: Listed | None, began: datetime, lag: timedelta, verify_after: timedelta
) -> Verdict:
    """What a listing begun at `began` says of this row; `lag` is how far reads may be behind.

    A container that was seen running is noted as verified again once in `verify_after`.
    """
    too_new = max(row.change_time, row.create_time) + lag >= began
    if too_new or row.in_flight or not row.current or not row.wanted:
        return Verdict.NOTHING
    if listed is None or listed.state is ContainerState.DESTROYED:
        return Verdict.MISSING
    match row.state:
        case State.ACTIVE:
            return _active(row, listed, began, verify_after)
        case State.PAUSED if listed.state is ContainerState.STARTED:
            return Verdict.STRAYED if row.cordoned else Verdict.WOKE
        case State.PAUSED:
            stopped = listed.state in (ContainerState.STOPPED, ContainerState.FAILED)
            sank = stopped and row.pause_depth is PauseDepth.SUSPENDED
            return Verdict.SANK if sank else Verdict.NOTHING
        case State.ENDED if listed.state is ContainerState.STARTED:
            return Verdict.WOKE_ENDED
        case _:
            return Verdict.NOTHING


def _active(row: Tracked, listed: Listed, began: datetime, verify_after: timedelta) -> Verdict:
    if listed.state in RESTING:
        return Verdict.FELL
    if listed.state is not ContainerState.STARTED:
        return Verdict.NOTHING
    if row.boot_time is None or listed.last_start_time is None:
        # No start is known to compare with, or none is told.
        return Verdict.NOTHING
    if listed.last_start_time != row.boot_time:
        return Verdict.NOTHING if row.verified_at is None else Verdict.RESTARTED
    noted = row.verified_at is not None and row.verified_at + verify_after > began
    return Verdict.NOTHING if noted else Verdict.VERIFIED


class Standing(StrEnum):
    """What the rows say of a container that carries this installation's labels."""

    KNOWN = "KNOWN"
    """It has a row, or one that may yet adopt it, or one that changed too lately to tell."""
    FOUND = "FOUND"
    """It was taken for lost, and its session has no other since: it may be taken back."""
    ORPHAN = "ORPHAN"
    """No session has it."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """The row of the session and generation that a container's labels name."""

    session_id: UUID
    generation: int
    container_id: str | None
    destroyed: bool
    current: bool
    state: State
    in_flight: bool
    change_time: datetime
    """When the session, or this container's row, last changed."""


def standing(
    listed: Listed, row: Labelled | None, began: datetime, lag: timedelta
) -> tuple[Standing, str]:
    """Whether somebody has a container that a listing begun at `began` showed, and why.

    `row` is that of its labels, None where there is none. What a row says that changed since, or
    so shortly before that reads may lag behind, may be newer than what the listing shows.
    """
    if row is None:
        return Standing.ORPHAN, "no session has it"
    if row.change_time + lag >= began:
        return Standing.KNOWN, "its session changed too lately"
    if row.container_id not in (None, listed.container_id):
        return Standing.ORPHAN, "its session's container is another"
    if not row.destroyed:
        return Standing.KNOWN, "a session has it, or may yet adopt it"
    if row.current and row.in_flight:
        return Standing.KNOWN, "its session is on its way somewhere"
    if row.current and row.state is State.PAUSED and row.container_id is not None:
        return Standing.FOUND, "it was taken for lost"
    return Standing.ORPHAN, "its session has given it up"


@dataclass(frozen=True, slots=True)
class Caution:
    """How sure the sweeper must be, and how much it may do."""

    min_age: timedelta
    """A younger container may be somebody's who has not written it down yet."""
    passes: int
    """It must be seen as an orphan in so many passes running."""
    limit: int
    """So many are destroyed in one pass, at most."""
    breaker: int
    """More at once than this are a mistake somewhere: none is destroyed."""


def old_enough(listed: Listed, now: datetime, caution: Caution) -> bool:
    """Whether an orphan is old enough to be counted; one of unknown age never is."""
    return listed.create_time is not None and listed.create_time + caution.min_age <= now


def spared_because(counts: Mapping[str, int], caution: Caution) -> dict[str, str]:
    """Why orphans are not destroyed now, given in how many passes running each was seen. Those that
    are not in it are to be destroyed.
    """
    if len(counts) > caution.breaker:
        told = f"{len(counts)} orphans at once are too many to be true"
        return dict.fromkeys(counts, told)
    spared = {
        name: f"seen in {count} of {caution.passes} passes running"
        for name, count in counts.items()
        if count < caution.passes
    }
    sure = sorted(name for name in counts if name not in spared)
    told = f"a pass destroys {caution.limit} at most"
    return spared | dict.fromkeys(sure[caution.limit :], told)
