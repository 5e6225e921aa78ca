"""Rules about checkpoints: unique numbers, constant content, listed until they may be deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.chaos.checkpoint_audit import NEVER
from tests.chaos.projects import KEEP

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.chaos.checkpoint_audit import Audit, AuditedCheckpoint
    from tests.chaos.history import Call

#: A broken rule, a text, and the call that broke it, if any.
Finding = tuple[str, str, "Call | None"]
CORRUPT = "CHECKPOINT_CORRUPT"


def wrong_checkpoints(key: str, calls: list[Call], audit: Audit) -> Iterator[Finding]:
    """The rules that the key's checkpoints break, in the database and in callers' answers."""
    yield from _numbered_once(key, audit)
    yield from _sound(key, calls, audit)
    yield from _shown(calls, audit)
    yield from _listed(key, calls, audit)


def _numbered_once(key: str, audit: Audit) -> Iterator[Finding]:
    ids: dict[int, str] = {}
    for kept in audit.checkpoints.values():
        if kept.key == key and ids.setdefault(kept.number, kept.checkpoint_id) != (
            kept.checkpoint_id
        ):
            yield "NUMBER_TWICE", f"{kept.checkpoint_id} is number {kept.number} again", None


def _sound(key: str, calls: list[Call], audit: Audit) -> Iterator[Finding]:
    """No fault damages bytes, so no checkpoint is ever found corrupt."""
    for kept in audit.checkpoints.values():
        if kept.key == key and kept.changed:
            yield "CONTENT_CHANGED", f"number {kept.number} changed after it was READY", None
        if kept.key == key and kept.failure == CORRUPT:
            yield "FOUND_CORRUPT", f"number {kept.number} was marked corrupt", None
    for call in calls:
        if call.reason == CORRUPT or any(CORRUPT in attempt for attempt in call.attempts):
            yield "FOUND_CORRUPT", "no fault damages bytes", call


def _shown(calls: list[Call], audit: Audit) -> Iterator[Finding]:
    """A checkpoint shown READY was READY, with that number and that content."""
    for call in calls:
        unready = any(shown.state != "READY" for shown in call.checkpoints)
        if call.method == "CreateCheckpoint" and unready:
            yield "ANSWERED_BEFORE_READY", "it was not READY when it was answered", call
        for shown in call.checkpoints:
            kept = audit.checkpoints.get(shown.checkpoint_id)
            if kept is None or kept.number != shown.number:
                yield "SHOWN_WRONG_CHECKPOINT", f"there is no such number {shown.number}", call
            elif shown.state == "READY" and (kept.ready == NEVER or kept.sha256 != shown.sha256):
                yield (
                    "SHOWN_WRONG_CHECKPOINT",
                    f"number {shown.number} has other content, or is not READY",
                    call,
                )


def _listed(key: str, calls: list[Call], audit: Audit) -> Iterator[Finding]:
    """An acknowledged checkpoint is listed until it is deleted or KEEP newer ones exist."""
    for listing in calls:
        if listing.method != "ListCheckpoints" or not listing.ok:
            continue
        there = {shown.checkpoint_id for shown in listing.checkpoints}
        shown_before = {
            shown.checkpoint_id
            for call in calls
            for shown in call.checkpoints
            if shown.state == "READY" and call.ended < listing.began
        }
        for name in shown_before - there:
            kept = audit.checkpoints.get(name)
            if kept is None or _deleted(name, calls, listing):
                continue
            if _pinned(name, calls, listing) or not _prunable(kept, key, audit, listing):
                yield (
                    "NOT_LISTED",
                    f"number {kept.number} is not listed, and was not deleted",
                    listing,
                )


def _deleted(name: str, calls: list[Call], by: Call) -> bool:
    return any(
        call.method == "DeleteCheckpoint"
        and call.checkpoint_id == name
        and call.first_began <= by.ended
        for call in calls
        if call.ok or call.unclear
    )


def _prunable(kept: AuditedCheckpoint, key: str, audit: Audit, by: Call) -> bool:
    """Whether KEEP newer checkpoints were READY before the listing was answered."""
    newer = [each for each in audit.of(key) if each.number > kept.number and each.ready <= by.ended]
    return len(newer) >= KEEP


def _pinned(name: str, calls: list[Call], by: Call) -> bool:
    """Whether it was certainly pinned when the listing was answered."""
    about = [
        call for call in calls if call.method == "PinCheckpoint" and call.checkpoint_id == name
    ]
    pins = [call for call in about if call.pin and call.ok and call.ended < by.began]
    return any(
        all(
            other.pin or other.last_effect < pin.first_began or other.first_began > by.ended
            for other in about
        )
        for pin in pins
    )
