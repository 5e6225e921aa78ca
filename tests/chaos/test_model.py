"""The checker can fail: histories that must not be, and the rule that each breaks."""

from __future__ import annotations

from typing import Any

import pytest

from local.fly.log import Action
from tests.chaos.history import Call, History
from tests.chaos.ledger import Ledger, SessionRow
from tests.chaos.model import judge
from tests.chaos.model_memory import Boots

KEY = "wren"
A, B = "session-a", "session-b"


class Story:
    """A history told a call a second, unless it says otherwise."""

    def __init__(self) -> None:
        self.history = History()
        self.now = 100.0

    def tell(self, method: str, *, lasts: float = 0.5, **fields: Any) -> Call:
        """One call that was answered OK. Any: the fields of `Call`."""
        call = Call(len(self.history.calls), "c", KEY, method, self.now)
        for name in ("request_id", "until", "asked", "mode", "least", "depth", "now"):
            if name in fields:
                setattr(call, name, fields.pop(name))
        self.history.begin(call)
        call.status = "OK"
        for name, value in fields.items():
            setattr(call, name, value)
        self.history.end(call, self.now + lasts)
        self.now += 1.0
        return call

    def start(self, named: str = A, outcome: str = "REUSED", **fields: Any) -> Call:
        """A start that was answered."""
        created = outcome == "CREATED"
        given: dict[str, Any] = {
            "state": "ACTIVE",
            "generation": 1,
            "continuity": 1 if created else 4,
            "verified": True,
            "verify_time": self.now,
            "attempts": (),
        }
        return self.tell("StartSession", named=named, outcome=outcome, **given | fields)

    def click(self, value: int | None, asked: str = A, status: str = "OK") -> Call:
        """A click on the session's counter."""
        return self.tell("click", asked=asked, value=value, status=status)

    def end(self, asked: str = A, **fields: Any) -> Call:
        """An end that was answered."""
        return self.tell("EndSession", asked=asked, named=asked, state="ENDED", **fields)

    def broken(self, boots: Boots | None = None) -> set[str]:
        """The rules that it breaks."""
        return {violation.rule for violation in judge(self.history.by_key(), boots)}


@pytest.fixture
def story() -> Story:
    """An empty one."""
    return Story()


def test_a_good_history_breaks_nothing(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.tell("PauseSession", asked=A, named=A, state="PAUSED")
    story.start(outcome="RESUMED")
    story.click(3)
    story.end()
    story.start(B, "CREATED")
    story.click(1, asked=B)
    assert story.broken() == set()


def test_a_double_create(story: Story) -> None:
    story.start(outcome="CREATED")
    story.start(B, "CREATED")
    assert story.broken() == {"ONE_LIVE_SESSION"}


def test_a_double_create_is_none_where_an_end_may_have_come_between(story: Story) -> None:
    story.start(outcome="CREATED")
    story.tell("EndSession", asked=A, status="UNAVAILABLE")
    story.start(B, "CREATED")
    assert story.broken() == set()


def test_an_end_that_was_never_sent_excuses_nothing(story: Story) -> None:
    story.start(outcome="CREATED")
    nobody = "failed to connect to all addresses; last error: refused"
    story.tell("EndSession", asked=A, status="UNAVAILABLE", message=nobody)
    story.start(B, "CREATED")
    assert story.broken() == {"ONE_LIVE_SESSION"}


def test_lost_memory_that_is_claimed(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.start(outcome="RESUMED")
    story.click(1)
    assert story.broken() == {"LOST_MEMORY_CLAIMED"}


def test_lost_memory_that_was_told_once_is_told(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.start(outcome="RESTARTED", continuity=3)
    story.start()
    story.click(1)
    assert story.broken() == set()


def test_a_loss_that_is_being_told_need_not_be_told_twice(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    # The slow answer tells it; the quick one, of a call meanwhile, builds on its outcome.
    story.start(outcome="RESTARTED", continuity=3, lasts=5)
    story.start()
    story.now += 5
    story.click(1)
    assert story.broken() == set()


@pytest.mark.parametrize(
    ("reason", "rules"),
    [
        ("", set[str]()),
        ("STORAGE_UNAVAILABLE", set[str]()),
        ("PROVIDER_UNAVAILABLE", {"LOST_MEMORY_CLAIMED"}),
    ],
)
def test_a_loss_is_told_by_an_answer_that_nobody_got(
    story: Story, reason: str, rules: set[str]
) -> None:
    """Its outcome may be committed, for a repeat that never came."""
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.tell("StartSession", status="UNAVAILABLE", reason=reason, retry=True)
    story.start(outcome="RESUMED")
    story.click(1)
    assert story.broken() == rules


def test_a_crash_within_the_freshness_window_is_told_after_it(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    crash = story.now
    story.start(verify_time=crash - 1)
    story.click(1)
    boots = Boots({A: [crash]})
    assert story.broken(boots) == set()
    story.start(verify_time=crash + 10)
    story.history.calls[-3].verify_time = crash + 0.1
    assert story.broken(boots) == {"LOST_MEMORY_CLAIMED"}


def test_memory_that_is_there_and_proved_lost(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.start(continuity=3)
    story.click(3)
    assert story.broken() == {"LESS_CLAIMED_THAN_THERE"}


def test_memory_that_is_there_and_was_not_proved_is_no_fault(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(1)
    story.click(2)
    story.start(outcome="RESUMED", continuity=3, verified=False)
    story.click(3)
    assert story.broken() == set()


def test_a_new_session_with_an_old_count(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(7)
    assert story.broken() == {"NEW_MEANS_EMPTY"}


def test_a_click_without_an_answer_may_count(story: Story) -> None:
    story.start(outcome="CREATED")
    story.click(None, status="UNKNOWN")
    story.click(2)
    assert story.broken() == set()
    story.click(9)
    assert story.broken() == {"COUNT_MAKES_NO_SENSE"}


def test_a_reuse_after_an_end(story: Story) -> None:
    story.start(outcome="CREATED")
    story.end()
    story.start(outcome="RESUMED")
    assert story.broken() == {"REUSED_AFTER_END"}


def test_a_reuse_after_an_end_and_an_undelete(story: Story) -> None:
    story.start(outcome="CREATED")
    story.end()
    story.tell("UndeleteSession", asked=A, named=A, state="PAUSED")
    story.start(outcome="RESUMED")
    assert story.broken() == set()


def test_an_end_now_that_does_not_last(story: Story) -> None:
    story.start(outcome="CREATED")
    story.end(now=True)
    story.tell("UndeleteSession", asked=A, named=A, state="PAUSED")
    assert story.broken() == {"NOW_IS_FOR_EVER"}


def test_a_reuse_of_what_a_fresh_start_replaced(story: Story) -> None:
    story.start(outcome="CREATED")
    story.start(B, "CREATED", mode="FRESH")
    story.start(A)
    assert "REUSED_AFTER_END" in story.broken()


@pytest.mark.parametrize(
    "changed",
    [
        {"named": B},
        {"outcome": "RESUMED"},
        {"continuity": 3},
        {"decision_id": "d2"},
        {"attempts": ("RESUME:BOOT_ID_EQUAL",)},
        {"status": "FAILED_PRECONDITION", "reason": "CONTINUITY_UNAVAILABLE"},
    ],
)
def test_a_request_id_with_two_answers(story: Story, changed: dict[str, Any]) -> None:
    story.start(request_id="r", decision_id="d1")
    again = story.start(request_id="r", decision_id="d1")
    assert again.replay
    assert story.broken() == set()
    for name, value in changed.items():
        setattr(again, name, value)
    assert "SAME_ID_SAME_OUTCOME" in story.broken()


def test_a_reuse_of_what_rests(story: Story) -> None:
    story.start(outcome="CREATED")
    story.tell("PauseSession", asked=A, named=A, state="PAUSED")
    story.start()
    assert story.broken() == {"REUSED_AT_REST"}


def test_a_reuse_of_what_a_click_may_have_woken(story: Story) -> None:
    story.start(outcome="CREATED")
    story.tell("PauseSession", asked=A, named=A, state="PAUSED")
    story.click(1)
    story.start()
    assert story.broken() == set()


def test_a_rest_in_spite_of_a_hold(story: Story) -> None:
    story.start(outcome="CREATED")
    story.tell("PutHold", asked=A, until=story.now + 20)
    story.start()
    story.start(outcome="RESUMED")
    assert story.broken() == {"HOLD_IGNORED"}
    story.history.calls[1].until = story.now - 2
    assert story.broken() == set()


def test_less_than_was_asked_for(story: Story) -> None:
    story.start(outcome="CREATED", least=4)
    story.start(outcome="RESTARTED", continuity=3, least=4)
    assert story.broken() == {"LESS_THAN_ASKED"}


def test_a_new_generation_is_held_to_what_was_asked(story: Story) -> None:
    story.start(outcome="CREATED")
    story.start(outcome="CREATED", generation=2, least=3)
    assert story.broken() == {"LESS_THAN_ASKED"}


def test_fail_if_live(story: Story) -> None:
    story.start(mode="FAIL_IF_LIVE", status="ALREADY_EXISTS", reason="LIVE_SESSION_EXISTS")
    assert story.broken() == {"FAIL_IF_LIVE"}
    story.start(outcome="CREATED")
    story.start(mode="FAIL_IF_LIVE")
    assert story.broken() == {"FAIL_IF_LIVE"}


def test_a_start_that_is_broken_off_by_nobody(story: Story) -> None:
    conflict = {"status": "FAILED_PRECONDITION", "reason": "SESSION_STATE_CONFLICT"}
    story.start(**conflict, named="", outcome="")
    assert story.broken() == {"BROKEN_OFF"}


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
def test_wrong_errors(story: Story, changed: dict[str, Any], rule: str) -> None:
    call = story.start()
    call.outcome = call.named = ""
    for name, value in changed.items():
        setattr(call, name, value)
    assert story.broken() == {rule}


# --- the provider's log ------------------------------------------------------------------------


def action(number: int, machine: str, what: str, session: str, generation: int = 1) -> Action:
    """The action as the emulator logs it, one a second."""
    labels = {"roost_session": session, "roost_generation": str(generation)}
    return Action(number, 100_000 + number * 1000, "app", machine, "", what, "flyd", labels)


KEYS = {A: KEY, B: KEY}


def overlapping(*actions: Action, calls: list[Call] | None = None, reason: str = "") -> set[str]:
    """The rules that the log breaks."""
    ledger = Ledger(list(actions), [])
    rows = {A: SessionRow(A, KEY, "ENDED", reason)}
    found = [*ledger.twins(KEYS), *ledger.overlaps(KEYS, {KEY: calls or []}, rows)]
    return {violation.rule for violation in found}


def test_two_machines_of_one_generation() -> None:
    first, second = action(1, "m1", "create", A), action(3, "m2", "create", A)
    assert overlapping(first, second) == {"CREATE_NEVER_DUPLICATES"}
    assert overlapping(first, action(2, "m1", "vanished", A), second) == set()
    assert overlapping(first, action(3, "m2", "create", A, generation=2)) == set()


def test_two_running_machines_of_one_key(story: Story) -> None:
    both = [action(1, "m1", "started", A), action(3, "m2", "started", B)]
    assert overlapping(*both) == {"TWO_MACHINES"}
    rested = [both[0], action(2, "m1", "suspended", A), both[1]]
    assert overlapping(*rested) == set()
    story.end()
    assert overlapping(*both, calls=story.history.calls) == set()
    late = [action(1, "m1", "started", A), action(2, "m2", "started", B)]
    story.history.calls[0].since = 105.0
    assert overlapping(*late, calls=story.history.calls) == {"TWO_MACHINES"}


def test_two_running_generations_of_one_session() -> None:
    both = [action(1, "m1", "started", A), action(3, "m2", "started", A, generation=2)]
    assert overlapping(*both) == {"TWO_MACHINES"}


def test_a_fresh_start_leaves_the_old_machine_running_meanwhile(story: Story) -> None:
    story.start(B, "CREATED", mode="FRESH", lasts=10)
    both = [action(1, "m1", "started", A), action(3, "m2", "started", B)]
    assert overlapping(*both, calls=story.history.calls) == set()


def test_the_emulators_death_ends_what_ran() -> None:
    both = [action(1, "m1", "started", A), action(3, "m2", "started", B)]
    ledger = Ledger(both, [102.0])
    assert list(ledger.overlaps(KEYS, {}, {})) == []


def test_the_first_boot_is_no_loss() -> None:
    boots = [
        Action(n, n * 1000, "app", "m", "", "started", "flyd", {"roost_session": A}, {"boot": kind})
        for n, kind in enumerate(["cold", "resumed", "cold"], 1)
    ]
    assert Ledger(boots, []).boots() == Boots({A: [3.0]}, {"": [], A: [3.0]})


def test_a_second_machines_first_boot_is_not_again() -> None:
    cold: dict[str, object] = {"boot": "cold"}
    log = [
        Action(n, n * 1000, "app", machine, "", what, "flyd", {"roost_session": A}, detail)
        for n, (machine, what, detail) in enumerate(
            [("m1", "started", cold), ("m2", "started", cold), ("m2", "vanished", {})], 1
        )
    ]
    boots = Ledger(log, [9.0]).boots()
    assert boots.cold == {A: [2.0]}
    assert not boots.broke(A, 0, 2.5)
    assert boots.broke(A, 2.5, 3.5)
    assert not boots.broke(B, 0, 8)
    assert boots.broke(B, 8, 10)
