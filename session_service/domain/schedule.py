"""Saving the state of what runs, by the clock: when the next checkpoint is due.

Pure, of a session's record, whose times are the database's.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain.checkpoint import kind_for
from session_service.domain.states import State

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.session import Record, Session

#: What comes back after longer than the interval is left alone for so long, or for the interval
#: where that is shorter: its user is just coming.
SETTLE = timedelta(minutes=1)
#: Between a try that failed and the next: as long as all that failed took together, between these.
FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(hours=1)


def due_time(record: Record) -> datetime | None:
    """When its state is next to be saved on its schedule; None: never, as things are."""
    session = record.session
    every = policies.load(session.policy).checkpoint_every
    if not every or not _can_be_saved(record):
        return None
    since = session.checkpoint_time or session.create_time
    due = since + every
    if session.start_time is not None:
        due = max(due, session.start_time + min(every, SETTLE))
    tried = session.checkpoint_try_time
    if tried is None or tried < since:
        return due
    return max(due, tried + min(max(tried - due, FIRST_PAUSE), LONGEST_PAUSE))


def _can_be_saved(record: Record) -> bool:
    """Whether it runs, in a container that a start ended well on, and says how it is saved."""
    session, container = record.session, record.container
    if session.state is not State.ACTIVE or session.transition is not None:
        return False
    if container is None or container.start_time is None or container.destroy_time is not None:
        return False
    return container.wanted and kind_for(specs.load(session.spec)) is not None


def look_again(record: Record) -> datetime:
    """When to look at what is just being saved: no later than the next one could be due."""
    every = policies.load(record.session.policy).checkpoint_every
    return record.now + min(every, FIRST_PAUSE)


def look_after(session: Session, span: timedelta) -> timedelta:
    """The span, or how long after it came up what runs is to be saved, where that is shorter."""
    every = policies.load(session.policy).checkpoint_every
    return min(span, every, SETTLE) if every else span


def look_within(record: Record, span: timedelta) -> timedelta:
    """The span, or what is left of the time to the next checkpoint, where that is shorter."""
    due = due_time(record)
    return span if due is None else min(span, max(due - record.now, timedelta(0)))
