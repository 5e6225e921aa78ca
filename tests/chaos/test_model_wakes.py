"""The rule for sessions that Roost woke to save them: what it permits, and what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from local.fly.logs import Action
from tests.chaos.history_builder import A, B, HistoryBuilder
from tests.chaos.provider_log import ProviderLog
from tests.chaos.wakes import FOREVER, Deepening, Wake, read

if TYPE_CHECKING:
    from local.fly.logs import Source


@pytest.fixture
def paused() -> HistoryBuilder:
    """The history of a session that was paused."""
    built = HistoryBuilder()
    built.start(outcome="CREATED")
    built.add("PauseSession", request_session=A, answer_session=A, state="PAUSED")
    return built


# --- the history -------------------------------------------------------------------------------


def test_without_a_start_at_the_provider_it_is_a_violation(paused: HistoryBuilder) -> None:
    paused.start()
    assert paused.broken_rules() == {"REUSED_WHILE_PAUSED"}


def test_a_session_that_was_woken_to_be_saved_may_be_reused(paused: HistoryBuilder) -> None:
    paused.wake()
    paused.start()
    assert paused.broken_rules() == set()


def test_it_may_be_woken_during_the_call(paused: HistoryBuilder) -> None:
    """The call waits for the deepening in flight, which leaves the container running for it."""
    paused.now += 1
    paused.wake()
    paused.now -= 2
    paused.start(lasts=5)
    assert paused.broken_rules() == set()


def test_not_if_it_was_paused_again_before_the_call(paused: HistoryBuilder) -> None:
    paused.wake(lasts=0.5)
    paused.start()
    assert paused.broken_rules() == {"REUSED_WHILE_PAUSED"}


def test_not_if_it_was_woken_before_the_pause_or_after_the_answer() -> None:
    built = HistoryBuilder()
    built.start(outcome="CREATED")
    built.wake()
    built.add("PauseSession", request_session=A, answer_session=A, state="PAUSED")
    built.start()
    built.wake()
    assert built.broken_rules() == {"REUSED_WHILE_PAUSED"}


def test_not_if_another_session_was_woken(paused: HistoryBuilder) -> None:
    paused.wakes.runs[B] = [Wake(paused.now)]
    paused.now += 1
    paused.start()
    assert paused.broken_rules() == {"REUSED_WHILE_PAUSED"}


def test_a_cold_boot_must_be_reported(paused: HistoryBuilder) -> None:
    paused.wake(cold=True)
    answer = paused.start(continuity=3)
    assert paused.broken_rules() == set()
    answer.continuity = 4
    assert paused.broken_rules() == {"LOST_MEMORY_CLAIMED"}


# --- the provider's log and the events ---------------------------------------------------------


def action(number: int, what: str, source: Source = "flyd", **detail: object) -> Action:
    """An action on session A's machine, logged at `number` seconds."""
    labels = {"roost_session": A, "roost_generation": "1"}
    return Action(number, number * 1000, "app", "m", "", what, source, labels, detail)


def woken(*actions: Action, deepening: Deepening | None = None) -> list[Wake]:
    """The wakes in the log, with a deepening from 10 to 20 s unless another one is given."""
    log = ProviderLog([action(1, "started", boot="cold"), action(5, "suspended"), *actions], [])
    return log.wakes([deepening or Deepening(A, 10.0, 20.0)]).runs.get(A, [])


STARTED = (action(12, "start", "user"), action(13, "started", boot="resumed"))


def test_a_start_during_a_deepening_is_a_wake() -> None:
    assert woken(*STARTED) == [Wake(13.0, FOREVER)]
    assert woken(*STARTED, action(15, "stopped")) == [Wake(13.0, 15.0)]
    cold = action(13, "started", boot="cold")
    assert woken(STARTED[0], cold) == [Wake(13.0, FOREVER, cold=True)]


def test_any_other_start_is_none() -> None:
    """Not one by a visit to the preview, and none outside a deepening or of another session."""
    assert woken(action(12, "start", "proxy"), STARTED[1]) == []
    assert woken(STARTED[1]) == []
    for other in (Deepening(A, 12.5, 20.0), Deepening(A, 10.0, 11.9), Deepening(B, 10.0, 20.0)):
        assert woken(*STARTED, deepening=other) == []


@pytest.mark.parametrize("other", ["failed", "stop", "stopped", "destroy", "vanished"])
def test_a_start_that_failed_makes_no_later_one_a_wake(other: str) -> None:
    """The machine is started later by a visit to the preview, of which the log has no request."""
    later = action(15, "started", boot="resumed")
    assert woken(STARTED[0], action(13, other), later) == []
    assert woken(STARTED[0], action(13, "lease_release", "user"), later) == [Wake(15.0, FOREVER)]


def test_the_emulators_death_ends_a_wake() -> None:
    log = ProviderLog(list(STARTED), [14.0])
    assert log.wakes([Deepening(A, 10.0)]).runs == {A: [Wake(13.0, 14.0)]}


def test_the_events_show_when_a_pause_was_deepened() -> None:
    def event(at: float, state: str, cause: str | None = None) -> dict[str, Any]:
        return {"session_id": A, "state": state, "cause": cause, "at": at}

    events = [
        event(1.0, "PAUSING", "IDLE"),
        event(2.0, "PAUSED"),
        event(3.0, "PAUSING", "DEEPEN"),
        event(4.0, "PAUSING"),
        event(5.0, "ACTIVE", "WOKEN"),
        event(6.0, "PAUSING"),
        event(7.0, "PAUSED"),
        event(8.0, "PAUSING", "DEEPEN"),
    ]
    assert read(events) == [Deepening(A, 3.0, 5.0), Deepening(A, 8.0)]
