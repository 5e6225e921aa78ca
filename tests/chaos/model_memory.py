"""Rule 9, judged by clicks: memory that was claimed is there, and what is there is claimed.

Every click on a session's counter gives a new, higher value for as long as its memory lives, and 1
after each cold boot. Nobody else clicks.
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
#: How long the work of a start may go on whose caller is gone, taken over once or twice, in s.
GONE_ON_WITH = 30.0
Wrong = tuple[str, str, Call]
#: Of a session, from one click (or its begin) to another.
BroughtBack = Callable[[str, Call | None, Call], "frozenset[int]"]


@dataclass
class Boots:
    """When each session's machines booted anew, as the provider's own log has it; unix seconds."""

    cold: dict[str, list[float]] = field(default_factory=dict)

    again: dict[str, list[float]] = field(default_factory=dict)
    """When machines that had booted before did so again, or vanished: what they had is gone."""

    def broke(self, session: str, begin: float, end: float) -> bool:
        """Whether the provider may have lost what the session's machines had, in this time."""
        times = (*self.again.get(session, ()), *self.again.get("", ()))
        return any(begin <= at <= end for at in times)

    def between(self, session: str, begin: float, end: float) -> float | None:
        """The first cold boot of the session in this time."""
        times = self.cold.get(session, [])
        at = bisect_right(times, begin)
        return times[at] if at < len(times) and times[at] <= end else None


def wrong_claims(
    calls: list[Call], boots: Boots, brought_back: BroughtBack | None = None
) -> Iterator[Wrong]:
    """The claims of this key's answers that its clicks contradict.

    `brought_back` gives the counts that answers say were restored between two clicks.
    """
    brought_back = brought_back or (lambda *_: frozenset())
    clicks: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.method == "click":
            clicks[call.asked].append(call)
    for session, row in clicks.items():
        yield from _chain(session, row, calls, boots, brought_back)


def _chain(
    session: str, row: list[Call], calls: list[Call], boots: Boots, brought_back: BroughtBack
) -> Iterator[Wrong]:
    """Each click of a session with the one before it."""
    before: Call | None = None
    maybe = 0
    for click in row:
        if click.value is None:
            # Whether one counted that got no answer nobody knows.
            maybe += click.status == "UNKNOWN"
            continue
        restored = brought_back(session, before, click)
        if any(value < click.value <= value + 1 + maybe for value in restored):
            # As was told; `model_states` holds each such answer to what it said.
            pass
        elif before is None or before.value is None:
            if not 1 <= click.value <= 1 + maybe:
                text = f"a new session's first click gave {click.value}"
                yield "NEW_MEANS_EMPTY", text, click
        else:
            kept = before.value < click.value <= before.value + 1 + maybe
            lost = 1 <= click.value <= 1 + maybe
            if not kept and not lost:
                text = f"{before.value} clicks, then {click.value}: neither kept nor lost"
                yield "COUNT_MAKES_NO_SENSE", text, click
            elif not kept:
                yield from _untold(session, before, click, calls, boots)
            elif not lost:
                yield from _understated(session, before, click, calls, boots)
        before, maybe = click, 0


def _untold(
    session: str, before: Call, click: Call, calls: list[Call], boots: Boots
) -> Iterator[Wrong]:
    """Memory was lost between two clicks: no answer after that may claim it, until one told it.

    An answer REUSED claims what was proved at `verify_time`; a crash after that is told by the
    first start after the freshness window (README, "What a start costs at Fly").
    """
    lost_at = boots.between(session, before.began, click.ended) or before.ended
    if _answers_lost(session, calls, lost_at, click.began):
        return
    openings = _openings(session, calls, lost_at, click.began)
    tellers = [call for call in openings if call.continuity < MEMORY or call.outcome == "CREATED"]
    for call in openings:
        # Calls that overlap have no order: what one tells, the other need not.
        told = any(teller.since <= call.ended for teller in tellers)
        if not told and not call.replay and call.verified and call.verify_time > lost_at:
            text = f"{before.value} clicks were lost, and MEMORY was claimed (then {click.value})"
            yield "LOST_MEMORY_CLAIMED", text, call
            return


def _understated(
    session: str, before: Call, click: Call, calls: list[Call], boots: Boots
) -> Iterator[Wrong]:
    """Memory was kept between two clicks: no answer in between proves less.

    Unless it tells of a loss from before, that no answer had told.
    """
    for call in _openings(session, calls, before.ended, click.began):
        less = call.ok and call.verified and call.continuity < MEMORY and not call.replay
        if not less or call.since < before.ended or call.ended > click.began:
            continue
        told = [
            each.verify_time
            for each in calls
            if each.method in OPENING and each.ok and each.named == session
            if each.ended <= call.since and not each.replay
        ]
        # The row's own stamp of a look is from before it.
        since = max(told, default=0.0) - 1.0
        unclear = _answers_lost(session, calls, since, call.ended)
        if not unclear and boots.between(session, since, call.ended) is None:
            text = f"{call.outcome} proved {call.continuity}, and its memory was there"
            yield "LESS_CLAIMED_THAN_THERE", text, call


def _openings(session: str, calls: list[Call], begin: float, end: float) -> list[Call]:
    """Starts of the session that may have been answered in this time, in order of their ends."""
    found = [
        call
        for call in calls
        if call.method in OPENING and call.touches(begin, end) and call.began <= end
        if call.ok and call.named == session
    ]
    return sorted(found, key=lambda call: call.ended)


def _answers_lost(session: str, calls: list[Call], begin: float, end: float) -> bool:
    """Whether a start may have been answered whose answer nobody got.

    Its replica died, or its caller's time was up: its work was gone on with by another, and its
    answer, which told of what was lost, is kept for a repeat that never came. So is that of a start
    whose outcome was committed, and could not be read again: STORAGE_UNAVAILABLE says to repeat it.
    """
    return any(
        call.method in OPENING
        and call.unclear
        and call.reason in ("", "STORAGE_UNAVAILABLE")
        and call.since <= end
        and call.ended + GONE_ON_WITH >= begin
        and call.asked in ("", session)
        for call in calls
    )
