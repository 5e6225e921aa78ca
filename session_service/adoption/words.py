"""What the older platform's words for a session's status mean."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Meaning(StrEnum):
    """What a row of the older table stands for."""

    RUNNING = "RUNNING"
    """Live; taken to run where nobody asks the provider: the first start looks."""
    SUSPENDED = "SUSPENDED"
    """Live, at rest with its memory."""
    STOPPED = "STOPPED"
    """Live, at rest with its files."""
    ENDED = "ENDED"
    """Over."""
    LEFT_OUT = "LEFT_OUT"
    """Not to be imported."""


LIVE = frozenset({Meaning.RUNNING, Meaning.SUSPENDED, Meaning.STOPPED})

#: Words that could mean either, as "failed", "error" or "pending" could, are not here: whoever has
#: them says what they mean.
USUAL: Mapping[str, Meaning] = {
    **dict.fromkeys(
        ("active", "running", "run", "started", "starting", "ready", "live", "up", "idle", "open"),
        Meaning.RUNNING,
    ),
    **dict.fromkeys(
        ("paused", "pausing", "suspended", "suspending", "sleeping", "hibernated", "hibernating"),
        Meaning.SUSPENDED,
    ),
    **dict.fromkeys(("stopped", "stopping", "inactive"), Meaning.STOPPED),
    **dict.fromkeys(
        (
            *("ended", "terminated", "destroyed", "deleted", "expired", "closed", "archived"),
            *("completed", "finished", "cancelled", "canceled", "removed"),
        ),
        Meaning.ENDED,
    ),
}
#: What `--status word=…` may say.
TELLABLE: Mapping[str, Meaning] = {
    "live": Meaning.RUNNING,
    "ended": Meaning.ENDED,
    "skip": Meaning.LEFT_OUT,
}


def meaning(word: str, told: Mapping[str, Meaning]) -> Meaning | None:
    """What the word means, as told or else as usual, whatever its case; None: not known."""
    plain = word.strip().casefold()
    return told.get(plain) or USUAL.get(plain)
