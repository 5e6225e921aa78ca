"""The rules about checkpoints: histories that are wrong, and the rule that each breaks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.checkpoint_audit import read
from tests.chaos.history_builder import A, CheckpointHistoryBuilder


@pytest.fixture
def built() -> CheckpointHistoryBuilder:
    """A history with two checkpoints: one of CreateCheckpoint, one of a stop."""
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


def test_a_number_comes_twice(built: CheckpointHistoryBuilder) -> None:
    built.audit.checkpoints["other"] = replace(
        built.audit.checkpoints["id-1"], checkpoint_id="other"
    )
    assert "NUMBER_TWICE" in built.broken_rules()


def test_a_content_changes() -> None:
    row = {
        "checkpoint_id": "x",
        "user_id": CheckpointHistoryBuilder.key,
        "number": 1,
        "session_id": A,
        "pinned": False,
    }
    rows = [
        {**row, "op": op, "at": at, "state": state, "sha256": sha256, "reason": "", "failure": ""}
        for op, at, state, sha256 in [
            ("INSERT", 1.0, "WRITING", None),
            ("UPDATE", 2.0, "READY", "aa"),
            ("UPDATE", 3.0, "READY", "bb"),
        ]
    ]
    assert not read(rows[:2]).checkpoints["x"].changed
    assert read(rows).checkpoints["x"].changed
    gone = read([*rows[:2], {**rows[1], "at": 4.0, "op": "DELETE"}]).checkpoints["x"]
    assert (gone.began, gone.ready, gone.gone) == (1.0, 2.0, 4.0)


def test_another_content_is_shown(built: CheckpointHistoryBuilder) -> None:
    call = next(call for call in built.history.calls if call.checkpoints)
    call.checkpoints = (replace(call.checkpoints[0], sha256="00"),)
    assert "SHOWN_WRONG_CHECKPOINT" in built.broken_rules()


def test_one_is_answered_that_is_not_ready(built: CheckpointHistoryBuilder) -> None:
    call = next(call for call in built.history.calls if call.checkpoints)
    call.checkpoints = (replace(call.checkpoints[0], state="WRITING"),)
    assert "ANSWERED_BEFORE_READY" in built.broken_rules()


@pytest.mark.parametrize("where", ["attempt", "row", "reason"])
def test_one_is_found_damaged(built: CheckpointHistoryBuilder, where: str) -> None:
    call = built.restore(2)
    if where == "attempt":
        call.attempts = ("RESTORE:CHECKPOINT_CORRUPT",)
    elif where == "reason":
        call.status, call.reason = "DATA_LOSS", "CHECKPOINT_CORRUPT"
    else:
        kept = built.audit.checkpoints["id-2"]
        built.audit.checkpoints["id-2"] = replace(kept, failure="CHECKPOINT_CORRUPT")
    assert "FOUND_CORRUPT" in built.broken_rules()


def test_what_was_acknowledged_is_not_listed(built: CheckpointHistoryBuilder) -> None:
    built.add("ListCheckpoints", checkpoints=())
    assert built.broken_rules() == {"NOT_LISTED"}


def test_what_was_deleted_is_not_listed(built: CheckpointHistoryBuilder) -> None:
    built.add("DeleteCheckpoint", checkpoint_id="id-1")
    built.add("ListCheckpoints", checkpoints=())
    assert built.broken_rules() == set()


def test_what_has_newer_ones_is_not_listed_unless_it_is_pinned(
    built: CheckpointHistoryBuilder,
) -> None:
    built.restore(2)
    built.add_checkpoint(3, 3)
    built.add_checkpoint(4, 3)
    built.add("ListCheckpoints", checkpoints=())
    assert built.broken_rules() == set()
    pin = built.add("PinCheckpoint", checkpoint_id="id-1")
    pin.pin, pin.first_began, pin.began, pin.ended = True, 105.0, 105.0, 105.5
    assert built.broken_rules() == {"NOT_LISTED"}


def test_a_repeat_is_answered_with_another(built: CheckpointHistoryBuilder) -> None:
    first = next(call for call in built.history.calls if call.checkpoints)
    first.request_id = "r"
    again = built.add(
        "CreateCheckpoint", request_session=A, request_id="r", checkpoints=first.checkpoints
    )
    assert built.broken_rules() == set()
    again.checkpoints = (built.add_checkpoint(3, 3),)
    assert built.broken_rules() == {"SAME_ID_SAME_OUTCOME"}
    again.status, again.reason = "NOT_FOUND", "CHECKPOINT_MISSING"
    assert built.broken_rules() == set()
