"""The judges of saved state can fail: histories that must not be, and the rule that each breaks."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.audit import Audit, Kept
from tests.chaos.history import Call, Shown
from tests.chaos.model import judge
from tests.chaos.model_memory import Boots
from tests.chaos.test_model import A, B, Story

KEY, OTHER = "saved-00", "saved-02"


class SavedStory(Story):
    """The same of a key whose state is saved, with what became of its checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.key = KEY
        self.audit = Audit()
        self.boots = Boots()

    def tell(self, method: str, *, lasts: float = 0.5, **fields: Any) -> Call:
        """One call; Any: its fields."""
        given = {name: fields.pop(name) for name in ("which", "target") if name in fields}
        call = super().tell(method, lasts=lasts, **fields)
        call.key = self.key
        for name, value in given.items():
            setattr(call, name, value)
        return call

    def saved(self, number: int, count: int, session: str = A, **more: Any) -> Shown:
        """A checkpoint that came to be, in half a second; Any: fields of `Kept`."""
        sha256 = hashlib.sha256(f"{count}\n".encode()).hexdigest()
        kept = Kept(f"id-{number}", KEY, number, session, "SCHEDULE", self.now, self.now + 0.5)
        self.audit.kept[kept.checkpoint_id] = replace(kept, sha256=sha256, **more)
        self.now += 1.0
        return Shown(kept.checkpoint_id, number, "READY", sha256, pinned=False)

    def save(self, number: int, count: int) -> Call:
        """CreateCheckpoint."""
        at = self.now
        shown = self.saved(number, count)
        self.now = at
        return self.tell("CreateCheckpoint", asked=A, checkpoints=(shown,))

    def stop(self) -> Call:
        """StopSession, which saves."""
        return self.tell("StopSession", asked=A, named=A, state="PAUSED")

    def restored(self, number: int, method: str = "StartSession", **fields: Any) -> Call:
        """A call that brought a checkpoint back."""
        given: dict[str, Any] = {
            "outcome": "RESTORED",
            "continuity": 2,
            "restored": number,
            "named": A,
        }
        if method == "StartSession":
            return self.start(**(given | fields))
        given |= {"state": "ACTIVE", "verified": True, "which": number}
        return self.tell(method, **(given | fields))

    def wrong(self) -> set[str]:
        """The rules that it breaks."""
        found = judge(self.history.by_key(), self.boots, self.audit)
        return {violation.rule for violation in found}


@pytest.fixture
def story() -> SavedStory:
    """Three clicks, of which two are saved in number 1, and all in number 2."""
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


def test_a_good_history_breaks_nothing(story: SavedStory) -> None:
    story.restored(2)
    story.click(4)
    story.saved(3, 4)
    story.restored(1, "RestoreCheckpoint", asked=A)
    story.click(3)
    assert story.wrong() == set()


def test_something_else_than_the_checkpoint_says(story: SavedStory) -> None:
    story.restored(2)
    story.click(3)
    assert "RESTORED_SOMETHING_ELSE" in story.wrong()


def test_nothing_at_all_behind_the_claim(story: SavedStory) -> None:
    story.restored(2)
    story.click(1)
    assert "RESTORED_SOMETHING_ELSE" in story.wrong()


def test_a_machine_that_broke_meanwhile_excuses_that(story: SavedStory) -> None:
    back = story.restored(2)
    story.click(1)
    story.boots.cold[A] = story.boots.again[A] = [back.ended + 0.1]
    assert story.wrong() == set()


def test_an_older_one(story: SavedStory) -> None:
    story.restored(1)
    story.click(3)
    assert story.wrong() == {"RESTORED_AN_OLDER_ONE", "SAVED_AND_LOST"}


def test_an_older_one_where_the_newer_was_deleted(story: SavedStory) -> None:
    """The container was lost, and what was saved last is deleted."""
    story.audit.kept["id-2"] = replace(story.audit.kept["id-2"], gone=story.now)
    story.boots.again[A] = [story.now]
    story.now += 1
    story.restored(1)
    story.click(3)
    assert story.wrong() == set()


def test_an_older_one_is_the_newest_after_a_rollback(story: SavedStory) -> None:
    story.restored(1, "RestoreCheckpoint", asked=A)
    story.click(3)
    story.now += 10
    story.stop()
    story.restored(1)
    story.click(3)
    assert "RESTORED_AN_OLDER_ONE" not in story.wrong()


def test_another_than_was_asked_for(story: SavedStory) -> None:
    call = story.restored(1, "RestoreCheckpoint", asked=A)
    call.restored = 2
    assert "RESTORED_ANOTHER" in story.wrong()


def test_what_was_acknowledged_before_the_container_went_is_lost() -> None:
    """Nothing newer was saved, and the container is gone all the same."""
    story = SavedStory()
    story.start(outcome="CREATED")
    story.click(1)
    story.save(1, 1)
    story.start()
    story.click(2)
    story.stop()
    back = story.restored(1)
    story.click(2)
    assert story.wrong() == {"SAVED_AND_LOST"}
    story.boots.again[A] = [back.since - 0.1]
    assert story.wrong() == set()


def test_a_click_while_it_was_put_to_rest_may_be_lost() -> None:
    story = SavedStory()
    story.start(outcome="CREATED")
    story.click(1)
    story.saved(1, 1)
    story.now -= 1.5
    story.tell("StopSession", asked=A, named=A, state="PAUSED", lasts=3)
    story.click(2)
    story.now += 2
    story.restored(1)
    story.click(2)
    assert story.wrong() == set()


def test_an_empty_container_where_something_was_saved(story: SavedStory) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    assert story.wrong() == {"SAVED_AND_LOST"}


@pytest.mark.parametrize("count", [1, 4])
def test_what_was_never_true_is_saved(story: SavedStory, count: int) -> None:
    story.now -= 1
    story.saved(3, count)
    assert "SAVED_WHAT_NEVER_WAS" in story.wrong()


def test_what_was_not_acknowledged_may_be_saved(story: SavedStory) -> None:
    story.restored(2)
    story.click(None, status="UNKNOWN")
    story.saved(3, 4)
    assert story.wrong() == set()


def test_memory_is_claimed_where_a_checkpoint_came_back(story: SavedStory) -> None:
    story.start(outcome="RESUMED")
    story.click(3)
    assert "COUNT_MAKES_NO_SENSE" in story.wrong()


def test_a_fork_has_what_its_checkpoint_holds(story: SavedStory) -> None:
    story.key = OTHER
    story.restored(1, "ForkSession", target="id-1", named=B)
    story.click(3, asked=B)
    assert story.wrong() == set()
    story.history.calls[-1].value = 1
    assert "RESTORED_SOMETHING_ELSE" in story.wrong()
