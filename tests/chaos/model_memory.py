"""Rules about memory, checked by clicks: claimed memory exists, and existing memory is claimed.

A click on a session's counter returns the previous value plus one while its memory is kept, and 1
after a cold boot. Only the callers of the run click.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.chaos.history import OPENING, Call

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMORY = 4
#: Longest time, in s, for which a start continues after its caller left, including takeovers.
TAKEOVER_SECONDS = 30.0
Finding = tuple[str, str, Call]
#: (session, click before or None, click) → the counts that may have been restored in between.
BroughtBack = Callable[[str, Call | None, Call], "frozenset[int]"]


@dataclass
class Boots:
    """The times (unix seconds) of cold boots, from the provider's log."""

    cold: dict[str, list[float]] = field(default_factory=dict)
    """By session: cold boots after the first one."""

    again: dict[str, list[float]] = field(default_factory=dict)
    """By session: cold boots of a machine that ran before, and machines that vanished.

    The key "" has the deaths of the emulator, which concern every session.
    """

    def broke(self, session: str, begin: float, end: float) -> bool:
        """Whether the provider may have lost state of the session's machines in this time."""
        times = (*self.again.get(session, ()), *self.again.get("", ()))
        return any(begin <= at <= end for at in times)

    def between(self, session: str, begin: float, end: float) -> float | None:
        """The first cold boot of the session in this time."""
        times = self.cold.get(session, [])
        at = bisect_right(times, begin)
        return times[at] if at < len(times) and times[at] <= end else None


def wrong_claims(
    calls: list[Call], boots: Boots, brought_back: BroughtBack | None = None
) -> Iterator[Finding]:
    """The claims of this key's answers that its clicks contradict.

    `brought_back` returns the counts that may have been restored between two clicks.
    """
    brought_back = brought_back or (lambda *_: frozenset())
    clicks: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.method == "click":
            clicks[call.request_session].append(call)
    for session, row in clicks.items():
        yield from _chain(session, row, calls, boots, brought_back)


def _chain(
    session: str, row: list[Call], calls: list[Call], boots: Boots, brought_back: BroughtBack
) -> Iterator[Finding]:
    """Compare each click on a session with the one before it."""
    before: Call | None = None
    maybe = 0
    for click in row:
        if click.value is None:
            # A click without an answer may or may not have counted.
            maybe += click.status == "UNKNOWN"
            continue
        restored_number = brought_back(session, before, click)
        if any(value < click.value <= value + 1 + maybe for value in restored_number):
            # Consistent with a restore; `model_restores` checks which one.
            pass
        elif before is None or before.value is None:
            if not 1 <= click.value <= 1 + maybe:
                text = f"a new session's first click gave {click.value}"
                yield "NEW_SESSION_NOT_EMPTY", text, click
        else:
            kept = before.value < click.value <= before.value + 1 + maybe
            lost = 1 <= click.value <= 1 + maybe
            if not kept and not lost:
                text = f"{before.value} clicks, then {click.value}: neither kept nor lost"
                yield "IMPOSSIBLE_COUNT", text, click
            elif not kept:
                yield from _unreported_loss(session, before, click, calls, boots)
            elif not lost:
                yield from _understated(session, before, click, calls, boots)
        before, maybe = click, 0


def _unreported_loss(
    session: str, before: Call, click: Call, calls: list[Call], boots: Boots
) -> Iterator[Finding]:
    """Memory was lost between two clicks: no answer may claim it before one reported the loss.

    A REUSED answer claims what was verified at `verify_time`; a crash after that is reported by the
    first start after the freshness window (README, "What a start costs at Fly").
    """
    lost_at = boots.between(session, before.began, click.ended) or before.ended
    if _answers_lost(session, calls, lost_at, click.began):
        return
    openings = _openings(session, calls, lost_at, click.began)
    reporting = [call for call in openings if call.continuity < MEMORY or call.outcome == "CREATED"]
    for call in openings:
        # Calls that overlap have no order: if one reports the loss, the other need not.
        reported = any(other.first_began <= call.ended for other in reporting)
        if not reported and not call.replay and call.verified and call.verify_time > lost_at:
            text = f"{before.value} clicks were lost, and MEMORY was claimed (then {click.value})"
            yield "LOST_MEMORY_CLAIMED", text, call
            return


def _understated(
    session: str, before: Call, click: Call, calls: list[Call], boots: Boots
) -> Iterator[Finding]:
    """Memory was kept between two clicks: no answer in between reports less.

    Except for an answer that reports an earlier loss that no answer had reported.
    """
    for call in _openings(session, calls, before.ended, click.began):
        less = call.ok and call.verified and call.continuity < MEMORY and not call.replay
        if not less or call.first_began < before.ended or call.ended > click.began:
            continue
        verify_times = [
            each.verify_time
            for each in calls
            if each.method in OPENING and each.ok and each.answer_session == session
            if each.ended <= call.first_began and not each.replay
        ]
        # The stored time of a verification is slightly before it.
        since = max(verify_times, default=0.0) - 1.0
        unclear = _answers_lost(session, calls, since, call.ended)
        if not unclear and boots.between(session, since, call.ended) is None:
            text = f"{call.outcome} verified {call.continuity}, and the memory was kept"
            yield "LESS_CLAIMED_THAN_KEPT", text, call


def _openings(session: str, calls: list[Call], begin: float, end: float) -> list[Call]:
    """The starts of the session answered in this time, by the time of the answer."""
    found = [
        call
        for call in calls
        if call.method in OPENING and call.may_overlap(begin, end) and call.began <= end
        if call.ok and call.answer_session == session
    ]
    return sorted(found, key=lambda call: call.ended)


def _answers_lost(session: str, calls: list[Call], begin: float, end: float) -> bool:
    """Whether a start may have completed whose answer did not reach its caller.

    Its replica died, or its deadline was over, and another replica completed its work. Its answer,
    which reported the loss, is stored for a repeat that never came. So is that of a start whose
    outcome was committed but could not be read back (STORAGE_UNAVAILABLE).
    """
    return any(
        call.method in OPENING
        and call.unclear
        and call.reason in ("", "STORAGE_UNAVAILABLE")
        and call.first_began <= end
        and call.ended + TAKEOVER_SECONDS >= begin
        and call.request_session in ("", session)
        for call in calls
    )
