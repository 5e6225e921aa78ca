"""The rules that the history of a key must obey, whatever faults were injected meanwhile.

The model sees the calls, their answers, and two things of the provider's log: the times of cold
boots, and the starts by which Roost saved paused containers. Where calls overlap or were not
answered, several orders are possible: a rule is then broken only if it is broken in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.checkpoint_audit import Audit
from tests.chaos.history import OPENING, Call
from tests.chaos.model_checkpoints import wrong_checkpoints
from tests.chaos.model_errors import wrong_errors
from tests.chaos.model_memory import Boots, wrong_claims
from tests.chaos.model_restores import States, wrong_restores
from tests.chaos.wakes import Wakes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIVE = frozenset({"STARTING", "ACTIVE", "PAUSING", "PAUSED"})
CREATED, MEMORY = "CREATED", 4
#: Calls whose repeat may fail because the checkpoint was deleted meanwhile.
SHOWS_A_CHECKPOINT = frozenset({"CreateCheckpoint", "PinCheckpoint"})


@dataclass(frozen=True)
class Violation:
    """A broken rule, and the call that broke it."""

    key: str
    rule: str
    text: str
    call: Call | None = None


@dataclass
class KeyModel:
    """The calls of one key, and the rules applied to them."""

    key: str
    calls: list[Call]
    boots: Boots = field(default_factory=Boots)
    audit: Audit = field(default_factory=Audit)
    wakes: Wakes = field(default_factory=Wakes)

    def violations(self) -> list[Violation]:
        """Every violation in the history."""
        found: list[tuple[str, str, Call | None]] = [
            *self._opened(),
            *self._ended(),
            *self._repeated(),
            *self._reused_while_paused(),
            *self._less_than_asked(),
            *self._fail_if_live(),
            *self._conflict_without_end(),
            *self._paused_despite_hold(),
        ]
        states = States(self.key, self.calls, self.boots, self.audit)
        found += wrong_claims(self.calls, self.boots, states.brought_back)
        found += wrong_errors(self.calls)
        found += wrong_restores(states)
        found += wrong_checkpoints(self.key, self.calls, self.audit)
        return [Violation(self.key, rule, text, call) for rule, text, call in found]

    # --- what calls may have done --------------------------------------------------------------

    def _may_end(self, session: str, begin: float, end: float) -> bool:
        """Whether a call may have ended or replaced the session in this time, even temporarily."""
        return any(
            call.may_overlap(begin, end) and (call.ok or call.unclear)
            for call in self.calls
            if (call.method == "EndSession" and call.request_session == session)
            or (call.method == "StartSession" and call.mode == "FRESH")
        )

    def _may_undelete(self, session: str, begin: float, end: float) -> bool:
        return any(
            call.may_overlap(begin, end) and (call.ok or call.unclear)
            for call in self.calls
            if call.method == "UndeleteSession" and call.request_session == session
        )

    def _first_answers(self, *methods: str) -> Iterator[Call]:
        """The calls of these methods that were answered, without repeats of a request id."""
        for call in self.calls:
            if call.ok and call.method in methods and not call.replay:
                yield call

    # --- rules ---------------------------------------------------------------------------------

    def _opened(self) -> Iterator[tuple[str, str, Call]]:
        """One live session per key: no session is opened while another is certainly live."""
        openings = [
            call for call in self._first_answers(*OPENING, "UndeleteSession") if call.state in LIVE
        ]
        for call in openings:
            if call.mode == "FRESH":
                continue
            for before in openings:
                other = before.answer_session
                if other == call.answer_session or before.ended > call.first_began:
                    continue
                if not self._may_end(other, before.first_began, call.ended):
                    yield (
                        "ONE_LIVE_SESSION",
                        f"{call.answer_session} was opened while {other} was live throughout",
                        call,
                    )
                    break

    def _ended(self) -> Iterator[tuple[str, str, Call]]:
        """An ended session stays ended unless it is undeleted; one ended `now`, always."""
        comebacks = [
            call for call in self._first_answers(*OPENING, "UndeleteSession") if call.state in LIVE
        ]
        for end in self._first_answers("EndSession"):
            for call in comebacks:
                if call.answer_session != end.request_session or call.first_began <= end.ended:
                    continue
                if end.now:
                    yield (
                        "ENDED_NOW_IS_FINAL",
                        f"{call.answer_session} was undeleted after an end with `now`",
                        call,
                    )
                elif call.method != "UndeleteSession" and not self._may_undelete(
                    end.request_session, end.first_began, call.ended
                ):
                    yield (
                        "REUSED_AFTER_END",
                        f"{call.answer_session} was opened after its end",
                        call,
                    )
        for fresh in self._first_answers("StartSession"):
            if fresh.mode != "FRESH":
                continue
            known = {c.answer_session for c in comebacks if c.ended < fresh.first_began} - {
                fresh.answer_session
            }
            for call in comebacks:
                if call.answer_session not in known or call.first_began <= fresh.ended:
                    continue
                if call.method == "UndeleteSession":
                    continue
                if not self._may_undelete(call.answer_session, fresh.first_began, call.ended):
                    text = f"{call.answer_session} was opened after it was replaced"
                    yield "REUSED_AFTER_END", text, call

    def _repeated(self) -> Iterator[tuple[str, str, Call]]:
        """Calls with the same request id have the same outcome."""
        first: dict[tuple[str, str], Call] = {}
        for call in sorted(self.calls, key=lambda each: each.ended):
            name = (call.method, call.request_id)
            if not call.request_id or call.unclear or call.unreached:
                continue
            earlier = first.setdefault(name, call)
            if earlier is call:
                continue
            gone = call.reason == "CHECKPOINT_MISSING" and call.method in SHOWS_A_CHECKPOINT
            if earlier.recorded != call.recorded and not (earlier.ok and gone):
                text = f"answered {earlier.recorded} and then {call.recorded}"
                yield "SAME_ID_SAME_OUTCOME", text, call

    def _reused_while_paused(self) -> Iterator[tuple[str, str, Call]]:
        """Between an acknowledged pause and a REUSED answer there is a start of the session.

        It is a start by another call, or one by Roost to save the state of the paused container.
        The latter counts only if the container has not been paused again before the call. If it was
        a cold boot, the memory is lost and the answer must say so.
        """
        for pause in self._first_answers("PauseSession", "StopSession"):
            if pause.state != "PAUSED":
                continue
            for call in self._first_answers(*OPENING):
                if call.outcome != "REUSED" or call.answer_session != pause.request_session:
                    continue
                if call.first_began <= pause.ended:
                    continue
                # A click may start the machine, if the provider's proxy does that.
                started = any(
                    other.method in (*OPENING, "click")
                    and other.may_overlap(pause.first_began, call.ended)
                    for other in self.calls
                    if other is not call and other.request_id != (call.request_id or "-")
                )
                if started:
                    continue
                session = call.answer_session
                wakes = self.wakes.between(session, pause.first_began, call.first_began, call.ended)
                if not wakes:
                    yield "REUSED_WHILE_PAUSED", f"{session} was paused and is REUSED", call
                elif call.continuity >= MEMORY and all(wake.cold for wake in wakes):
                    text = f"{session} was booted to be saved, and MEMORY was claimed"
                    yield "LOST_MEMORY_CLAIMED", text, call

    def _less_than_asked(self) -> Iterator[tuple[str, str, Call]]:
        """min_continuity holds for every start of an existing session."""
        for call in self._first_answers(*OPENING):
            there = any(
                other.answer_session == call.answer_session and other.ended < call.first_began
                for other in self._first_answers(*OPENING)
            )
            new = call.outcome == CREATED and not there
            if call.min_continuity and call.continuity < call.min_continuity and not new:
                text = f"{call.outcome} with {call.continuity}, {call.min_continuity} was required"
                yield "LESS_THAN_ASKED", text, call

    def _fail_if_live(self) -> Iterator[tuple[str, str, Call]]:
        for call in self.calls:
            if call.mode != "FAIL_IF_LIVE":
                continue
            if call.ok and not call.replay and (call.outcome != CREATED or call.joined):
                yield "FAIL_IF_LIVE", f"it was answered with {call.outcome}", call
            if call.reason == "LIVE_SESSION_EXISTS" and not any(
                other is not call
                and other.method in (*OPENING, "UndeleteSession")
                and other.first_began < call.ended
                for other in self.calls
            ):
                yield "FAIL_IF_LIVE", "LIVE_SESSION_EXISTS for a key without any start", call

    def _paused_despite_hold(self) -> Iterator[tuple[str, str, Call]]:
        """A session with a hold is not paused unless a call pauses it."""
        for hold in self._first_answers("PutHold"):
            within = [
                call
                for call in self._first_answers(*OPENING)
                if call.answer_session == hold.request_session
                and call.first_began > hold.ended
                and call.ended < hold.hold_until
            ]
            for before in within:
                for call in within:
                    if call.first_began <= before.ended or call.outcome != "RESUMED" or call.joined:
                        continue
                    if not self._may_pause(hold.request_session, before.first_began, call):
                        yield (
                            "HOLD_IGNORED",
                            f"{call.answer_session} was paused despite a hold",
                            call,
                        )

    def _may_pause(self, session: str, begin: float, until: Call) -> bool:
        """Whether a call may have paused the session or released a hold in this time."""
        return any(
            call.may_overlap(begin, until.ended)
            for call in self.calls
            if call is not until
            and (
                (
                    call.request_session == session
                    and call.method not in (*OPENING, "click", "TouchSession")
                )
                or call.mode == "FRESH"
                # A failed start pauses again what it brought up.
                or (call.method in OPENING and call.unclear)
            )
        )

    def _conflict_without_end(self) -> Iterator[tuple[str, str, Call]]:
        """A start fails with SESSION_STATE_CONFLICT only if its session was ended meanwhile."""
        for call in self.calls:
            if call.method != "StartSession" or call.reason != "SESSION_STATE_CONFLICT":
                continue
            ended = any(
                other.method == "EndSession" and other.may_overlap(call.first_began, call.ended)
                for other in self.calls
            )
            if not ended:
                yield "CONFLICT_WITHOUT_END", "no call ended the session that it started", call


def judge(
    histories: Mapping[str, list[Call]],
    boots: Boots | None = None,
    audit: Audit | None = None,
    wakes: Wakes | None = None,
) -> list[Violation]:
    """The violations of all keys."""
    boots, audit, wakes = boots or Boots(), audit or Audit(), wakes or Wakes()
    return [
        violation
        for key, calls in sorted(histories.items())
        for violation in KeyModel(key, calls, boots, audit, wakes).violations()
    ]
