"""The model itself: histories that are wrong, and the rule that each of them breaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from local.fly.logs import Action
from tests.chaos.history_builder import A, B, HistoryBuilder
from tests.chaos.model_memory import Boots
from tests.chaos.provider_log import ProviderLog, SessionRow

if TYPE_CHECKING:
    from tests.chaos.history import Call

KEY = HistoryBuilder.key


@pytest.fixture
def built() -> HistoryBuilder:
    """An empty history."""
    return HistoryBuilder()


def test_a_good_history_breaks_nothing(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.add("PauseSession", request_session=A, answer_session=A, state="PAUSED")
    built.start(outcome="RESUMED")
    built.click(3)
    built.end()
    built.start(B, "CREATED")
    built.click(1, request_session=B)
    assert built.broken_rules() == set()


def test_a_double_create(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.start(B, "CREATED")
    assert built.broken_rules() == {"ONE_LIVE_SESSION"}


def test_a_double_create_is_none_where_an_end_may_have_come_between(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.add("EndSession", request_session=A, status="UNAVAILABLE")
    built.start(B, "CREATED")
    assert built.broken_rules() == set()


def test_an_end_that_was_never_sent_excuses_nothing(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    no_connection = "failed to connect to all addresses; last error: refused"
    built.add("EndSession", request_session=A, status="UNAVAILABLE", message=no_connection)
    built.start(B, "CREATED")
    assert built.broken_rules() == {"ONE_LIVE_SESSION"}


def test_lost_memory_that_is_claimed(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.start(outcome="RESUMED")
    built.click(1)
    assert built.broken_rules() == {"LOST_MEMORY_CLAIMED"}


def test_lost_memory_needs_to_be_reported_only_once(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.start(outcome="RESTARTED", continuity=3)
    built.start()
    built.click(1)
    assert built.broken_rules() == set()


def test_a_loss_that_is_being_reported_need_not_be_reported_twice(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    # The slow answer reports it; the quick one, of a call meanwhile, follows its outcome.
    built.start(outcome="RESTARTED", continuity=3, lasts=5)
    built.start()
    built.now += 5
    built.click(1)
    assert built.broken_rules() == set()


@pytest.mark.parametrize(
    ("reason", "rules"),
    [
        ("", set[str]()),
        ("STORAGE_UNAVAILABLE", set[str]()),
        ("PROVIDER_UNAVAILABLE", {"LOST_MEMORY_CLAIMED"}),
    ],
)
def test_a_loss_may_be_reported_by_a_lost_answer(
    built: HistoryBuilder, reason: str, rules: set[str]
) -> None:
    """The outcome may be committed for a repeat that never came."""
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.add("StartSession", status="UNAVAILABLE", reason=reason, has_retry_info=True)
    built.start(outcome="RESUMED")
    built.click(1)
    assert built.broken_rules() == rules


def test_a_crash_within_the_freshness_window_is_reported_after_it(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    crash = built.now
    built.start(verify_time=crash - 1)
    built.click(1)
    boots = Boots({A: [crash]})
    assert built.broken_rules(boots) == set()
    built.start(verify_time=crash + 10)
    built.history.calls[-3].verify_time = crash + 0.1
    assert built.broken_rules(boots) == {"LOST_MEMORY_CLAIMED"}


def test_memory_that_is_kept_and_reported_lost(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.start(continuity=3)
    built.click(3)
    assert built.broken_rules() == {"LESS_CLAIMED_THAN_KEPT"}


def test_kept_memory_that_was_not_verified_is_no_violation(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(1)
    built.click(2)
    built.start(outcome="RESUMED", continuity=3, verified=False)
    built.click(3)
    assert built.broken_rules() == set()


def test_a_new_session_with_an_old_count(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(7)
    assert built.broken_rules() == {"NEW_SESSION_NOT_EMPTY"}


def test_a_click_without_an_answer_may_count(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.click(None, status="UNKNOWN")
    built.click(2)
    assert built.broken_rules() == set()
    built.click(9)
    assert built.broken_rules() == {"IMPOSSIBLE_COUNT"}


def test_a_reuse_after_an_end(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.end()
    built.start(outcome="RESUMED")
    assert built.broken_rules() == {"REUSED_AFTER_END"}


def test_a_reuse_after_an_end_and_an_undelete(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.end()
    built.add("UndeleteSession", request_session=A, answer_session=A, state="PAUSED")
    built.start(outcome="RESUMED")
    assert built.broken_rules() == set()


def test_an_undelete_after_an_end_now(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.end(now=True)
    built.add("UndeleteSession", request_session=A, answer_session=A, state="PAUSED")
    assert built.broken_rules() == {"ENDED_NOW_IS_FINAL"}


def test_a_reuse_of_what_a_fresh_start_replaced(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.start(B, "CREATED", mode="FRESH")
    built.start(A)
    assert "REUSED_AFTER_END" in built.broken_rules()


@pytest.mark.parametrize(
    "changed",
    [
        {"answer_session": B},
        {"outcome": "RESUMED"},
        {"continuity": 3},
        {"decision_id": "d2"},
        {"attempts": ("RESUME:BOOT_ID_EQUAL",)},
        {"status": "FAILED_PRECONDITION", "reason": "CONTINUITY_UNAVAILABLE"},
    ],
)
def test_a_request_id_with_two_answers(built: HistoryBuilder, changed: dict[str, Any]) -> None:
    built.start(request_id="r", decision_id="d1")
    again = built.start(request_id="r", decision_id="d1")
    assert again.replay
    assert built.broken_rules() == set()
    for name, value in changed.items():
        setattr(again, name, value)
    assert "SAME_ID_SAME_OUTCOME" in built.broken_rules()


def test_a_reuse_of_a_paused_session(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.add("PauseSession", request_session=A, answer_session=A, state="PAUSED")
    built.start()
    assert built.broken_rules() == {"REUSED_WHILE_PAUSED"}


def test_a_reuse_of_a_session_that_a_click_may_have_started(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.add("PauseSession", request_session=A, answer_session=A, state="PAUSED")
    built.click(1)
    built.start()
    assert built.broken_rules() == set()


def test_a_pause_despite_a_hold(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.add("PutHold", request_session=A, hold_until=built.now + 20)
    built.start()
    built.start(outcome="RESUMED")
    assert built.broken_rules() == {"HOLD_IGNORED"}
    built.history.calls[1].hold_until = built.now - 2
    assert built.broken_rules() == set()


def test_less_than_was_asked_for(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED", min_continuity=4)
    built.start(outcome="RESTARTED", continuity=3, min_continuity=4)
    assert built.broken_rules() == {"LESS_THAN_ASKED"}


def test_a_new_generation_is_held_to_what_was_asked(built: HistoryBuilder) -> None:
    built.start(outcome="CREATED")
    built.start(outcome="CREATED", generation=2, min_continuity=3)
    assert built.broken_rules() == {"LESS_THAN_ASKED"}


def test_fail_if_live(built: HistoryBuilder) -> None:
    built.start(mode="FAIL_IF_LIVE", status="ALREADY_EXISTS", reason="LIVE_SESSION_EXISTS")
    assert built.broken_rules() == {"FAIL_IF_LIVE"}
    built.start(outcome="CREATED")
    built.start(mode="FAIL_IF_LIVE")
    assert built.broken_rules() == {"FAIL_IF_LIVE"}


def test_a_start_that_is_with_a_conflict_that_nothing_explains(built: HistoryBuilder) -> None:
    conflict = {"status": "FAILED_PRECONDITION", "reason": "SESSION_STATE_CONFLICT"}
    built.start(**conflict, answer_session="", outcome="")
    assert built.broken_rules() == {"CONFLICT_WITHOUT_END"}


@pytest.mark.parametrize(
    ("changed", "rule"),
    [
        ({"status": "INTERNAL"}, "UNDOCUMENTED_ERROR"),
        ({"status": "UNAVAILABLE", "reason": "PROVIDER_UNAVAILABLE"}, "UNDOCUMENTED_ERROR"),
        ({"status": "UNAVAILABLE", "reason": "LIVE_SESSION_EXISTS"}, "UNDOCUMENTED_ERROR"),
        ({"status": "NOT_FOUND", "reason": "SESSION_NOT_FOUND"}, "UNDOCUMENTED_ERROR"),
        ({"status": "UNAVAILABLE", "ended": 200.0}, "TOO_LATE"),
    ],
)
def test_wrong_errors(built: HistoryBuilder, changed: dict[str, Any], rule: str) -> None:
    call = built.start()
    call.outcome = call.answer_session = ""
    for name, value in changed.items():
        setattr(call, name, value)
    assert built.broken_rules() == {rule}


# --- the provider's log ------------------------------------------------------------------------


def action(number: int, machine: str, what: str, session: str, generation: int = 1) -> Action:
    """The action as the emulator logs it, one a second."""
    labels = {"roost_session": session, "roost_generation": str(generation)}
    return Action(number, 100_000 + number * 1000, "app", machine, "", what, "flyd", labels)


KEYS = {A: KEY, B: KEY}


def overlapping(*actions: Action, calls: list[Call] | None = None, reason: str = "") -> set[str]:
    """The rules that the log breaks."""
    provider_log = ProviderLog(list(actions), [])
    rows = {A: SessionRow(A, KEY, "ENDED", reason)}
    found = [
        *provider_log.duplicate_creates(KEYS),
        *provider_log.overlaps(KEYS, {KEY: calls or []}, rows),
    ]
    return {violation.rule for violation in found}


def test_two_machines_of_one_generation() -> None:
    first, second = action(1, "m1", "create", A), action(3, "m2", "create", A)
    assert overlapping(first, second) == {"CREATE_NEVER_DUPLICATES"}
    assert overlapping(first, action(2, "m1", "vanished", A), second) == set()
    assert overlapping(first, action(3, "m2", "create", A, generation=2)) == set()


def test_two_running_machines_of_one_key(built: HistoryBuilder) -> None:
    both = [action(1, "m1", "started", A), action(3, "m2", "started", B)]
    assert overlapping(*both) == {"TWO_MACHINES"}
    paused = [both[0], action(2, "m1", "suspended", A), both[1]]
    assert overlapping(*paused) == set()
    built.end()
    assert overlapping(*both, calls=built.history.calls) == set()
    late = [action(1, "m1", "started", A), action(2, "m2", "started", B)]
    built.history.calls[0].first_began = 105.0
    assert overlapping(*late, calls=built.history.calls) == {"TWO_MACHINES"}


def test_two_running_generations_of_one_session() -> None:
    both = [action(1, "m1", "started", A), action(3, "m2", "started", A, generation=2)]
    assert overlapping(*both) == {"TWO_MACHINES"}


def test_a_fresh_start_leaves_the_old_machine_running_meanwhile(built: HistoryBuilder) -> None:
    built.start(B, "CREATED", mode="FRESH", lasts=10)
    both = [action(1, "m1", "started", A), action(3, "m2", "started", B)]
    assert overlapping(*both, calls=built.history.calls) == set()


def test_the_emulators_death_ends_what_ran() -> None:
    both = [action(1, "m1", "started", A), action(3, "m2", "started", B)]
    provider_log = ProviderLog(both, [102.0])
    assert list(provider_log.overlaps(KEYS, {}, {})) == []


def test_a_machine_that_is_started_after_the_emulators_death_runs_again() -> None:
    both = [
        action(1, "m1", "started", A),
        action(3, "m1", "started", A),
        action(4, "m2", "started", B),
    ]
    provider_log = ProviderLog(both, [102.0])
    found = [violation.rule for violation in provider_log.overlaps(KEYS, {}, {})]
    assert found == ["TWO_MACHINES"]


def test_the_first_boot_is_no_loss() -> None:
    boots = [
        Action(n, n * 1000, "app", "m", "", "started", "flyd", {"roost_session": A}, {"boot": kind})
        for n, kind in enumerate(["cold", "resumed", "cold"], 1)
    ]
    assert ProviderLog(boots, []).boots() == Boots({A: [3.0]}, {"": [], A: [3.0]})


def test_a_second_machines_first_boot_is_not_again() -> None:
    cold: dict[str, object] = {"boot": "cold"}
    log = [
        Action(n, n * 1000, "app", machine, "", what, "flyd", {"roost_session": A}, detail)
        for n, (machine, what, detail) in enumerate(
            [("m1", "started", cold), ("m2", "started", cold), ("m2", "vanished", {})], 1
        )
    ]
    boots = ProviderLog(log, [9.0]).boots()
    assert boots.cold == {A: [2.0]}
    assert not boots.broke(A, 0, 2.5)
    assert boots.broke(A, 2.5, 3.5)
    assert not boots.broke(B, 0, 8)
    assert boots.broke(B, 8, 10)
