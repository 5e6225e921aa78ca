"""What must hold of a key's history, whatever went wrong meanwhile. Each rule names itself.

The model knows what callers saw, and of the provider only when machines booted anew. Where calls
overlap or were not answered it gives the benefit of the doubt, and only there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.audit import Audit
from tests.chaos.history import OPENING, Call
from tests.chaos.model_checkpoints import wrong_checkpoints
from tests.chaos.model_errors import wrong_answers
from tests.chaos.model_memory import Boots, wrong_claims
from tests.chaos.model_restores import wrong_states
from tests.chaos.model_states import States

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

LIVE = frozenset({"STARTING", "ACTIVE", "PAUSING", "PAUSED"})
CREATED, MEMORY = "CREATED", 4
#: A repeat finds it deleted, maybe.
SHOWS_A_CHECKPOINT = frozenset({"CreateCheckpoint", "PinCheckpoint"})


@dataclass(frozen=True)
class Violation:
    """A rule that was broken, by which call."""

    key: str
    rule: str
    text: str
    call: Call | None = None


@dataclass
class KeyModel:
    """One key's calls, and what follows from them."""

    key: str
    calls: list[Call]
    boots: Boots = field(default_factory=Boots)
    audit: Audit = field(default_factory=Audit)

    def violations(self) -> list[Violation]:
        """Every rule that the history breaks."""
        found: list[tuple[str, str, Call | None]] = [
            *self._opened(),
            *self._ended(),
            *self._repeated(),
            *self._reused_at_rest(),
            *self._less_than_asked(),
            *self._fail_if_live(),
            *self._broken_off(),
            *self._idle_in_spite_of_a_hold(),
        ]
        states = States(self.key, self.calls, self.boots, self.audit)
        found += wrong_claims(self.calls, self.boots, states.brought_back)
        found += wrong_answers(self.calls)
        found += wrong_states(states)
        found += wrong_checkpoints(self.key, self.calls, self.audit)
        return [Violation(self.key, rule, text, call) for rule, text, call in found]

    # --- what calls may do ---------------------------------------------------------------------

    def _may_end(self, session: str, begin: float, end: float) -> bool:
        """Whether a call may have taken the session's key away in this time, for a while even."""
        return any(
            call.touches(begin, end) and (call.ok or call.unclear)
            for call in self.calls
            if (call.method == "EndSession" and call.asked == session)
            or (call.method == "StartSession" and call.mode == "FRESH")
        )

    def _may_undelete(self, session: str, begin: float, end: float) -> bool:
        return any(
            call.touches(begin, end) and (call.ok or call.unclear)
            for call in self.calls
            if call.method == "UndeleteSession" and call.asked == session
        )

    def _news(self, *methods: str) -> Iterator[Call]:
        """The calls of these methods that were answered for the first time."""
        for call in self.calls:
            if call.ok and call.method in methods and not call.replay:
                yield call

    # --- rules ---------------------------------------------------------------------------------

    def _opened(self) -> Iterator[tuple[str, str, Call]]:
        """One live session per key: nothing is opened beside one that was certainly live."""
        openings = [call for call in self._news(*OPENING, "UndeleteSession") if call.state in LIVE]
        for call in openings:
            if call.mode == "FRESH":
                continue
            for before in openings:
                other = before.named
                if other == call.named or before.ended > call.since:
                    continue
                if not self._may_end(other, before.since, call.ended):
                    yield (
                        "ONE_LIVE_SESSION",
                        f"{call.named} was opened while {other} was live throughout",
                        call,
                    )
                    break

    def _ended(self) -> Iterator[tuple[str, str, Call]]:
        """What was ended stays ended, unless it is undeleted; what was ended now, for ever."""
        comebacks = [call for call in self._news(*OPENING, "UndeleteSession") if call.state in LIVE]
        for end in self._news("EndSession"):
            for call in comebacks:
                if call.named != end.asked or call.since <= end.ended:
                    continue
                if end.now:
                    yield "NOW_IS_FOR_EVER", f"{call.named} came back after its end now", call
                elif call.method != "UndeleteSession" and not self._may_undelete(
                    end.asked, end.since, call.ended
                ):
                    yield "REUSED_AFTER_END", f"{call.named} was opened after its end", call
        for fresh in self._news("StartSession"):
            if fresh.mode != "FRESH":
                continue
            known = {c.named for c in comebacks if c.ended < fresh.since} - {fresh.named}
            for call in comebacks:
                if call.named not in known or call.since <= fresh.ended:
                    continue
                if call.method == "UndeleteSession":
                    continue
                if not self._may_undelete(call.named, fresh.since, call.ended):
                    text = f"{call.named} was opened after {fresh.named} took its place"
                    yield "REUSED_AFTER_END", text, call

    def _repeated(self) -> Iterator[tuple[str, str, Call]]:
        """The same request id has the same outcome."""
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

    def _reused_at_rest(self) -> Iterator[tuple[str, str, Call]]:
        """Between an acknowledged pause and a reuse somebody started the session."""
        for pause in self._news("PauseSession", "StopSession"):
            if pause.state != "PAUSED":
                continue
            for call in self._news(*OPENING):
                if call.outcome != "REUSED" or call.named != pause.asked:
                    continue
                if call.since <= pause.ended:
                    continue
                # A click may wake what rests, where the provider's proxy does that.
                started = any(
                    other.method in (*OPENING, "click") and other.touches(pause.since, call.ended)
                    for other in self.calls
                    if other is not call and other.request_id != (call.request_id or "-")
                )
                if not started:
                    yield "REUSED_AT_REST", f"{call.named} was paused and is REUSED", call

    def _less_than_asked(self) -> Iterator[tuple[str, str, Call]]:
        """min_continuity holds for every session that was there before."""
        for call in self._news(*OPENING):
            there = any(
                other.named == call.named and other.ended < call.since
                for other in self._news(*OPENING)
            )
            new = call.outcome == CREATED and not there
            if call.least and call.continuity < call.least and not new:
                text = f"asked for {call.least}, answered {call.outcome} with {call.continuity}"
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
                and other.since < call.ended
                for other in self.calls
            ):
                yield "FAIL_IF_LIVE", "refused at a key that nobody had started", call

    def _idle_in_spite_of_a_hold(self) -> Iterator[tuple[str, str, Call]]:
        """While a hold is in force nothing rests that nobody put to rest."""
        for hold in self._news("PutHold"):
            within = [
                call
                for call in self._news(*OPENING)
                if call.named == hold.asked and call.since > hold.ended and call.ended < hold.until
            ]
            for before in within:
                for call in within:
                    if call.since <= before.ended or call.outcome != "RESUMED" or call.joined:
                        continue
                    if not self._may_rest(hold.asked, before.since, call):
                        yield "HOLD_IGNORED", f"{call.named} went to rest under a hold", call

    def _may_rest(self, session: str, begin: float, until: Call) -> bool:
        """Whether a call may have put the session to rest, or given a hold back, in this time."""
        return any(
            call.touches(begin, until.ended)
            for call in self.calls
            if call is not until
            and (
                (call.asked == session and call.method not in (*OPENING, "click", "TouchSession"))
                or call.mode == "FRESH"
                # One that fails puts back to rest what it brought up.
                or (call.method in OPENING and call.unclear)
            )
        )

    def _broken_off(self) -> Iterator[tuple[str, str, Call]]:
        """A start is in conflict with nothing but an end of its session."""
        for call in self.calls:
            if call.method != "StartSession" or call.reason != "SESSION_STATE_CONFLICT":
                continue
            ended = any(
                other.method == "EndSession" and other.touches(call.since, call.ended)
                for other in self.calls
            )
            if not ended:
                yield "BROKEN_OFF", "nobody ended what it started", call


def judge(
    histories: Mapping[str, list[Call]], boots: Boots | None = None, audit: Audit | None = None
) -> list[Violation]:
    """The violations of all keys."""
    audit = audit or Audit()
    return [
        violation
        for key, calls in sorted(histories.items())
        for violation in KeyModel(key, calls, boots or Boots(), audit).violations()
    ]
