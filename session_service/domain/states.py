"""The states of a session and the legal moves between them, as data."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """Where a session stands (AIP-216)."""

    STARTING = "STARTING"
    ACTIVE = "ACTIVE"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    ENDING = "ENDING"
    ENDED = "ENDED"


class Transition(StrEnum):
    """What is being done to a session; a row has one from its intent to its outcome."""

    START = "START"
    """The ladder is climbed: STARTING → ACTIVE, or back."""
    PAUSE = "PAUSE"
    """The container is put to rest: PAUSING → PAUSED, or back to ACTIVE."""
    END = "END"
    """The container is cordoned and put to rest: ENDING → ENDED."""
    PURGE = "PURGE"
    """The container is destroyed: ENDING → ENDED. Nothing brings it back from this commit on."""
    REPLACE = "REPLACE"
    """A FRESH start's new session is on its way; this one waits for it, its container untouched.
    It has no owner: whoever carries the new session's start decides this one too."""


#: At most one session in these states stands at a key.
LIVE = frozenset({State.STARTING, State.ACTIVE, State.PAUSING, State.PAUSED})

#: Which states may follow which. Anything else is an IllegalTransition.
LEGAL: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset(
        {State.ACTIVE, State.PAUSING, State.PAUSED, State.ENDING, State.ENDED}
    ),
    # PAUSED and ACTIVE turn into each other at once where the provider did it by itself.
    State.ACTIVE: frozenset({State.STARTING, State.PAUSING, State.PAUSED, State.ENDING}),
    State.PAUSING: frozenset({State.PAUSED, State.ACTIVE}),
    State.PAUSED: frozenset({State.STARTING, State.PAUSING, State.ACTIVE, State.ENDING}),
    State.ENDING: frozenset({State.ENDED, State.ACTIVE, State.PAUSED}),
    State.ENDED: frozenset({State.PAUSED, State.ENDING}),
}


class IllegalTransition(Exception):
    """A move that the table does not have: a fault in the program, never the caller's."""

    def __init__(self, before: State, after: State) -> None:
        super().__init__(f"a session cannot go from {before} to {after}")
        self.before = before
        self.after = after


def check_move(before: State, after: State) -> None:
    """Raise IllegalTransition unless `after` may follow `before`."""
    if after not in LEGAL[before]:
        raise IllegalTransition(before, after)


def may_pause(state: State) -> bool:
    """Whether a pause may begin from here."""
    return State.PAUSING in LEGAL[state]
