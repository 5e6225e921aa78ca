"""Why a session is awake, and what happens next: sentences for people, of the same facts and the
same functions that the keeper goes by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service.domain import holds, keeping, schedule
from session_service.domain import policy as policies
from session_service.domain.states import State

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from session_service.domain.holds import Hold
    from session_service.domain.keeping import Habits, Step
    from session_service.domain.session import Record


@dataclass(frozen=True, slots=True)
class Explanation:
    """What keeps a session awake."""

    holds: tuple[Hold, ...]
    idle_time: datetime | None
    """When it goes idle unless something happens; None where it does not run."""
    step: Step
    reasons: tuple[str, ...]


def explain(record: Record, habits: Habits) -> Explanation:
    """What keeps the session awake, and what comes next."""
    session = record.session
    step = keeping.shown_step(record, habits)
    if session.state is not State.ACTIVE:
        why = f"The session is {session.state}: only an ACTIVE one goes idle."
        return Explanation((), None, step, (why, *_next(step)))
    found = holds.in_force(session.holds, record.now)
    idle = keeping.idle_time(session)
    return Explanation(found, idle, step, (*_awake(record, found), *_next(step), *_saved(record)))


def _awake(record: Record, found: tuple[Hold, ...]) -> tuple[str, ...]:
    session = record.session
    timeout = policies.load(session.policy).idle_timeout
    quiet = record.now - session.last_active_time
    said = f", {session.activity!r}" if session.activity else ""
    reasons = [
        f"Last active {_seconds(quiet)} ago{said}; it may be idle for {_seconds(timeout)}.",
        *(f"Hold {hold.name!r} for another {_seconds(hold.expire_time - record.now)}."
          for hold in found),
    ]  # fmt: skip
    return tuple(reasons)


def _next(step: Step) -> tuple[str, ...]:
    if step.time is None:
        return ()
    return (f"Next: {step.action}, since {step.because}.",)


def _saved(record: Record) -> tuple[str, ...]:
    """Beside what is next, and in no way of it."""
    due = schedule.due_time(record)
    if due is None:
        return ()
    every = policies.load(record.session.policy).checkpoint_every
    left = _seconds(due - record.now)
    return (
        f"Its state is saved every {_seconds(every)}, next in {left}; it goes idle all the same.",
    )


def _seconds(span: timedelta) -> str:
    return f"{max(0.0, span.total_seconds()):.0f} s"
