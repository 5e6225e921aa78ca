"""One climb of the ladder: where it stands, what was tried, where it may end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain.fingerprint import Carrier
from session_service.domain.session import (
    Attempt,
    AttemptResult,
    ConditionType,
    Container,
    Continuity,
    Outcome,
    Rung,
    Session,
)
from session_service.domain.wish import Wish
from session_service.errors import RoostError

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.errors import Retryable
    from session_service.lifecycle.ownership import Held
    from session_service.lifecycle.turns import Turn
    from session_service.ports import Booted


class RungLost(Exception):
    """What the rung would bring back is proved lost; the next may be tried."""


class NothingToRestore(Exception):
    """No checkpoint is left that could be restored; each that was tried is noted."""


class InDoubt(RoostError):
    """Whether the application took the state is not known: nobody may be handed the container."""

    def __init__(self, cause: Retryable) -> None:
        super().__init__(cause.message, cause.metadata)
        self.cause = cause


class LessSurvived(Exception):
    """It came back, running, with less than was asked for."""

    def __init__(self, booted: Booted) -> None:
        super().__init__(booted.evidence)
        self.booted = booted


@dataclass(slots=True)
class Climb:
    """One climb's state: where it stands, and what was tried."""

    held: Held
    session: Session
    container: Container
    least: Continuity | None
    now: datetime
    turn: Turn
    wish: Wish = field(default_factory=Wish)
    checkpoints: tuple[Checkpoint, ...] = ()
    """What can be gone back to, in the order in which to try."""
    checkpoint_number: int = 0
    """Of the one that is being tried."""
    attempts: list[Attempt] = field(default_factory=list)
    found: tuple[ConditionType, ...] = ()
    lost: set[int] = field(default_factory=set)
    """Generations whose containers were proved lost."""
    up: bool = False
    """Whether a container of this climb is known to run, so that a failure must put it to rest."""

    @property
    def stood(self) -> bool:
        """Whether its container is one that the user has something in."""
        return self.container.start_time is not None

    @property
    def stays(self) -> bool:
        """Whether its container is one that the user has something in, and that is to stay."""
        return self.stood and self.container.wanted

    @property
    def unborn(self) -> bool:
        """Whether its container was created by an owner that is gone, and never stood."""
        container = self.container
        here = container.destroy_time is None and container.generation not in self.lost
        return container.container_id is not None and not self.stood and here

    @property
    def rolls_back(self) -> bool:
        """Whether there is a container whose state is to give way to an older one."""
        return self.wish.checkpoint_id is not None and self._stands

    @property
    def hands_over(self) -> bool:
        """Whether there is a container whose state is still to be saved, for one of another spec:
        until that is done nothing of it was changed.
        """
        anew = self.wish.recreate
        return (
            anew is not None
            and anew.by is Carrier.CHECKPOINT
            and anew.generation == self.container.generation
            and self.container.wanted
            and self._stands
        )

    @property
    def _stands(self) -> bool:
        """Whether what the user has something in is there, as far as is known."""
        container = self.container
        here = container.destroy_time is None and container.generation not in self.lost
        return self.stood and here

    def note(self, rung: Rung, result: AttemptResult, reason: str, began: float) -> None:
        """Record how a rung went."""
        milliseconds = round((monotonic() - began) * 1000)
        number = self.checkpoint_number if rung is Rung.RESTORE else 0
        self.attempts.append(Attempt(rung, result, reason, milliseconds, number))


@dataclass(frozen=True, slots=True)
class Landing:
    """Where a climb ended well."""

    outcome: Outcome
    continuity: Continuity
    verified: bool
    boot_id: str | None
    checkpoint_id: UUID | None = None
    """What was restored; None where nothing was."""


def proved(rung: Rung, booted: Booted, *, keeps_files: bool) -> Landing:
    """What a boot brought back: the boot id decides, not the rung that was meant."""
    if booted.memory_preserved:
        return Landing(Outcome.RESUMED, Continuity.MEMORY, True, booted.boot_id)
    files = Continuity.FILESYSTEM if keeps_files else Continuity.NONE
    if booted.memory_preserved is False:
        return Landing(Outcome.RESTARTED, files, True, booted.boot_id)
    outcome = Outcome.RESUMED if rung is Rung.RESUME else Outcome.RESTARTED
    return Landing(outcome, files, False, booted.boot_id)


def reason(booted: Booted) -> str:
    """What the proof rests on, as a machine-readable word."""
    if booted.memory_preserved is None:
        return "BOOT_ID_UNKNOWN"
    return "BOOT_ID_EQUAL" if booted.memory_preserved else "BOOT_ID_CHANGED"


def capped(landing: Landing, most: Continuity) -> Landing:
    """The landing with no more claimed than `most`."""
    if landing.continuity <= most:
        return landing
    return replace(landing, continuity=most)
