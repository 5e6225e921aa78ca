"""How deep rest goes: suspended, stopped, and without a container once its state is saved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, kind_for
from session_service.domain.session import Cause, Continuity
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from datetime import datetime

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.policy import Policy
    from session_service.domain.session import Container, Session


def saves(session: Session, container: Container | None, policy: Policy) -> bool:
    """Whether its state is saved as its rest is deepened, so that its container can go in the end.

    Only where the policy says when; where a start may come back with a checkpoint; and where the
    application hands its state out. Not where a volume would be traded for its snapshot: the
    provider keeps that for days, and the volume for good.
    """
    if not policy.checkpoint_after or (policy.min_continuity or 0) > Continuity.CHECKPOINT:
        return False
    if container is None or container.start_time is None or container.destroy_time is not None:
        # Nothing of the user's is in it.
        return False
    return container.wanted and kind_for(specs.load(session.spec)) is Kind.APPLICATION


def deepens(session: Session) -> bool:
    """Whether the transition in flight is one by which the keeper deepens a rest."""
    begun = session.transition is Transition.PAUSE and session.prior_state is State.PAUSED
    return begun and session.cause is Cause.DEEPEN


def holds_all(
    head: Checkpoint | None, session: Session, container: Container, last_start: datetime | None
) -> bool:
    """Whether the checkpoint that a session descends from has all that its resting container has,
    which then need not be woken to be saved once more.

    That is where a pause took it, nobody came since, and the provider's newest start event is the
    one of the boot that was saved: both are by the provider's clock, and compared for being equal.
    """
    return (
        head is not None
        and head.ready
        and head.kind is Kind.APPLICATION
        and head.checkpoint_id == container.saved_checkpoint_id
        and head.create_time >= session.last_active_time
        and last_start is not None
        and last_start == container.saved_start_time
    )
