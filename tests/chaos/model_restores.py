"""Rules about saved state: a checkpoint holds a count that was true, and a restore brings it back.

A checkpoint's SHA-256 tells its count. The times at which it was READY and deleted come from the
audit of the database; everything else comes from the callers' histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.chaos.history import OPENING, Call
from tests.chaos.model_memory import TAKEOVER_SECONDS
from tests.chaos.projects import idle_of, recreates, saves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.checkpoint_audit import Audit, AuditedCheckpoint
    from tests.chaos.model_memory import Boots

ROLLBACKS = frozenset({"RestoreCheckpoint", "ForkSession"})
LONG_AGO = float("-inf")
Finding = tuple[str, str, "Call"]
STOPPING_CALLS = frozenset({"PauseSession", "StopSession", "EndSession"})
#: A session counts as in use until this long before its idle timeout, in s.
MARGIN = 0.5


@dataclass(frozen=True)
class States:
    """The calls of one key, and the checkpoints from which its sessions can be restored."""

    key: str
    calls: list[Call]
    boots: Boots
    audit: Audit

    def clicks(self, session: str) -> list[Call]:
        """The clicks on a session, in order; they never overlap."""
        return [
            call
            for call in self.calls
            if call.method == "click" and call.request_session == session
        ]

    def openings(self, session: str, begin: float, end: float) -> list[Call]:
        """The calls that may have started the session in this time."""
        return [
            call
            for call in self.calls
            if call.method in OPENING and call.may_overlap(begin, end)
            if (call.ok and call.answer_session == session) or _may_open(call, session)
        ]

    def held_by(self, opening: Call) -> set[int] | None:
        """The counts that the checkpoint of a RESTORED answer may hold; None if none is known."""
        if opening.method == "ForkSession":
            kept = self.audit.checkpoints.get(opening.checkpoint_id)
            found = [kept] if kept is not None else []
        else:
            found = self._numbered(opening.answer_session, opening.restored_number)
        counts = {kept.value for kept in found if kept.value is not None}
        return counts or None

    def _numbered(self, session: str, number: int) -> list[AuditedCheckpoint]:
        """The checkpoints of this number: of the key, or of the key that it was forked from."""
        own = self.audit.numbered(self.key, number)
        forks = [call for call in self.calls if call.method == "ForkSession"]
        sources = [
            self.audit.checkpoints.get(call.checkpoint_id)
            for call in forks
            if call.answer_session == session
        ]
        found = [kept for kept in sources if kept is not None and kept.number == number]
        return [*found, *([own] if own is not None else [])]

    def rolled_back(self, session: str, begin: float, end: float) -> bool:
        """Whether a RestoreCheckpoint may have acted on the session in this time."""
        return any(
            call.first_began <= end
            and call.last_effect + (TAKEOVER_SECONDS if call.unclear else 0) >= begin
            for call in self.calls
            if call.method == "RestoreCheckpoint" and call.request_session == session
            if call.ok or call.unclear
        )

    def brought_back(self, session: str, before: Call | None, click: Call) -> frozenset[int]:
        """The counts that may have been restored between two clicks on the session.

        For an answer the count of its checkpoint; for a lost answer any count of the key.
        """
        if not saves(self.key):
            return frozenset()
        begin = LONG_AGO if before is None else before.began
        counts: set[int] = set()
        for opening in self.openings(session, begin, click.ended):
            if opening.ok and opening.outcome != "RESTORED":
                continue
            known = self.held_by(opening) if opening.ok else None
            counts |= self.any_count() if known is None else known
        if self.rolled_back(session, begin, click.ended):
            counts |= self.any_count()
        return frozenset(counts)

    def any_count(self) -> set[int]:
        """All counts that the key ever saved or received by a fork."""
        forked = [
            self.audit.checkpoints.get(call.checkpoint_id)
            for call in self.calls
            if call.checkpoint_id
        ]
        every = [*self.audit.of(self.key), *(kept for kept in forked if kept is not None)]
        return {kept.value for kept in every if kept.value is not None}


def wrong_restores(states: States) -> Iterator[Finding | tuple[str, str, None]]:
    """The rules that the answers and checkpoints of the key break."""
    if not saves(states.key):
        return
    for kept in states.audit.of(states.key):
        yield from _saved(states, kept)
    for call in states.calls:
        if call.method in OPENING and call.ok and not call.replay:
            yield from _restored(states, call)
            yield from _wrong_number(states, call)
            yield from _older(states, call)
            yield from _lost(states, call)


def _saved(states: States, kept: AuditedCheckpoint) -> Iterator[tuple[str, str, None]]:
    """A checkpoint holds a count that was true between the begin and the end of its capture."""
    if kept.value is None:
        yield "SAVED_NO_COUNT", f"number {kept.number} holds no count", None
        return
    clicks = states.clicks(kept.session)
    before = [c for c in clicks if c.value is not None and c.ended < kept.began]
    last = before[-1] if before else None
    since = LONG_AGO if last is None else last.began
    bases = {0 if last is None or last.value is None else last.value}
    if states.boots.between(kept.session, since, kept.ready) is not None:
        bases.add(0)
    if states.boots.broke(kept.session, since, kept.ready):
        bases.add(0)
    changed = any(
        not call.ok or call.continuity < 4 or call.method in ROLLBACKS
        for call in states.openings(kept.session, since, kept.ready)
    )
    if changed or states.rolled_back(kept.session, since, kept.ready):
        bases |= {0, *states.any_count()}
    more = sum(
        click.status != "REFUSED" and click is not last and click.may_overlap(since, kept.ready)
        for click in clicks
    )
    if not any(base <= kept.value <= base + more for base in bases):
        text = f"number {kept.number} of {kept.session} holds {kept.value}; true were {bases}"
        yield "SAVED_WRONG_COUNT", f"{text} and up to {more} more", None


def _restored(states: States, opening: Call) -> Iterator[Finding]:
    """The first click after a RESTORED answer continues the count of that checkpoint."""
    if opening.outcome != "RESTORED":
        return
    held, session = states.held_by(opening), opening.answer_session
    clicks = states.clicks(session)
    later = [c for c in clicks if c.value is not None and c.began >= opening.ended]
    if held is None or not later:
        return
    click = later[0]
    bases = set(held)
    others = [
        call
        for call in states.openings(session, opening.first_began, click.began)
        if call is not opening and call.request_id != (opening.request_id or "-")
        if not call.ok or call.continuity < 4
    ]
    if others or states.boots.broke(session, opening.first_began, click.ended):
        bases |= {0, *(states.any_count() if others else ())}
    if any(other.method in ROLLBACKS for other in others):
        return
    maybe = sum(
        c.status != "REFUSED" and c.may_overlap(opening.first_began, click.began) for c in clicks
    ) - (click.may_overlap(opening.first_began, click.began))
    if click.value is None or any(base < click.value <= base + 1 + maybe for base in bases):
        return
    text = f"number {opening.restored_number} holds {held}, and the first click gave {click.value}"
    yield "RESTORED_WRONG_COUNT", f"{text} ({maybe} may have counted)", opening


def _wrong_number(states: States, opening: Call) -> Iterator[Finding]:
    """A call that names a checkpoint restores that one and reports its number."""
    requested = opening.checkpoint_number
    if opening.method == "ForkSession" and opening.checkpoint_id in states.audit.checkpoints:
        requested = states.audit.checkpoints[opening.checkpoint_id].number
    if opening.method in ROLLBACKS and opening.restored_number != requested:
        yield (
            "RESTORED_WRONG_NUMBER",
            f"asked for {requested}, restored {opening.restored_number}",
            opening,
        )


def _older(states: States, opening: Call) -> Iterator[Finding]:
    """A start restores the newest checkpoint that was READY when it began and not deleted.

    After a rollback older checkpoints come first, so the rule does not apply.
    """
    if opening.outcome != "RESTORED" or opening.method in ROLLBACKS:
        return
    for kept in states.audit.of(states.key):
        if kept.session != opening.answer_session or kept.number <= opening.restored_number:
            continue
        there = kept.ready < opening.first_began and kept.gone > opening.ended
        if there and not _other_lineage(states, kept, opening):
            text = (
                f"number {kept.number} was READY, and number {opening.restored_number} was restored"
            )
            yield "RESTORED_OLDER", text, opening
            return


def _other_lineage(states: States, kept: AuditedCheckpoint, opening: Call) -> bool:
    """Whether the session may not descend from this checkpoint."""
    ended = any(
        call.method == "EndSession" or call.mode == "FRESH"
        for call in states.calls
        if call.may_overlap(kept.began, kept.ready)
    )
    return ended or states.rolled_back(opening.answer_session, kept.began, opening.ended)


def _lost(states: States, opening: Call) -> Iterator[Finding]:
    """An acknowledged click is not lost when the service itself replaces the container.

    It may be lost if the provider lost the machine, or if it came while the session was stopped.
    """
    lost = opening.outcome in ("RESTORED", "CREATED") and opening.method not in ROLLBACKS
    click = _last_certain_click(states, opening) if lost else None
    if click is None or click.value is None or opening.joined:
        return
    session = opening.answer_session
    if states.boots.broke(session, click.began, opening.ended):
        return
    if states.rolled_back(session, click.began, opening.ended):
        return
    held = states.held_by(opening) if opening.outcome == "RESTORED" else {0}
    if held is not None and max(held) < click.value:
        text = f"{click.value} was acknowledged before the stop, and {max(held)} was restored"
        yield "ACKNOWLEDGED_COUNT_LOST", f"{text}; no machine of it was lost", opening


def _last_certain_click(states: States, opening: Call) -> Call | None:
    """The last click before `opening` that every later checkpoint must contain.

    It came soon after a start, before the idle timeout, and no call that stops the container
    overlaps it.
    """
    session, idle_after = opening.answer_session, idle_of(states.key) - MARGIN
    answered = [c for c in states.clicks(session) if c.value is not None]
    for click in reversed([c for c in answered if c.ended < opening.first_began]):
        came = [
            call
            for call in states.openings(session, click.began - idle_after, click.began)
            if call.ok and not call.replay and call.ended <= click.began
        ]
        for start in came:
            if click.ended - start.began < idle_after and not any(
                _may_stop_container(call, session, states.key)
                and call.may_overlap(start.first_began, click.ended)
                for call in states.calls
                if call is not start
            ):
                return click
    return None


def _may_stop_container(call: Call, session: str, key: str) -> bool:
    """Whether the call may stop or destroy the session's container, even temporarily."""
    if call.method in STOPPING_CALLS:
        return call.request_session == session
    if call.method in OPENING:
        # A failed start pauses again what it brought up.
        return recreates(key) or call.mode == "FRESH" or not call.ok
    return False


def _may_open(call: Call, session: str) -> bool:
    """Whether an unanswered call may have been about the session."""
    return call.unclear and call.request_session in ("", session)
