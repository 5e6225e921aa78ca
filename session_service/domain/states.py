"""The states of a session and the legal moves between them, as data.

`LIVE` is the only list of the live states; the SQL of container sessions is built from it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class State(StrEnum):
    """The state of a session (AIP-216)."""

    STARTING = "STARTING"
    ACTIVE = "ACTIVE"
    PAUSING = "PAUSING"
    PAUSED = "PAUSED"
    ENDING = "ENDING"
    ENDED = "ENDED"


class Transition(StrEnum):
    """The work in flight on a session. The row has a transition from the commit of the intent until
    the commit of the outcome.
    """

    START = "START"
    """The session is brought up by the ladder: STARTING → ACTIVE, or back."""
    PAUSE = "PAUSE"
    """The container is suspended or stopped, or saved and destroyed: PAUSING → PAUSED, or back to
    ACTIVE."""
    END = "END"
    """The container is cordoned and suspended or stopped: ENDING → ENDED."""
    PURGE = "PURGE"
    """The container is destroyed: ENDING → ENDED. From the commit of the intent on, the session
    cannot be brought back."""
    REPLACE = "REPLACE"
    """A FRESH start brings up the session that replaces this one. Until it is up, this session's
    container is not touched. The transition has no owner: the owner of the new session's start
    commits its outcome, so that both sessions change in one commit."""


#: At most one session in these states exists per key.
LIVE = frozenset({State.STARTING, State.ACTIVE, State.PAUSING, State.PAUSED})

#: The states that may follow each state. Any other move is an IllegalTransition.
LEGAL: Mapping[State, frozenset[State]] = {
    State.STARTING: frozenset(
        {State.ACTIVE, State.PAUSING, State.PAUSED, State.ENDING, State.ENDED}
    ),
    # ACTIVE and PAUSED follow each other directly if the provider paused or woke the container.
    State.ACTIVE: frozenset({State.STARTING, State.PAUSING, State.PAUSED, State.ENDING}),
    State.PAUSING: frozenset({State.PAUSED, State.ACTIVE}),
    State.PAUSED: frozenset({State.STARTING, State.PAUSING, State.ACTIVE, State.ENDING}),
    State.ENDING: frozenset({State.ENDED, State.ACTIVE, State.PAUSED}),
    State.ENDED: frozenset({State.PAUSED, State.ENDING}),
}


class IllegalTransition(Exception):
    """A move that `LEGAL` does not have: a bug in the program, never an error of the caller."""

    def __init__(self, before: State, after: State) -> None:
        super().__init__(f"a session cannot go from {before} to {after}")
        self.before = before
        self.after = after


def check_move(before: State, after: State) -> None:
    """Raise IllegalTransition unless `after` may follow `before`."""
    if after not in LEGAL[before]:
        raise IllegalTransition(before, after)
