"""When state is saved on a schedule: as often as the policy says, and in the way of nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.domain import idleness, keeping, schedule
from session_service.domain import policy as policies
from session_service.domain.keeping import Action, Habits
from session_service.domain.policy import Policy
from session_service.domain.session import Record
from session_service.domain.states import State
from session_service.lifecycle import own_steps
from session_service.storage.assignments import Now
from tests.unit.test_keeping import CONTAINER, NOW, SESSION, habits, perhaps, records, spans, times

#: Of containers whose state can be saved, by a hook or as a volume, or cannot be.
SPECS = (
    "{}",
    '{"state_hook":{"http_path":"/state"}}',
    '{"mounts":[{"volume_id":"v","path":"/data"}]}',
)


@st.composite
def scheduled(draw: st.DrawFn, states: tuple[State, ...] = tuple(State)) -> Record:
    """A row such as there may be, with a schedule or without, and times on either side of it."""
    record = draw(records(states))
    policy = policies.load(record.session.policy)
    session = replace(
        record.session,
        policy=policies.dump(replace(policy, checkpoint_every=draw(st.just(timedelta(0)) | spans))),
        spec=draw(st.sampled_from(SPECS)),
        create_time=draw(times),
        start_time=draw(perhaps),
        checkpoint_time=draw(perhaps),
        checkpoint_try_time=draw(perhaps),
    )
    return replace(record, session=session)


@given(scheduled((State.ACTIVE,)), habits)
def test_a_checkpoint_makes_no_warning_and_no_pause_later(record: Record, ways: Habits) -> None:
    """What is due of idleness is what comes, whether or not something is to be saved."""
    other = keeping.but_saving(record, ways)
    step = keeping.next_step(record, ways)
    if other.due(record.now):
        assert step == other
    if step.action is Action.CHECKPOINT:
        # What is shown is what becomes of the session, as if nothing were saved.
        assert keeping.shown_step(record, ways).action is Action.PAUSE
        assert any("saved every" in reason for reason in idleness.explain(record, ways).reasons)
        assert step.time is not None
        assert other.time is not None
        assert step.time < other.time
    else:
        assert step == other
    # Nor is who wrote it down to be waited for: it is looked at in time for both.
    for change in (own_steps.awake(record), own_steps.warning(record, ways)):
        due = change.session["due_at"]
        assert isinstance(due, Now)
        assert due.after is not None
        saving = schedule.due_time(record)
        assert saving is None or record.now + due.after <= max(saving, record.now)


@given(scheduled(), habits)
def test_nothing_is_saved_on_a_schedule_that_does_not_run_or_cannot_be(
    record: Record, ways: Habits
) -> None:
    if schedule.due_time(record) is None:
        assert keeping.next_step(record, ways).action is not Action.CHECKPOINT
        return
    session, container = record.session, record.container
    assert (session.state, session.transition) == (State.ACTIVE, None)
    assert policies.load(session.policy).checkpoint_every
    assert session.spec != "{}"
    assert container is not None
    assert container.wanted
    assert container.destroy_time is None


@given(scheduled((State.ACTIVE,)))
def test_what_is_tried_now_is_not_tried_at_once_again(record: Record) -> None:
    """Whatever comes of it: within the interval, or half a minute where it fails."""
    before = schedule.due_time(record)
    if before is None or before > record.now:
        return
    every = policies.load(record.session.policy).checkpoint_every
    tried = replace(record, session=replace(record.session, checkpoint_try_time=record.now))
    failed = schedule.due_time(tried)
    assert failed is not None
    assert schedule.FIRST_PAUSE <= failed - record.now <= schedule.LONGEST_PAUSE or (
        # A later time that an earlier checkpoint says, or a start that has just come up.
        failed == before
    )
    saved = replace(tried, session=replace(tried.session, checkpoint_time=record.now))
    assert schedule.due_time(saved) == max(
        record.now + every,
        (record.session.start_time or record.now) + min(every, schedule.SETTLE),
    )
    assert schedule.look_again(record) <= min(failed, record.now + every) or failed == before


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("created", "started", "saved", "tried", "due"),
    [
        # Minutes ago, at an interval of 10; in how many minutes the next is due.
        (0, 0, None, None, 10),
        (4, 4, None, None, 6),
        (60, 60, 4, None, 6),
        (60, 60, 12, None, -2),
        # It came back after longer than the interval: it settles first.
        (60, 0, 30, None, 1),
        (60, 0, None, None, 1),
        (60, 5, 30, None, -4),
        # Tried and saved; tried and failed: half a minute, and then as long as it has failed.
        (60, 60, 4, 5, 6),
        (60, 60, 10, 0, 0.5),
        (60, 60, 14, 0, 4),
        (60, 60, 14, 3, 0 - 3 + 1),
        (6000, 6000, 600, 0, 60),
    ],
)
def test_when_the_next_checkpoint_is_due(
    created: int, started: int, saved: int | None, tried: int | None, due: float
) -> None:
    def ago(minutes: int | None) -> datetime | None:
        return None if minutes is None else NOW - minutes * MINUTE

    session = replace(
        SESSION,
        policy=policies.dump(Policy(checkpoint_every=10 * MINUTE)),
        spec=SPECS[1],
        create_time=NOW - created * MINUTE,
        start_time=ago(started),
        checkpoint_time=ago(saved),
        checkpoint_try_time=ago(tried),
    )
    assert schedule.due_time(Record(session, CONTAINER, NOW)) == NOW + due * MINUTE
