"""The pure functions that interpret observations, by table."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest

from container_service.containers.lease import RETRY_SECONDS, seconds_until_retry
from container_service.containers.model import ContainerState, MemoryPreserved
from container_service.containers.start import memory_verdict, parse_boot_id
from container_service.containers.wait import has_settled, poll_lengths
from container_service.fly.schema import read_wait

ID = "7f0c3a52-6a1e-4a63-8a3c-0a8e4d1f9b11"
SUSPENDED_OR_STOPPED = {ContainerState.SUSPENDED, ContainerState.STOPPED}


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
def test_memory_is_preserved_only_if_the_boot_id_is_the_same(
    expected: str, found: str, verdict: MemoryPreserved
) -> None:
    assert memory_verdict(expected, found)[0] is verdict


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
def test_only_one_word_from_a_successful_command_is_a_boot_id(
    code: int, printed: str, boot_id: str
) -> None:
    assert parse_boot_id(code, printed) == boot_id


@pytest.mark.parametrize("state", ContainerState)
@pytest.mark.parametrize("lagging", [True, False])
def test_a_read_of_started_settles_nothing_within_the_lag_window(
    state: ContainerState, lagging: bool
) -> None:
    """Otherwise a suspend that has not begun yet would be reported as failed."""
    final = {ContainerState.FAILED, ContainerState.DESTROYED} | SUSPENDED_OR_STOPPED
    running = state is ContainerState.STARTED and not lagging
    assert has_settled(state, SUSPENDED_OR_STOPPED, lagging=lagging) is (state in final or running)


def test_polls_grow_up_to_25_seconds() -> None:
    assert list(islice(poll_lengths(), 5)) == [5.0, 10.0, 25.0, 25.0, 25.0]
    assert list(islice(poll_lengths(first=0.2), 3)) == [1.0, 5.0, 10.0]


@pytest.mark.parametrize(
    ("left", "delay"), [(None, RETRY_SECONDS), (60, RETRY_SECONDS), (1, 1.1), (-9, 0.5)]
)
def test_a_held_lease_is_retried_at_its_expiry_and_rarely_before(
    left: float | None, delay: float
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    expires = None if left is None else now + timedelta(seconds=left)
    assert seconds_until_retry(expires, now) == pytest.approx(delay)


def test_a_wait_answer_without_a_state_means_the_requested_one() -> None:
    assert read_wait({"ok": True}, {ContainerState.STARTED}) is ContainerState.STARTED
    assert read_wait(None, {ContainerState.STARTED}) is ContainerState.STARTED
    assert read_wait({"ok": True}, SUSPENDED_OR_STOPPED) is None
    assert read_wait({"state": "stopped"}, SUSPENDED_OR_STOPPED) is ContainerState.STOPPED
