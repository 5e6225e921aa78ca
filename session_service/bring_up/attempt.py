"""One bring-up: its state, its attempts, its result, and the errors that end an attempt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from time import monotonic
from typing import TYPE_CHECKING

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
from session_service.domain.spec import Carrier
from session_service.domain.wish import Wish
from session_service.errors import RoostError
from session_service.storage.checkpoint.removal import Kept
from session_service.storage.session import change as changes
from session_service.storage.session import reads
from session_service.storage.session.commit import Commit, Committed, commit
from session_service.transition.ownership import OwnershipLost

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from session_service.admission.limiter import Permit
    from session_service.domain.checkpoint import Checkpoint
    from session_service.errors import Retryable
    from session_service.ports import Booted
    from session_service.storage.database import Database
    from session_service.storage.session.change import Change
    from session_service.transition.ownership import Owned


class RungLost(Exception):
    """The state that the rung would bring back is proved lost; the next rung may be tried."""


class NothingToRestore(Exception):
    """No checkpoint is left that could be restored; the attempts have each that was tried."""


class InDoubt(RoostError):
    """It is not known whether the application took the state, or whether the database has the note
    that the container may be destroyed: no user may get the container.
    """

    def __init__(self, cause: Retryable) -> None:
        super().__init__(cause.message, cause.metadata)
        self.cause = cause


class LessSurvived(Exception):
    """The container runs, but with less continuity than required."""

    def __init__(self, booted: Booted, continuity: Continuity) -> None:
        super().__init__(booted.evidence)
        self.booted = booted
        self.continuity = continuity


@dataclass(slots=True)
class BringUp:
    """One bring-up: its rows, its progress, and its attempts."""

    owned: Owned
    session: Session
    """The session as of the last read or note."""
    container: Container
    required: Continuity | None
    """The continuity that must be reached; None if there is no requirement."""
    now: datetime
    """The database's time of the last read."""
    permit: Permit
    wish: Wish = field(default_factory=Wish)
    replaced: Session | None = None
    """The session that waits in REPLACE for this one's start to be decided."""
    checkpoints: tuple[Checkpoint, ...] = ()
    """The checkpoints that can be restored, in the order in which to try."""
    checkpoint_number: int = 0
    """The number of the checkpoint that is being tried."""
    attempts: list[Attempt] = field(default_factory=list)
    conditions: tuple[ConditionType, ...] = ()
    lost_generations: set[int] = field(default_factory=set)
    """Generations whose containers were proved lost."""
    running: bool = False
    """Whether a container of this bring-up is known to run, so that a failure must pause it."""

    @property
    def may_restore(self) -> bool:
        """Whether the row names a checkpoint. Most sessions have none, and no checkpoint is read
        for them.
        """
        return self.wish.checkpoint_id is not None or self.session.checkpoint_id is not None

    @property
    def was_active(self) -> bool:
        """Whether a start has succeeded with its container, which then has the user's state."""
        return self.container.start_time is not None

    @property
    def keeps_user_state(self) -> bool:
        """Whether its container has the user's state and is not to be destroyed."""
        return self.was_active and self.container.wanted

    @property
    def left_by_earlier_owner(self) -> bool:
        """Whether its container was created before, but no start has succeeded with it."""
        container = self.container
        here = container.destroy_time is None and container.generation not in self.lost_generations
        return container.container_id is not None and not self.was_active and here

    @property
    def rolls_back(self) -> bool:
        """Whether the state of an existing container is to be replaced by a checkpoint."""
        return self.wish.checkpoint_id is not None and self._user_state_exists

    @property
    def must_save_first(self) -> bool:
        """Whether the container is to be recreated from its saved state, and that state is not
        saved yet. Until then the container is unchanged.
        """
        wanted = self.wish.recreate
        return (
            wanted is not None
            and wanted.by is Carrier.CHECKPOINT
            and wanted.generation == self.container.generation
            and self.container.wanted
            and self._user_state_exists
        )

    @property
    def _user_state_exists(self) -> bool:
        """Whether the container with the user's state exists, as far as is known."""
        container = self.container
        here = container.destroy_time is None and container.generation not in self.lost_generations
        return self.was_active and here

    def note(self, rung: Rung, result: AttemptResult, reason: str, began: float) -> None:
        """Add an attempt at a rung, with its result."""
        milliseconds = round((monotonic() - began) * 1000)
        number = self.checkpoint_number if rung is Rung.RESTORE else 0
        self.attempts.append(Attempt(rung, result, reason, milliseconds, number))


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a bring-up that succeeded."""

    outcome: Outcome
    continuity: Continuity
    verified: bool
    boot_id: str | None
    checkpoint_id: UUID | None = None
    """The checkpoint that was restored; None if none was."""


def proved(rung: Rung, booted: Booted, *, keeps_files: bool) -> Result:
    """The result of a boot. The boot id decides it, not the rung that was tried."""
    if booted.memory_preserved:
        return Result(Outcome.RESUMED, Continuity.MEMORY, True, booted.boot_id)
    files = Continuity.FILESYSTEM if keeps_files else Continuity.NONE
    if booted.memory_preserved is False:
        return Result(Outcome.RESTARTED, files, True, booted.boot_id)
    outcome = Outcome.RESUMED if rung is Rung.RESUME else Outcome.RESTARTED
    return Result(outcome, files, False, booted.boot_id)


def reason(booted: Booted) -> str:
    """The evidence of the proof, as a machine-readable word."""
    if booted.memory_preserved is None:
        return "BOOT_ID_UNKNOWN"
    return "BOOT_ID_EQUAL" if booted.memory_preserved else "BOOT_ID_CHANGED"


def capped(result: Result, most: Continuity) -> Result:
    """The result, with no more claimed than `most`."""
    if result.continuity <= most:
        return result
    return replace(result, continuity=most)


class Notes:
    """Writes the notes of bring-ups: intermediate results, written before the outcome.

    A replica that takes the bring-up over continues from them. They do not advance the epoch, so
    that the owner's later writes are not fenced off.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def write(self, bring_up: BringUp, change: Change) -> None:
        """Write a note. Raises OwnershipLost if the epoch has advanced."""
        noted = replace(change, advance=False)
        if await changes.write(self._database, noted) is None:
            raise OwnershipLost
        await self.reread(bring_up)

    async def write_if_kept(self, bring_up: BringUp, checkpoint_id: UUID, change: Change) -> bool:
        """Write a note that makes the session depend on the checkpoint. Returns False and writes
        nothing if the checkpoint was deleted or found damaged before. Raises OwnershipLost.
        """
        noted = replace(change, advance=False)
        done = await commit(self._database, Commit((Kept(checkpoint_id), noted)), "note")
        await self.reread(bring_up)
        return isinstance(done, Committed)

    async def reread(self, bring_up: BringUp) -> None:
        """Read the rows as they are now. Raises OwnershipLost if the epoch has advanced."""
        owned = bring_up.owned
        record = await reads.find(self._database, owned.session_id)
        if record is None or record.container is None or record.session.epoch != owned.epoch:
            raise OwnershipLost
        bring_up.session, bring_up.container = record.session, record.container
        bring_up.now = record.now
