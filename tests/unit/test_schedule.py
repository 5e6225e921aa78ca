"""The times of scheduled checkpoints: at the policy's interval, without delaying other steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.domain import next_action
from session_service.domain import policy as policies
from session_service.domain.next_action import Action, Timings
from session_service.domain.policy import Policy
from session_service.domain.session import Record
from session_service.domain.states import State
from session_service.reconcile import due as reconcile_due
from session_service.storage.session.change import Now
from tests.unit.test_next_action import (
    CONTAINER,
    NOW,
    SESSION,
    any_timings,
    perhaps,
    records,
    spans,
    times,
)

#: Specs whose state can be saved by a hook or as a volume, and one whose state cannot be saved.
SPECS = (
    "{}",
    '{"state_hook":{"http_path":"/state"}}',
    '{"mounts":[{"volume_id":"v","path":"/data"}]}',
)


@st.composite
def scheduled(draw: st.DrawFn, states: tuple[State, ...] = tuple(State)) -> Record:
    """A possible row, with or without a schedule, and times before and after its limits."""
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


@given(scheduled((State.ACTIVE,)), any_timings)
def test_a_checkpoint_delays_no_warning_and_no_pause(record: Record, timings: Timings) -> None:
    """A due idle step comes first, whether or not a checkpoint is due too."""
    other = next_action.step_without_schedule(record, timings)
    step = next_action.next_step(record, timings)
    if other.due(record.now):
        assert step == other
    if step.action is Action.CHECKPOINT:
        # The shown step is the next change of the session, without the checkpoint.
        assert next_action.shown_step(record, timings).action is Action.PAUSE
        assert any(
            "saved every" in reason for reason in next_action.explain(record, timings).reasons
        )
        assert step.time is not None
        assert other.time is not None
        assert step.time < other.time
    else:
        assert step == other
    # The row is due in time for the checkpoint after it becomes active or is warned.
    for change in (reconcile_due.in_use(record), reconcile_due.warning(record, timings)):
        due = change.session["due_at"]
        assert isinstance(due, Now)
        assert due.after is not None
        saving = next_action.checkpoint_due_time(record)
        assert saving is None or record.now + due.after <= max(saving, record.now)


@given(scheduled(), any_timings)
def test_only_a_running_session_with_savable_state_is_saved(
    record: Record, timings: Timings
) -> None:
    if next_action.checkpoint_due_time(record) is None:
        assert next_action.next_step(record, timings).action is not Action.CHECKPOINT
        return
    session, container = record.session, record.container
    assert (session.state, session.transition) == (State.ACTIVE, None)
    assert policies.load(session.policy).checkpoint_every
    assert session.spec != "{}"
    assert container is not None
    assert container.wanted
    assert container.destroy_time is None


@given(scheduled((State.ACTIVE,)))
def test_a_checkpoint_is_not_retried_at_once(record: Record) -> None:
    """Not within the interval after a success, nor within half a minute after a failure."""
    before = next_action.checkpoint_due_time(record)
    if before is None or before > record.now:
        return
    every = policies.load(record.session.policy).checkpoint_every
    tried = replace(record, session=replace(record.session, checkpoint_try_time=record.now))
    failed = next_action.checkpoint_due_time(tried)
    assert failed is not None
    assert next_action.FIRST_PAUSE <= failed - record.now <= next_action.LONGEST_PAUSE or (
        # An earlier checkpoint or a recent start gives a later time.
        failed == before
    )
    saved = replace(tried, session=replace(tried.session, checkpoint_time=record.now))
    assert next_action.checkpoint_due_time(saved) == max(
        record.now + every,
        (record.session.start_time or record.now) + min(every, next_action.SETTLE),
    )
    assert (
        next_action.checkpoint_reread_time(record) <= min(failed, record.now + every)
        or failed == before
    )


MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("created", "started", "saved", "tried", "due"),
    [
        # Minutes since each event, at an interval of 10; minutes until the next checkpoint is due.
        (0, 0, None, None, 10),
        (4, 4, None, None, 6),
        (60, 60, 4, None, 6),
        (60, 60, 12, None, -2),
        # It was resumed after longer than the interval: it settles first.
        (60, 0, 30, None, 1),
        (60, 0, None, None, 1),
        (60, 5, 30, None, -4),
        # After a success; after failures: half a minute, then as long as it has failed so far.
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
    assert next_action.checkpoint_due_time(Record(session, CONTAINER, NOW)) == NOW + due * MINUTE
