"""What a start commits before the provider is called: rows, and changes of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import uuid_utils.compat as uuids

from session_service.domain import effective
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.evidence import Presence
from session_service.domain.fingerprint import fingerprint
from session_service.domain.session import ContainerState, EndReason, Mode, PauseDepth
from session_service.domain.states import State, Transition, check_move
from session_service.storage.assignments import NOW
from session_service.storage.commits import Opening
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.decision import Request
    from session_service.domain.effective import InForce, Setting
    from session_service.domain.evidence import Boot, Evidence
    from session_service.domain.session import Key, Record, Session
    from session_service.domain.wish import Wish
    from session_service.storage.leases import Terms


@dataclass(frozen=True, slots=True)
class Defaults:
    """What a start is given where the request does not say."""

    app: str
    freshness: timedelta


@dataclass(frozen=True, slots=True)
class Start:
    """A start that was asked for. Any: the spec is JSON, as the proto maps it."""

    request: Request
    key: Key
    wish: Wish
    spec: Mapping[str, Any] | None = None
    asked: Setting | None = None
    """What it asks for less of than the project's policy."""
    token: str = field(default="", repr=False)
    """The user's answer to CHOICE_REQUIRED. A secret."""
    remember: bool = False
    """Whether to keep that answer as the user's preference."""


def opening(
    start: Start,
    spec: Mapping[str, Any],
    decision_id: UUID,
    replaced: Record | None,
    app: str,
    policy: InForce,
    terms: Terms,
) -> Opening:
    """A new session that starts, its first container wanted. Any: JSON as the proto maps it."""
    session_id = uuids.uuid7()
    return Opening(
        session={
            "session_id": session_id,
            "tenant": start.key.tenant,
            "project_id": start.key.project_id,
            "user_id": start.key.user_id,
            "slot": start.key.slot,
            "state": State.STARTING,
            "generation": 1,
            "epoch": 1,
            "transition": Transition.START,
            "wish": wishes.dump(start.wish),
            "decision_id": decision_id,
            "predecessor_id": None if replaced is None else replaced.session.session_id,
            "spec": specs.dump(spec),
            "fingerprint": fingerprint(spec),
            "policy": effective.dump(policy),
            "checkpoint_id": start.wish.checkpoint_id,
        },
        terms=terms,
        container=new_container(session_id, 1, app),
    )


def climbing(
    session: Session,
    wish: Wish,
    evidence: Evidence | None,
    decision_id: UUID,
    terms: Terms,
    policy: str | None = None,
) -> Change:
    """A session that is there begins to climb; what was seen of its container is kept. `policy` is
    what its row is to say from now on; None: what it says.
    """
    check_move(session.state, State.STARTING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "state": State.STARTING,
            "transition": Transition.START,
            "prior_state": session.state,
            "decision_id": decision_id,
            "wish": wishes.dump(wish),
            **_seen_depth(evidence),
            **({} if policy is None else {"policy": policy}),
        },
        container=_seen_gone(evidence),
    )


def first_proof(record: Record, epoch: int, boot: Boot) -> Change:
    """What later starts compare with, of a container whose boot was never known before: `record` is
    as it was before the look, `epoch` that of the session now.
    """
    session = record.session
    return Change(
        session.session_id,
        epoch,
        # As of before the look: what was seen is no newer than that.
        session={"verified_at": record.now},
        container={
            "boot_id": boot.boot_id,
            "boot_time": boot.boot_time,
            "state": ContainerState.STARTED,
        },
        advance=False,
    )


def adopted(session: Session, wish: Wish, decision_id: UUID, terms: Terms) -> Change:
    """A start that nobody waits for any more is this call's from now on."""
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "decision_id": decision_id,
            "wish": wishes.dump(wish),
        },
    )


def discarded(session: Session, terms: Terms) -> Change:
    """A session that never stood is purged: its key is free at once."""
    check_move(session.state, State.ENDING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            **terms.values(),
            "state": State.ENDING,
            "transition": Transition.PURGE,
            "end_reason": EndReason.CREATE_FAILED,
        },
    )


def waiting(session: Session, successor: Opening) -> Change:
    """The session that is replaced: ENDING, its container left alone until the new one stands."""
    check_move(session.state, State.ENDING)
    return Change(
        session.session_id,
        session.epoch,
        session={
            "state": State.ENDING,
            "transition": Transition.REPLACE,
            "prior_state": session.state,
            "successor_id": successor.session["session_id"],
        },
    )


def _seen_depth(evidence: Evidence | None) -> dict[str, object]:
    """How deep a container rests that nobody here put to rest, where that was seen."""
    if evidence is None or evidence.presence is not Presence.PRESENT:
        return {}
    suspended = evidence.state is ContainerState.SUSPENDED
    return {"pause_depth": PauseDepth.SUSPENDED if suspended else PauseDepth.STOPPED}


def _seen_gone(evidence: Evidence | None) -> dict[str, object]:
    """A container that was proved lost is marked so with the intent."""
    if evidence is None or evidence.presence is not Presence.ABSENT:
        return {}
    return {"destroy_time": NOW, "state": ContainerState.DESTROYED}


def asks_for_the_same(start: Start, session: Session) -> bool:
    """Whether a session that never stood is what this start would make anyway: what a fork left is
    not, to who asks for a new one.
    """
    of = start.wish.checkpoint_id
    new = start.wish.mode in (Mode.FRESH, Mode.FAIL_IF_LIVE)
    if of != session.checkpoint_id and (of is not None or new):
        return False
    return start.wish.spec_hash in (None, specs.spec_hash(specs.load(session.spec)))


def new_container(session_id: UUID, generation: int, app: str) -> dict[str, object]:
    """A container's row from the moment it is wanted; its name makes its creation idempotent."""
    return {
        "session_id": session_id,
        "generation": generation,
        "name": f"roost-{session_id}-{generation}",
        "app": app,
        "state": ContainerState.UNSPECIFIED,
    }
