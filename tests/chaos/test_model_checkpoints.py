"""The judges of checkpoints by themselves can fail, as those of what they bring back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.audit import read
from tests.chaos.test_model import A
from tests.chaos.test_model_states import KEY, SavedStory


@pytest.fixture
def story() -> SavedStory:
    """Two are saved: the first was answered, the second is of a stop."""
    story = SavedStory()
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.save(1, 2)
    story.start()
    story.click(3)
    story.saved(2, 3)
    story.stop()
    return story


def test_a_number_comes_twice(story: SavedStory) -> None:
    story.audit.kept["other"] = replace(story.audit.kept["id-1"], checkpoint_id="other")
    assert "NUMBER_TWICE" in story.wrong()


def test_a_content_changes() -> None:
    row = {"checkpoint_id": "x", "user_id": KEY, "number": 1, "session_id": A, "pinned": False}
    rows = [
        {**row, "op": op, "at": at, "state": state, "sha256": sha256, "reason": "", "failure": ""}
        for op, at, state, sha256 in [
            ("INSERT", 1.0, "WRITING", None),
            ("UPDATE", 2.0, "READY", "aa"),
            ("UPDATE", 3.0, "READY", "bb"),
        ]
    ]
    assert not read(rows[:2]).kept["x"].changed
    assert read(rows).kept["x"].changed
    gone = read([*rows[:2], {**rows[1], "at": 4.0, "op": "DELETE"}]).kept["x"]
    assert (gone.began, gone.ready, gone.gone) == (1.0, 2.0, 4.0)


def test_another_content_is_shown(story: SavedStory) -> None:
    call = next(call for call in story.history.calls if call.checkpoints)
    call.checkpoints = (replace(call.checkpoints[0], sha256="00"),)
    assert "SHOWN_ANOTHER" in story.wrong()


def test_one_is_answered_that_is_not_ready(story: SavedStory) -> None:
    call = next(call for call in story.history.calls if call.checkpoints)
    call.checkpoints = (replace(call.checkpoints[0], state="WRITING"),)
    assert "ANSWERED_BEFORE_READY" in story.wrong()


@pytest.mark.parametrize("where", ["attempt", "row", "reason"])
def test_one_is_found_damaged(story: SavedStory, where: str) -> None:
    call = story.restored(2)
    if where == "attempt":
        call.attempts = ("RESTORE:CHECKPOINT_CORRUPT",)
    elif where == "reason":
        call.status, call.reason = "DATA_LOSS", "CHECKPOINT_CORRUPT"
    else:
        kept = story.audit.kept["id-2"]
        story.audit.kept["id-2"] = replace(kept, failure="CHECKPOINT_CORRUPT")
    assert "FOUND_CORRUPT" in story.wrong()


def test_what_was_acknowledged_is_not_listed(story: SavedStory) -> None:
    story.tell("ListCheckpoints", checkpoints=())
    assert story.wrong() == {"NOT_LISTED"}


def test_what_was_deleted_is_not_listed(story: SavedStory) -> None:
    story.tell("DeleteCheckpoint", target="id-1")
    story.tell("ListCheckpoints", checkpoints=())
    assert story.wrong() == set()


def test_what_has_newer_ones_is_not_listed_unless_it_is_pinned(story: SavedStory) -> None:
    story.restored(2)
    story.saved(3, 3)
    story.saved(4, 3)
    story.tell("ListCheckpoints", checkpoints=())
    assert story.wrong() == set()
    pin = story.tell("PinCheckpoint", target="id-1")
    pin.pin, pin.since, pin.began, pin.ended = True, 105.0, 105.0, 105.5
    assert story.wrong() == {"NOT_LISTED"}


def test_a_repeat_is_answered_with_another(story: SavedStory) -> None:
    first = next(call for call in story.history.calls if call.checkpoints)
    first.request_id = "r"
    again = story.tell("CreateCheckpoint", asked=A, request_id="r", checkpoints=first.checkpoints)
    assert story.wrong() == set()
    again.checkpoints = (story.saved(3, 3),)
    assert story.wrong() == {"SAME_ID_SAME_OUTCOME"}
    again.status, again.reason = "NOT_FOUND", "CHECKPOINT_MISSING"
    assert story.wrong() == set()
