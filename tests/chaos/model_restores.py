"""Saved state, judged by clicks: what a checkpoint holds was true, and what it brings is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.history import OPENING
from tests.chaos.model_states import LONG_AGO, ROLLBACKS
from tests.chaos.projects import idle_of, recreates, saves

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.audit import Kept
    from tests.chaos.history import Call
    from tests.chaos.model_states import States

Wrong = tuple[str, str, "Call"]
RESTS = frozenset({"PauseSession", "StopSession", "EndSession"})
#: How much sooner than it is idle a session counts as in use, in s.
MARGIN = 0.5


def wrong_states(states: States) -> Iterator[Wrong | tuple[str, str, None]]:
    """The rules that the key's answers and checkpoints break."""
    if not saves(states.key):
        return
    for kept in states.audit.of(states.key):
        yield from _saved(states, kept)
    for call in states.calls:
        if call.method in OPENING and call.ok and not call.replay:
            yield from _restored(states, call)
            yield from _another(states, call)
            yield from _older(states, call)
            yield from _lost(states, call)


def _saved(states: States, kept: Kept) -> Iterator[tuple[str, str, None]]:
    """It holds a count that was true between the begin and the end of its capture."""
    if kept.value is None:
        yield "SAVED_NONSENSE", f"number {kept.number} holds no count", None
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
        click.status != "REFUSED" and click is not last and click.touches(since, kept.ready)
        for click in clicks
    )
    if not any(base <= kept.value <= base + more for base in bases):
        text = f"number {kept.number} of {kept.session} holds {kept.value}; true were {bases}"
        yield "SAVED_WHAT_NEVER_WAS", f"{text} and up to {more} more", None


def _restored(states: States, opening: Call) -> Iterator[Wrong]:
    """The first click after an answer RESTORED finds what that checkpoint holds."""
    if opening.outcome != "RESTORED":
        return
    held, session = states.held_by(opening), opening.named
    clicks = states.clicks(session)
    later = [c for c in clicks if c.value is not None and c.began >= opening.ended]
    if held is None or not later:
        return
    click = later[0]
    bases = set(held)
    others = [
        call
        for call in states.openings(session, opening.since, click.began)
        if call is not opening and call.request_id != (opening.request_id or "-")
        if not call.ok or call.continuity < 4
    ]
    if others or states.boots.broke(session, opening.since, click.ended):
        bases |= {0, *(states.any_count() if others else ())}
    if any(other.method in ROLLBACKS for other in others):
        return
    maybe = sum(c.status != "REFUSED" and c.touches(opening.since, click.began) for c in clicks) - (
        click.touches(opening.since, click.began)
    )
    if click.value is None or any(base < click.value <= base + 1 + maybe for base in bases):
        return
    text = f"number {opening.restored} holds {held}, and the first click gave {click.value}"
    yield "RESTORED_SOMETHING_ELSE", f"{text} ({maybe} may have counted)", opening


def _another(states: States, opening: Call) -> Iterator[Wrong]:
    """Whoever asks for one by its number gets that one, and says so."""
    asked = opening.which
    if opening.method == "ForkSession" and opening.target in states.audit.kept:
        asked = states.audit.kept[opening.target].number
    if opening.method in ROLLBACKS and opening.restored != asked:
        yield "RESTORED_ANOTHER", f"asked for {asked}, brought back {opening.restored}", opening


def _older(states: States, opening: Call) -> Iterator[Wrong]:
    """A start brings back nothing older than what was READY and there when it began.

    Not so after a rollback, from which on older ones come first.
    """
    if opening.outcome != "RESTORED" or opening.method in ROLLBACKS:
        return
    for kept in states.audit.of(states.key):
        if kept.session != opening.named or kept.number <= opening.restored:
            continue
        there = kept.ready < opening.since and kept.gone > opening.ended
        if there and not _beside(states, kept, opening):
            text = f"number {kept.number} was READY, and number {opening.restored} was restored"
            yield "RESTORED_AN_OLDER_ONE", text, opening
            return


def _beside(states: States, kept: Kept, opening: Call) -> bool:
    """Whether the session may not have descended from it by then."""
    ended = any(
        call.method == "EndSession" or call.mode == "FRESH"
        for call in states.calls
        if call.touches(kept.began, kept.ready)
    )
    return ended or states.rolled_back(opening.named, kept.began, opening.ended)


def _lost(states: States, opening: Call) -> Iterator[Wrong]:
    """What was acknowledged is lost by no container that the service itself destroyed.

    Only by the provider, or where it came while the session was being put to rest.
    """
    lost = opening.outcome in ("RESTORED", "CREATED") and opening.method not in ROLLBACKS
    click = _certain(states, opening) if lost else None
    if click is None or click.value is None or opening.joined:
        return
    session = opening.named
    if states.boots.broke(session, click.began, opening.ended):
        return
    if states.rolled_back(session, click.began, opening.ended):
        return
    held = states.held_by(opening) if opening.outcome == "RESTORED" else {0}
    if held is not None and max(held) < click.value:
        text = f"{click.value} was acknowledged at rest, and {max(held)} came back"
        yield "SAVED_AND_LOST", f"{text}; no machine of it was lost", opening


def _certain(states: States, opening: Call) -> Call | None:
    """The last click before it that nobody's rest of the session overlaps, and that came soon after
    a start: whatever is saved after it has it.
    """
    session, awake = opening.named, idle_of(states.key) - MARGIN
    answered = [c for c in states.clicks(session) if c.value is not None]
    for click in reversed([c for c in answered if c.ended < opening.since]):
        came = [
            call
            for call in states.openings(session, click.began - awake, click.began)
            if call.ok and not call.replay and call.ended <= click.began
        ]
        for start in came:
            if click.ended - start.began < awake and not any(
                _puts_to_rest(call, session, states.key) and call.touches(start.since, click.ended)
                for call in states.calls
                if call is not start
            ):
                return click
    return None


def _puts_to_rest(call: Call, session: str, key: str) -> bool:
    """Whether it may put the session's container to rest, or away, for a while even."""
    if call.method in RESTS:
        return call.asked == session
    if call.method in OPENING:
        # One that fails puts back to rest what it brought up.
        return recreates(key) or call.mode == "FRESH" or not call.ok
    return False
