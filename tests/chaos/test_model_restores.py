"""The rules about saved state: histories that are wrong, and the rule that each breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.history_builder import A, B, CheckpointHistoryBuilder

OTHER = "saved-02"


@pytest.fixture
def built() -> CheckpointHistoryBuilder:
    """A history with three clicks: number 1 has two of them, number 2 all three."""
    built = CheckpointHistoryBuilder()
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.create_checkpoint(1, 2)
    built.start()
    built.click(3)
    built.add_checkpoint(2, 3)
    built.stop()
    return built


def test_a_good_history_breaks_nothing(built: CheckpointHistoryBuilder) -> None:
    built.restore(2)
    built.click(4)
    built.add_checkpoint(3, 4)
    built.restore(1, "RestoreCheckpoint", request_session=A)
    built.click(3)
    assert built.broken_rules() == set()


def test_something_else_than_the_checkpoint_says(built: CheckpointHistoryBuilder) -> None:
    built.restore(2)
    built.click(3)
    assert "RESTORED_WRONG_COUNT" in built.broken_rules()


def test_nothing_at_all_behind_the_claim(built: CheckpointHistoryBuilder) -> None:
    built.restore(2)
    built.click(1)
    assert "RESTORED_WRONG_COUNT" in built.broken_rules()


def test_a_machine_that_broke_meanwhile_excuses_that(built: CheckpointHistoryBuilder) -> None:
    back = built.restore(2)
    built.click(1)
    built.boots.cold[A] = built.boots.again[A] = [back.ended + 0.1]
    assert built.broken_rules() == set()


def test_an_older_one(built: CheckpointHistoryBuilder) -> None:
    built.restore(1)
    built.click(3)
    assert built.broken_rules() == {"RESTORED_OLDER", "ACKNOWLEDGED_COUNT_LOST"}


def test_an_older_one_where_the_newer_was_deleted(built: CheckpointHistoryBuilder) -> None:
    """The container was lost, and the newest checkpoint is deleted."""
    built.audit.checkpoints["id-2"] = replace(built.audit.checkpoints["id-2"], gone=built.now)
    built.boots.again[A] = [built.now]
    built.now += 1
    built.restore(1)
    built.click(3)
    assert built.broken_rules() == set()


def test_an_older_one_is_the_newest_after_a_rollback(built: CheckpointHistoryBuilder) -> None:
    built.restore(1, "RestoreCheckpoint", request_session=A)
    built.click(3)
    built.now += 10
    built.stop()
    built.restore(1)
    built.click(3)
    assert "RESTORED_OLDER" not in built.broken_rules()


def test_another_than_was_asked_for(built: CheckpointHistoryBuilder) -> None:
    call = built.restore(1, "RestoreCheckpoint", request_session=A)
    call.restored_number = 2
    assert "RESTORED_WRONG_NUMBER" in built.broken_rules()


def test_what_was_acknowledged_before_the_container_went_is_lost() -> None:
    """The container was replaced although its newest state was not saved."""
    built = CheckpointHistoryBuilder()
    built.start(outcome="CREATED")
    built.click(1)
    built.create_checkpoint(1, 1)
    built.start()
    built.click(2)
    built.stop()
    back = built.restore(1)
    built.click(2)
    assert built.broken_rules() == {"ACKNOWLEDGED_COUNT_LOST"}
    built.boots.again[A] = [back.first_began - 0.1]
    assert built.broken_rules() == set()


def test_a_click_during_a_stop_may_be_lost() -> None:
    built = CheckpointHistoryBuilder()
    built.start(outcome="CREATED")
    built.click(1)
    built.add_checkpoint(1, 1)
    built.now -= 1.5
    built.add("StopSession", request_session=A, answer_session=A, state="PAUSED", lasts=3)
    built.click(2)
    built.now += 2
    built.restore(1)
    built.click(2)
    assert built.broken_rules() == set()


def test_an_empty_container_where_something_was_saved(built: CheckpointHistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    assert built.broken_rules() == {"ACKNOWLEDGED_COUNT_LOST"}


@pytest.mark.parametrize("count", [1, 4])
def test_a_checkpoint_with_a_count_that_was_never_true(
    built: CheckpointHistoryBuilder, count: int
) -> None:
    built.now -= 1
    built.add_checkpoint(3, count)
    assert "SAVED_WRONG_COUNT" in built.broken_rules()


def test_an_unacknowledged_click_may_be_saved(built: CheckpointHistoryBuilder) -> None:
    built.restore(2)
    built.click(None, status="UNKNOWN")
    built.add_checkpoint(3, 4)
    assert built.broken_rules() == set()


def test_memory_is_claimed_where_a_checkpoint_came_back(built: CheckpointHistoryBuilder) -> None:
    built.start(outcome="RESUMED")
    built.click(3)
    assert "IMPOSSIBLE_COUNT" in built.broken_rules()


def test_a_fork_has_what_its_checkpoint_holds(built: CheckpointHistoryBuilder) -> None:
    built.key = OTHER
    built.restore(1, "ForkSession", checkpoint_id="id-1", answer_session=B)
    built.click(3, request_session=B)
    assert built.broken_rules() == set()
    built.history.calls[-1].value = 1
    assert "RESTORED_WRONG_COUNT" in built.broken_rules()
