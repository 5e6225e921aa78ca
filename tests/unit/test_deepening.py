"""How deep a pause goes and when: a container is destroyed only if no wanted state is lost."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from uuid import UUID

import pytest

from session_service.domain import next_action
from session_service.domain import policy as policies
from session_service.domain.checkpoint import Checkpoint, CheckpointState, Kind, Place, Reason
from session_service.domain.next_action import Action, Step, Timings, holds_all
from session_service.domain.policy import Policy
from session_service.domain.session import (
    Condition,
    ConditionType,
    Continuity,
    PauseDepth,
    Record,
    dump_conditions,
)
from session_service.domain.states import State
from tests.unit.test_next_action import CONTAINER, HOOKED, ID, NOW, SESSION

HOUR = timedelta(hours=1)
FAILED = dump_conditions([Condition(ConditionType.CHECKPOINT_FAILED, "", NOW)])


def next_at_rest(depth: PauseDepth, since: timedelta, **more: object) -> tuple[Step, timedelta]:
    """The next step of a session paused for `since` at this depth, and its time counted from the
    pause. The policy stops the container after 2 h and ends the session 10 h later.
    """
    values = {"deepen_after": 2 * HOUR, "expire_after": 10 * HOUR, "checkpoint_after": HOUR}
    names = {field.name for field in fields(Policy)}
    chosen = {name: value for name, value in more.items() if name in names}
    policy = Policy(**{**values, **chosen})  # type: ignore[arg-type]  # any of its fields
    session = replace(
        SESSION,
        state=State.PAUSED,
        pause_depth=depth,
        pause_time=NOW - since,
        spec=HOOKED,
        policy=policies.dump(policy),
    )
    changes = {name: value for name, value in more.items() if name not in names}
    session = replace(session, **changes)  # type: ignore[arg-type]  # any of its fields
    step = next_action.next_step(Record(session, CONTAINER, NOW), Timings())
    assert step.time is not None
    return step, step.time - (NOW - since)


def test_a_long_paused_session_is_saved_and_its_container_destroyed() -> None:
    """Whichever duration ends first applies; each counts from the last change of depth."""
    step, after = next_at_rest(PauseDepth.SUSPENDED, HOUR / 2)
    assert (step.action, step.depth, after) == (Action.DEEPEN, PauseDepth.CHECKPOINT, HOUR)
    step, after = next_at_rest(PauseDepth.SUSPENDED, HOUR / 2, checkpoint_after=3 * HOUR)
    assert (step.action, step.depth, after) == (Action.DEEPEN, PauseDepth.STOPPED, 2 * HOUR)
    step, after = next_at_rest(PauseDepth.STOPPED, HOUR / 2, checkpoint_after=3 * HOUR)
    assert (step.action, step.depth, after) == (Action.DEEPEN, PauseDepth.CHECKPOINT, 3 * HOUR)
    step, after = next_at_rest(PauseDepth.STOPPED, HOUR / 2, checkpoint_after=10 * HOUR)
    assert (step.action, after) == (Action.EXPIRE, 10 * HOUR)
    step, after = next_at_rest(PauseDepth.CHECKPOINT, HOUR / 2)
    assert (step.action, after) == (Action.EXPIRE, 10 * HOUR)


@pytest.mark.parametrize(
    "more",
    [
        {"checkpoint_after": timedelta(0)},
        {"min_continuity": Continuity.FILESYSTEM},
        {"min_continuity": Continuity.MEMORY},
        {"spec": "{}"},
        {"spec": '{"mounts": [{"volume_id": "v", "path": "/data"}]}'},
    ],
    ids=str,
)
def test_a_container_whose_state_would_be_lost_is_kept(more: dict[str, object]) -> None:
    """The policy does not ask for it, a start may not accept less, or it cannot be saved."""
    step, after = next_at_rest(PauseDepth.SUSPENDED, HOUR / 2, **more)
    assert (step.action, step.depth, after) == (Action.DEEPEN, PauseDepth.STOPPED, 2 * HOUR)
    step, after = next_at_rest(PauseDepth.STOPPED, HOUR / 2, **more)
    assert (step.action, after) == (Action.EXPIRE, 10 * HOUR)


def test_a_session_that_cannot_be_saved_expires() -> None:
    """It ends when it would have, had it been stopped in time: never sooner, and not never."""
    step, _ = next_at_rest(PauseDepth.SUSPENDED, 11 * HOUR, conditions=FAILED)
    assert step.action is Action.DEEPEN
    step, after = next_at_rest(PauseDepth.SUSPENDED, 13 * HOUR, conditions=FAILED)
    assert (step.action, after) == (Action.EXPIRE, 12 * HOUR)
    step, _ = next_at_rest(PauseDepth.SUSPENDED, 13 * HOUR)
    assert step.action is Action.DEEPEN, "saving it was not tried yet"
    step, after = next_at_rest(PauseDepth.STOPPED, 11 * HOUR, conditions=FAILED)
    assert (step.action, after) == (Action.EXPIRE, 10 * HOUR)


HEAD = Checkpoint(
    checkpoint_id=UUID(int=9),
    tenant="default",
    project_id="nest",
    user_id="wren",
    slot="default",
    number=1,
    session_id=ID,
    generation=1,
    parent_id=None,
    kind=Kind.APPLICATION,
    state=CheckpointState.READY,
    reason=Reason.IDLE,
    label="",
    pinned=False,
    app="a",
    spec=HOOKED,
    fingerprint="",
    size_bytes=1,
    stored_bytes=1,
    sha256=b"",
    place=Place.DATABASE,
    object=None,
    failure=None,
    decision_id=None,
    lease_until=None,
    create_time=NOW,
    ready_time=NOW,
)
BOOT = NOW - HOUR
SAVED = replace(CONTAINER, saved_checkpoint_id=HEAD.checkpoint_id, saved_start_time=BOOT)


def test_a_container_that_did_not_run_since_its_save_is_not_started() -> None:
    assert holds_all(HEAD, SESSION, SAVED, BOOT)


def test_any_doubt_makes_it_be_saved_again() -> None:
    """One condition at a time does not hold or is not known."""
    second = timedelta(seconds=1)
    assert not holds_all(None, SESSION, SAVED, BOOT)
    assert not holds_all(HEAD, SESSION, SAVED, BOOT + second), "it ran since"
    assert not holds_all(HEAD, SESSION, SAVED, None), "whether it ran is not known"
    assert not holds_all(HEAD, SESSION, replace(SAVED, saved_start_time=None), None)
    touched = replace(SESSION, last_active_time=NOW + second)
    assert not holds_all(HEAD, touched, SAVED, BOOT), "it had activity since"
    other = replace(HEAD, checkpoint_id=UUID(int=10))
    assert not holds_all(other, SESSION, SAVED, BOOT), "the session has another head by now"
    failed = replace(HEAD, state=CheckpointState.FAILED)
    assert not holds_all(failed, SESSION, SAVED, BOOT)
    assert not holds_all(replace(HEAD, kind=Kind.VOLUME), SESSION, SAVED, BOOT)
