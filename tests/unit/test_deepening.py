"""How deep a rest goes, and when: saved and destroyed only where nothing is lost that is wanted."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from uuid import UUID

import pytest

from session_service.domain import conditions, keeping
from session_service.domain import policy as policies
from session_service.domain.checkpoint import Checkpoint, CheckpointState, Kind, Place, Reason
from session_service.domain.deepening import holds_all
from session_service.domain.keeping import Action, Habits, Step
from session_service.domain.policy import Policy
from session_service.domain.session import (
    Condition,
    ConditionType,
    Continuity,
    PauseDepth,
    Record,
)
from session_service.domain.states import State
from tests.unit.test_keeping import CONTAINER, HOOKED, ID, NOW, SESSION

HOUR = timedelta(hours=1)
FAILED = conditions.dump([Condition(ConditionType.CHECKPOINT_FAILED, "", NOW)])


def next_at_rest(depth: PauseDepth, since: timedelta, **more: object) -> tuple[Step, timedelta]:
    """What is next for what rests so deep since so long ago, and when from then on; it is stopped
    after 2 h, ended 10 h later.
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
    rest = {name: value for name, value in more.items() if name not in names}
    session = replace(session, **rest)  # type: ignore[arg-type]  # any of its fields
    step = keeping.next_step(Record(session, CONTAINER, NOW), Habits())
    assert step.time is not None
    return step, step.time - (NOW - since)


def test_what_rests_for_long_is_saved_and_its_container_destroyed() -> None:
    """By whichever span is over first; the time of each counts from the last rest on."""
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
def test_what_would_be_lost_keeps_its_container(more: dict[str, object]) -> None:
    """Nobody asked for it; less than any start may come back with; nothing to save it by."""
    step, after = next_at_rest(PauseDepth.SUSPENDED, HOUR / 2, **more)
    assert (step.action, step.depth, after) == (Action.DEEPEN, PauseDepth.STOPPED, 2 * HOUR)
    step, after = next_at_rest(PauseDepth.STOPPED, HOUR / 2, **more)
    assert (step.action, after) == (Action.EXPIRE, 10 * HOUR)


def test_what_cannot_be_saved_ends_when_nobody_came_back_for_it() -> None:
    """When it would have, had it been stopped in time: never sooner, and not never."""
    step, _ = next_at_rest(PauseDepth.SUSPENDED, 11 * HOUR, conditions=FAILED)
    assert step.action is Action.DEEPEN
    step, after = next_at_rest(PauseDepth.SUSPENDED, 13 * HOUR, conditions=FAILED)
    assert (step.action, after) == (Action.EXPIRE, 12 * HOUR)
    step, _ = next_at_rest(PauseDepth.SUSPENDED, 13 * HOUR)
    assert step.action is Action.DEEPEN, "it was not tried"
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
    upload=None,
    failure=None,
    decision_id=None,
    lease_until=None,
    create_time=NOW,
    ready_time=NOW,
)
BOOT = NOW - HOUR
SAVED = replace(CONTAINER, saved_checkpoint_id=HEAD.checkpoint_id, saved_start_time=BOOT)


def test_what_was_saved_and_did_not_run_since_need_not_be_woken() -> None:
    assert holds_all(HEAD, SESSION, SAVED, BOOT)


def test_any_doubt_has_it_saved_once_more() -> None:
    """Whatever of it is not so, or not known."""
    second = timedelta(seconds=1)
    assert not holds_all(None, SESSION, SAVED, BOOT)
    assert not holds_all(HEAD, SESSION, SAVED, BOOT + second), "it ran since"
    assert not holds_all(HEAD, SESSION, SAVED, None), "whether it ran is not known"
    assert not holds_all(HEAD, SESSION, replace(SAVED, saved_start_time=None), None)
    touched = replace(SESSION, last_active_time=NOW + second)
    assert not holds_all(HEAD, touched, SAVED, BOOT), "somebody came since"
    other = replace(HEAD, checkpoint_id=UUID(int=10))
    assert not holds_all(other, SESSION, SAVED, BOOT), "it descends from another by now"
    failed = replace(HEAD, state=CheckpointState.FAILED)
    assert not holds_all(failed, SESSION, SAVED, BOOT)
    assert not holds_all(replace(HEAD, kind=Kind.VOLUME), SESSION, SAVED, BOOT)
