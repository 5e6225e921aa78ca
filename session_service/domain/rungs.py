"""The rungs of the ladder: which could bring a session back, and how much each can."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.session import (
    Container,
    ContainerState,
    Continuity,
    PauseDepth,
    Rung,
    Session,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.checkpoint import Checkpoint


#: The most that a rung can bring back.
BEST_OF = {
    Rung.LIVE: Continuity.MEMORY,
    Rung.RESUME: Continuity.MEMORY,
    Rung.RESTART: Continuity.FILESYSTEM,
    Rung.RESTORE: Continuity.CHECKPOINT,
    Rung.CREATE: Continuity.NONE,
}


def stood(container: Container | None) -> bool:
    """Whether there is a container that a start once ended well on, and that is to stay."""
    return (
        container is not None
        and container.container_id is not None
        and container.start_time is not None
        and container.destroy_time is None
        and container.wanted
    )


def restorable(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether there is state to go back to."""
    return any(checkpoint.ready for checkpoint in checkpoints)


def rungs_for(
    session: Session,
    container: Container | None,
    seen: ContainerState | None = None,
    *,
    saved: bool | None = None,
) -> tuple[Rung, ...]:
    """The rungs that could bring the session back, best first.

    Without a container, or with one that never stood, there is nothing to bring back but what was
    `saved`: whether there is such state, None for what the session's row says of it.
    """
    if saved is None:
        saved = session.checkpoint_id is not None
    new = anew(saved=saved)
    if not stood(container):
        return new
    stopped = session.pause_depth is PauseDepth.STOPPED
    if seen is not None:
        stopped = seen is not ContainerState.SUSPENDED
    return (Rung.RESTART if stopped else Rung.RESUME, *new)


def anew(*, saved: bool) -> tuple[Rung, ...]:
    """The rungs that make a new container."""
    return (Rung.RESTORE, Rung.CREATE) if saved else (Rung.CREATE,)


def expected_continuity(session: Session, container: Container | None) -> Continuity:
    """What the next start is expected to bring back; an expectation, not a promise."""
    if not stood(container):
        return Continuity.NONE if session.checkpoint_id is None else Continuity.CHECKPOINT
    if session.loss_untold:
        return untold(session)
    stopped = session.pause_depth is PauseDepth.STOPPED
    return without_memory(session) if stopped else Continuity.MEMORY


def without_memory(session: Session) -> Continuity:
    """What is left where memory is gone: files, if the container's root file system keeps them."""
    return Continuity.FILESYSTEM if specs.keeps_files(session.spec) else Continuity.NONE


def untold(session: Session) -> Continuity:
    """What is left of the last visit where something was lost since that no answer has told of."""
    left = session.untold_continuity
    return without_memory(session) if left is None else left
