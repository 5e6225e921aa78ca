"""Comparing the provider's listing with the rows: pure verdicts, one container at a time.

A listing shows the past, and the provider's reads lag behind its changes. So a listing proves
nothing about a row that changed after the listing began, or that changed less than the lag before
the listing began. Before a loss is recorded, a separate read of the container has to confirm it.
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
    """A container's row: the columns that a listing is compared with."""

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
    """Whether it was taken out of routing: no traffic reaches it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A container as the listing shows it."""

    container_id: str
    state: ContainerState
    last_start_time: datetime | None
    create_time: datetime | None
    labels: Mapping[str, str]


class Verdict(StrEnum):
    """The result of comparing a container's row with a listing."""

    NOTHING = "NOTHING"
    VERIFIED = "VERIFIED"
    """It runs on the boot that was proved, and no observation was recorded for a time."""
    RESTARTED = "RESTARTED"
    """It runs, and has started again since its boot was proved: the next start probes it."""
    FELL = "FELL"
    """It should run, and is suspended, stopped or failed."""
    SANK = "SANK"
    """It should be suspended, and is stopped: its memory is gone."""
    WOKE = "WOKE"
    """It should be paused, and runs."""
    STRAYED = "STRAYED"
    """It should be paused, and runs out of routing: no traffic woke it, and none reaches it."""
    WOKE_ENDED = "WOKE_ENDED"
    """Its session has ended, and it runs."""
    MISSING = "MISSING"
    """The listing does not have it, which does not prove that it is lost."""


#: The states in which a container certainly does not run. In every other state except STARTED, the
#: provider is changing it.
NOT_RUNNING = frozenset({ContainerState.SUSPENDED, ContainerState.STOPPED, ContainerState.FAILED})


def judge(
    row: Tracked, listed: Listed | None, began: datetime, lag: timedelta, verify_after: timedelta
) -> Verdict:
    """Compare this row with a listing that began at `began`.

    `lag`: how far the provider's reads may be behind. `verify_after`: the verdict VERIFIED is given
    only if the last recorded observation of the container is at least this old.
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
    if listed.state in NOT_RUNNING:
        return Verdict.FELL
    if listed.state is not ContainerState.STARTED:
        return Verdict.NOTHING
    if row.boot_time is None or listed.last_start_time is None:
        # No boot was proved, or the listing shows no start event: there is nothing to compare.
        return Verdict.NOTHING
    if listed.last_start_time != row.boot_time:
        return Verdict.NOTHING if row.verified_at is None else Verdict.RESTARTED
    recent = row.verified_at is not None and row.verified_at + verify_after > began
    return Verdict.NOTHING if recent else Verdict.VERIFIED


class LabelVerdict(StrEnum):
    """What the rows say about a container that has this installation's labels."""

    KNOWN = "KNOWN"
    """A session has it, or may still record its id, or has changed so recently that the listing may
    be older than the change."""
    FOUND = "FOUND"
    """It was recorded as lost, and nothing replaced it: its session may have it back."""
    ORPHAN = "ORPHAN"
    """It belongs to no session."""


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
    started: bool
    """Whether a start succeeded on this container."""
    change_time: datetime
    """When the session, or this container's row, last changed."""


def judge_labelled(
    listed: Listed, row: Labelled | None, began: datetime, lag: timedelta
) -> tuple[LabelVerdict, str]:
    """Whether a container of a listing that began at `began` belongs to a session, and why.

    `row`: the row that its labels name, or None. A row that changed after the listing began, or
    less than `lag` before that, may be newer than the listing: the container then counts as KNOWN.
    """
    if row is None:
        return LabelVerdict.ORPHAN, "no session has it"
    if row.change_time + lag >= began:
        return LabelVerdict.KNOWN, "its session changed too recently"
    if row.container_id not in (None, listed.container_id):
        return LabelVerdict.ORPHAN, "its session has another container"
    if not row.destroyed:
        given_up = row.container_id is None and row.state is State.PAUSED and not row.in_flight
        if given_up and row.current and not row.started:
            # Its create was in doubt, and the start went back to the paused session. It holds no
            # state, and nothing else looks at it before the next start, which creates another.
            return LabelVerdict.ORPHAN, "its start was given up before it was recorded"
        return LabelVerdict.KNOWN, "a session has it, or may still record it"
    if row.current and row.in_flight:
        return LabelVerdict.KNOWN, "its session has a transition in flight"
    if row.current and row.state is State.PAUSED and row.container_id is not None:
        return LabelVerdict.FOUND, "it was recorded as lost"
    return LabelVerdict.ORPHAN, "its session does not want it any more"


@dataclass(frozen=True, slots=True)
class Caution:
    """The limits of the inventory pass: how sure it must be, and how much it may destroy."""

    min_age: timedelta
    """A younger container may belong to a transition that has not recorded it yet."""
    passes: int
    """It must be seen as an orphan in this many consecutive passes."""
    limit: int
    """One pass destroys at most this many."""
    breaker: int
    """If there are more orphans than this at once, something is wrong, and none is destroyed."""


def old_enough(listed: Listed, now: datetime, caution: Caution) -> bool:
    """Whether an orphan is old enough to count; one of unknown age never is."""
    return listed.create_time is not None and listed.create_time + caution.min_age <= now


def spared_because(counts: Mapping[str, int], caution: Caution) -> dict[str, str]:
    """Why orphans are not destroyed now, by name. Orphans that are not in the result are destroyed.

    `counts`: in how many consecutive passes each orphan was seen.
    """
    if len(counts) > caution.breaker:
        reason = f"{len(counts)} orphans at once are more than the limit of {caution.breaker}"
        return dict.fromkeys(counts, reason)
    spared = {
        name: f"seen in {count} of {caution.passes} consecutive passes"
        for name, count in counts.items()
        if count < caution.passes
    }
    sure = sorted(name for name in counts if name not in spared)
    reason = f"a pass destroys at most {caution.limit}"
    return spared | dict.fromkeys(sure[caution.limit :], reason)
