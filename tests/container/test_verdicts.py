"""What is concluded from what was seen: pure functions, by table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from container_service.booting import judge, read_boot_id
from container_service.container import ContainerState, MemoryPreserved
from container_service.fly.schema import read_wait
from container_service.leasing import ASK_AGAIN_SECONDS, until_next_try
from container_service.waiting import has_settled, slices

ID = "7f0c3a52-6a1e-4a63-8a3c-0a8e4d1f9b11"
RESTING = {ContainerState.SUSPENDED, ContainerState.STOPPED}


@pytest.mark.parametrize(
    ("expected", "found", "verdict"),
    [
        (ID, ID, MemoryPreserved.YES),
        (ID, "another", MemoryPreserved.NO),
        (ID, "", MemoryPreserved.UNKNOWN),
        ("", ID, MemoryPreserved.UNKNOWN),
        ("", "", MemoryPreserved.UNKNOWN),
    ],
)
def test_memory_is_claimed_only_where_the_boot_id_is_the_same(
    expected: str, found: str, verdict: MemoryPreserved
) -> None:
    assert judge(expected, found)[0] is verdict


@pytest.mark.parametrize(
    ("code", "printed", "boot_id"),
    [
        (0, f"{ID}\n", ID),
        (1, f"{ID}\n", ""),
        (0, "", ""),
        (0, "cat: not found here\n", ""),
        (0, "x" * 65, ""),
    ],
)
def test_only_one_word_of_a_command_that_went_well_is_a_boot_id(
    code: int, printed: str, boot_id: str
) -> None:
    assert read_boot_id(code, printed) == boot_id


@pytest.mark.parametrize("state", ContainerState)
@pytest.mark.parametrize("lagging", [True, False])
def test_a_read_of_running_settles_nothing_while_it_may_lag(
    state: ContainerState, lagging: bool
) -> None:
    """Else a suspend that has not begun would be told as one that failed."""
    final = {ContainerState.FAILED, ContainerState.DESTROYED} | RESTING
    running = state is ContainerState.STARTED and not lagging
    assert has_settled(state, RESTING, lagging=lagging) is (state in final or running)


def test_waits_grow_and_stay_within_what_the_provider_holds() -> None:
    assert list(islice(slices(), 5)) == [5.0, 10.0, 25.0, 25.0, 25.0]
    assert list(islice(slices(first=0.2), 3)) == [1.0, 5.0, 10.0]


@pytest.mark.parametrize(
    ("left", "delay"), [(None, ASK_AGAIN_SECONDS), (60, ASK_AGAIN_SECONDS), (1, 1.1), (-9, 0.5)]
)
def test_a_held_lease_is_asked_for_at_its_end_and_seldom_before(
    left: float | None, delay: float
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    expires = None if left is None else now + timedelta(seconds=left)
    assert until_next_try(expires, now) == pytest.approx(delay)


def test_a_wait_that_names_no_state_means_the_one_that_was_asked_for() -> None:
    assert read_wait({"ok": True}, {ContainerState.STARTED}) is ContainerState.STARTED
    assert read_wait(None, {ContainerState.STARTED}) is ContainerState.STARTED
    assert read_wait({"ok": True}, RESTING) is None
    assert read_wait({"state": "stopped"}, RESTING) is ContainerState.STOPPED
