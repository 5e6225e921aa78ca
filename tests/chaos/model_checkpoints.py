"""What checkpoints are to be: numbered once, never another content, kept until they may go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.audit import NEVER
from tests.chaos.projects import KEEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.audit import Audit, Kept
    from tests.chaos.history import Call

#: A rule that was broken, how, and by which call, if by one.
Wrong = tuple[str, str, "Call | None"]
CORRUPT = "CHECKPOINT_CORRUPT"


def wrong_checkpoints(key: str, calls: list[Call], audit: Audit) -> Iterator[Wrong]:
    """The rules that the key's checkpoints break, by themselves and as callers were shown them."""
    yield from _numbered_once(key, audit)
    yield from _sound(key, calls, audit)
    yield from _shown(calls, audit)
    yield from _listed(key, calls, audit)


def _numbered_once(key: str, audit: Audit) -> Iterator[Wrong]:
    ids: dict[int, str] = {}
    for kept in audit.kept.values():
        if kept.key == key and ids.setdefault(kept.number, kept.checkpoint_id) != (
            kept.checkpoint_id
        ):
            yield "NUMBER_TWICE", f"{kept.checkpoint_id} is number {kept.number} again", None


def _sound(key: str, calls: list[Call], audit: Audit) -> Iterator[Wrong]:
    """Nothing damages bytes here, so that nothing is ever found damaged."""
    for kept in audit.kept.values():
        if kept.key == key and kept.changed:
            yield "ANOTHER_CONTENT", f"number {kept.number} changed after it was READY", None
        if kept.key == key and kept.failure == CORRUPT:
            yield "FOUND_CORRUPT", f"number {kept.number} was condemned", None
    for call in calls:
        if call.reason == CORRUPT or any(CORRUPT in attempt for attempt in call.attempts):
            yield "FOUND_CORRUPT", "nothing had damaged it", call


def _shown(calls: list[Call], audit: Audit) -> Iterator[Wrong]:
    """What callers were shown READY was READY, with that number and that content."""
    for call in calls:
        unready = any(shown.state != "READY" for shown in call.checkpoints)
        if call.method == "CreateCheckpoint" and unready:
            yield "ANSWERED_BEFORE_READY", "it was not READY when it was answered", call
        for shown in call.checkpoints:
            kept = audit.kept.get(shown.checkpoint_id)
            if kept is None or kept.number != shown.number:
                yield "SHOWN_ANOTHER", f"there is no such number {shown.number}", call
            elif shown.state == "READY" and (kept.ready == NEVER or kept.sha256 != shown.sha256):
                yield "SHOWN_ANOTHER", f"number {shown.number} is another, or not READY", call


def _listed(key: str, calls: list[Call], audit: Audit) -> Iterator[Wrong]:
    """What was acknowledged is listed until it is deleted, or so many newer ones are there."""
    for listing in calls:
        if listing.method != "ListCheckpoints" or not listing.ok:
            continue
        there = {shown.checkpoint_id for shown in listing.checkpoints}
        told = {
            shown.checkpoint_id
            for call in calls
            for shown in call.checkpoints
            if shown.state == "READY" and call.ended < listing.began
        }
        for name in told - there:
            kept = audit.kept.get(name)
            if kept is None or _deleted(name, calls, listing):
                continue
            if _pinned(name, calls, listing) or not _prunable(kept, key, audit, listing):
                yield "NOT_LISTED", f"number {kept.number} is gone, and nobody deleted it", listing


def _deleted(name: str, calls: list[Call], by: Call) -> bool:
    return any(
        call.method == "DeleteCheckpoint" and call.target == name and call.since <= by.ended
        for call in calls
        if call.ok or call.unclear
    )


def _prunable(kept: Kept, key: str, audit: Audit, by: Call) -> bool:
    """Whether so many newer ones were READY before the listing was answered."""
    newer = [each for each in audit.of(key) if each.number > kept.number and each.ready <= by.ended]
    return len(newer) >= KEEP


def _pinned(name: str, calls: list[Call], by: Call) -> bool:
    """Whether it was certainly pinned from some time on, and until the listing."""
    about = [call for call in calls if call.method == "PinCheckpoint" and call.target == name]
    pins = [call for call in about if call.pin and call.ok and call.ended < by.began]
    return any(
        all(other.pin or other.settled < pin.since or other.since > by.ended for other in about)
        for pin in pins
    )
