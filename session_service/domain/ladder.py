"""The decision of a start: from the request and the facts to a plan.

`decide` is a pure, total function of facts, which include the time. It does no I/O; the caller
executes the plan, and decides again when facts have changed. The rungs of the ladder are the steps
that could bring a session back. This module says which rungs are possible, how much state each one
keeps, and what the policy says if the spec has changed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.evidence import Evidence, Presence
from session_service.domain.plans import (
    Ask,
    AwaitTransition,
    Decision,
    Join,
    Observe,
    Open,
    Refusal,
    Refuse,
    Replace,
    TakeOver,
    TryRungs,
    Use,
)
from session_service.domain.session import (
    Container,
    ContainerState,
    Continuity,
    Mode,
    PauseDepth,
    Record,
    Rung,
    Session,
    has_come_up,
    unreported_continuity,
    without_memory,
)
from session_service.domain.spec import Carrier, Change
from session_service.domain.states import State, Transition
from session_service.domain.wish import least, mode_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.wish import Wish


#: The most continuity that a rung can give.
BEST_OF = {
    Rung.LIVE: Continuity.MEMORY,
    Rung.RESUME: Continuity.MEMORY,
    Rung.RESTART: Continuity.FILESYSTEM,
    Rung.RESTORE: Continuity.CHECKPOINT,
    Rung.CREATE: Continuity.NONE,
}


def restorable(checkpoints: Sequence[Checkpoint]) -> bool:
    """Whether any of the checkpoints can be restored."""
    return any(checkpoint.ready for checkpoint in checkpoints)


def rungs_for(
    session: Session,
    container: Container | None,
    seen: ContainerState | None = None,
    *,
    saved: bool | None = None,
) -> tuple[Rung, ...]:
    """The rungs that could bring the session back, best first.

    Without a container, or with one that never came up, only saved state can be brought back.
    `saved`: whether there is saved state; None: as the session's row says. `seen`: the container's
    state at the provider, which counts more than the row's depth.
    """
    if saved is None:
        saved = session.checkpoint_id is not None
    new = creating_rungs(saved=saved)
    if not has_come_up(container):
        return new
    stopped = session.pause_depth is PauseDepth.STOPPED
    if seen is not None:
        stopped = seen is not ContainerState.SUSPENDED
    return (Rung.RESTART if stopped else Rung.RESUME, *new)


def creating_rungs(*, saved: bool) -> tuple[Rung, ...]:
    """The rungs that create a container."""
    return (Rung.RESTORE, Rung.CREATE) if saved else (Rung.CREATE,)


def on_changed_spec(
    wish: Wish, policy: policies.Policy, record: Record, change: Change, *, saved: bool
) -> TryRungs | Refuse | None:
    """The plan of a start whose spec differs from its container's; None: the policy ignores it."""
    names = ", ".join(change.parts)
    because = f"the container was created from another spec than the requested one: {names}"
    match policy.on_fingerprint_change:
        case policies.OnFingerprintChange.ALLOW:
            return None
        case policies.OnFingerprintChange.RECREATE_KEEPING_FILES:
            by = _carrier(record, change, saved=saved)
            if by is not None:
                return _recreate(wish, policy, record, by, because, saved=saved)
            because += (
                ". The two specs mount no common volume and declare no common state hook, so that "
                "a new container would have nothing of the old one"
            )
        case policies.OnFingerprintChange.REFUSE:
            pass
        case other:
            assert_never(other)
    return Refuse("FINGERPRINT_CHANGED", because, Refusal.FINGERPRINT_CHANGED, change.parts)


def _carrier(record: Record, change: Change, *, saved: bool) -> Carrier | None:
    """The means to bring the session's state into a new container; None if there is none.

    The volume is preferred: it has the newest files. If state was saved and no container has come
    up since, the checkpoint is preferred: it is the session's state.
    """
    from_checkpoint = saved and not has_come_up(record.container)
    if change.same_hook and (from_checkpoint or not change.same_volume):
        return Carrier.CHECKPOINT
    return Carrier.VOLUME if change.same_volume else None


def _recreate(
    wish: Wish, policy: policies.Policy, record: Record, by: Carrier, because: str, *, saved: bool
) -> TryRungs | Refuse:
    """Recreate the container, unless that would keep less than the start asks for."""
    rungs: tuple[Rung, ...] = (Rung.CREATE,)
    if by is Carrier.CHECKPOINT:
        # The state of a container that exists is saved first.
        rungs = (Rung.RESTORE,) if has_come_up(record.container) else creating_rungs(saved=saved)
    plan = TryRungs("FINGERPRINT_CHANGED", because, rungs, recreate=by)
    wanted = least(wish, policy)
    if wanted is not None and wanted > kept_by(plan):
        kept = "the files on its volume" if by is Carrier.VOLUME else "the saved state"
        because += f"; a new container would keep only {kept}"
        return Refuse("FINGERPRINT_CHANGED", because, Refusal.CONTINUITY_UNAVAILABLE)
    return plan


def kept_by(plan: TryRungs) -> Continuity:
    """The most continuity of a container that this plan recreates."""
    return Continuity.FILESYSTEM if plan.recreate is Carrier.VOLUME else BEST_OF[plan.rungs[0]]


#: How long an observation counts: a start within this time makes no provider call.
FRESHNESS = timedelta(seconds=10)

#: The container exists and does not run; a rung can bring it back.
NOT_RUNNING = frozenset(
    {
        ContainerState.SUSPENDED,
        ContainerState.STOPPED,
        ContainerState.FAILED,
        ContainerState.CREATED,
    }
)


def decide(
    wish: Wish,
    policy: policies.Policy,
    record: Record | None,
    evidence: Evidence | None = None,
    freshness: timedelta = FRESHNESS,
    change: Change | None = None,
    checkpoints: Sequence[Checkpoint] = (),
) -> Decision:
    """The plan of a start that wants `wish`, for the session at its key.

    `record`: the live session at the key, or None. `evidence`: what a probe observed of its
    container; None before a probe. `change`: how the requested spec differs from its container's;
    None if it does not. `checkpoints`: those that the session could be restored from. The time is
    the record's, which is the database's.
    """
    if record is None:
        return Open("NO_LIVE_SESSION", "there is no live session at this key")
    mode = mode_of(wish, policy)
    if mode is Mode.FAIL_IF_LIVE and not record.abandoned:
        return Refuse(
            "FAIL_IF_LIVE", "there is a live session at this key", Refusal.LIVE_SESSION_EXISTS
        )
    if record.session.transition is not None:
        return _in_flight(wish, mode, policy, record, change)
    if mode is Mode.FRESH:
        return _replace(wish)
    if mode is Mode.UNSPECIFIED:
        return Ask("CHOICE", "there is a session at this key, and the policy is to ask the user")
    if wish.checkpoint_id is not None and record.session.state in (State.ACTIVE, State.PAUSED):
        return TryRungs("ROLLBACK", "the start asks for the state of a checkpoint", (Rung.RESTORE,))
    saved = restorable(checkpoints)
    if change is not None:
        plan = on_changed_spec(wish, policy, record, change, saved=saved)
        if plan is not None:
            return plan
    match record.session.state:
        case State.ACTIVE:
            return _active(wish, policy, record, evidence, freshness, saved)
        case State.PAUSED:
            return _bring_up(wish, policy, record.session, record.container, saved=saved)
        case State.STARTING | State.PAUSING | State.ENDING | State.ENDED:
            return Refuse("NOT_STARTABLE", f"the session is {record.session.state}")
        case other:
            assert_never(other)


def _replace(wish: Wish) -> Replace:
    if wish.mode is Mode.FRESH:
        return Replace("FRESH_ASKED", "the start asks for a fresh session instead of this one")
    return Replace(
        "FRESH_BY_POLICY", "the policy or preference makes every start of this user fresh"
    )


def _in_flight(
    wish: Wish, mode: Mode, policy: policies.Policy, record: Record, change: Change | None
) -> Decision:
    """A transition is in flight: join it, wait for its end, or take it over."""
    if record.abandoned:
        return TakeOver("LEFT_OPEN", "an earlier start of this key failed and can be continued")
    if record.lapsed:
        return TakeOver("OWNER_GONE", "the lease of the transition's owner ran out")
    if record.session.transition is not Transition.START:
        return AwaitTransition("BUSY", f"the session is {record.session.state}")
    if wish.checkpoint_id is not None:
        return AwaitTransition(
            "ROLLBACK_AFTER_START", "a start is in flight; the rollback follows it"
        )
    leader = wishes.load(record.session.wish)
    equal = leader.mode is Mode.FRESH and leader.spec_hash == wish.spec_hash
    if mode is Mode.FRESH and not equal:
        return AwaitTransition("FRESH_AFTER_START", "a start of another kind is in flight")
    if (
        change is not None
        and on_changed_spec(wish, policy, record, change, saved=False) is not None
    ):
        return AwaitTransition("OTHER_SPEC", "a start with another spec is in flight")
    return Join("START_IN_FLIGHT", "a start of this key is in flight")


def _active(
    wish: Wish,
    policy: policies.Policy,
    record: Record,
    evidence: Evidence | None,
    freshness: timedelta,
    saved: bool,
) -> Decision:
    """The row says that the session runs: use it if a recent or a new observation agrees."""
    session, container = record.session, record.container
    seen = session.verified_at
    if seen is not None and record.now - seen < freshness:
        return _use(wish, policy, record, "SEEN_LATELY", "it was seen running a short time ago")
    if evidence is None:
        return Observe("NOT_SEEN_LATELY", "it was not seen running within the freshness window")
    if evidence.presence is Presence.ABSENT:
        return _bring_up(wish, policy, session, None, saved=saved)
    if evidence.presence is Presence.PRESENT and evidence.state is ContainerState.STARTED:
        return _use(wish, policy, record, "SEEN_RUNNING", "the provider shows it running", evidence)
    if evidence.presence is Presence.PRESENT and evidence.state in NOT_RUNNING:
        return _bring_up(wish, policy, session, container, evidence.state, saved=saved)
    return _unknown(wish, policy, record, evidence)


def _unknown(
    wish: Wish, policy: policies.Policy, record: Record, evidence: Evidence
) -> Use | Refuse:
    """The provider does not report the state: use the container if its preview answers."""
    if not evidence.preview_answered:
        return Refuse(
            "PROVIDER_UNKNOWN",
            "the provider does not report the container's state, and its preview does not answer",
            Refusal.PROVIDER_UNAVAILABLE,
        )
    because = "the provider does not report the container's state, but its preview answers"
    return _use(wish, policy, record, "PREVIEW_ANSWERS", because, evidence, unreachable=True)


def _use(
    wish: Wish,
    policy: policies.Policy,
    record: Record,
    rule: str,
    because: str,
    evidence: Evidence | None = None,
    *,
    unreachable: bool = False,
) -> Use | Refuse:
    """Use the running container, and claim no more continuity than is proved."""
    continuity, verified = _running_continuity(record, evidence)
    wanted = least(wish, policy)
    if wanted is not None and continuity < wanted:
        return Refuse(
            "LESS_THAN_ASKED",
            f"the session runs, but only {continuity.name} continuity is proved",
            Refusal.CONTINUITY_UNAVAILABLE,
        )
    return Use(rule, because, continuity, verified, unreachable)


def _running_continuity(record: Record, evidence: Evidence | None) -> tuple[Continuity, bool]:
    """A running container's continuity since the user's last use, and whether it is proved."""
    if record.session.loss_untold:
        return unreported_continuity(record.session), True
    if evidence is not None and evidence.memory_intact is False:
        return without_memory(record.session), True
    booted = record.container is not None and record.container.boot_id is not None
    if evidence is None:
        return (Continuity.MEMORY, True) if booted else (without_memory(record.session), False)
    if evidence.memory_intact:
        return Continuity.MEMORY, True
    return without_memory(record.session), False


def _bring_up(
    wish: Wish,
    policy: policies.Policy,
    session: Session,
    container: Container | None,
    seen: ContainerState | None = None,
    *,
    saved: bool,
) -> TryRungs | Refuse:
    """Bring it back by the best rung; fail if none can give the least continuity asked for."""
    rungs = rungs_for(session, container, seen, saved=saved)
    wanted = least(wish, policy)
    if wanted is not None:
        rungs = tuple(rung for rung in rungs if BEST_OF[rung] >= wanted)
    if not rungs:
        return Refuse(
            "NO_RUNG_ENOUGH",
            f"no rung is left that could give {wanted.name if wanted else 'any'} continuity",
            Refusal.CONTINUITY_UNAVAILABLE,
        )
    return TryRungs(f"{rungs[0]}_FIRST", _why(session, container, seen, rungs[0]), rungs)


def _why(
    session: Session, container: Container | None, seen: ContainerState | None, rung: Rung
) -> str:
    """A sentence for people: the state of the container, and the best rung that follows."""
    if not has_come_up(container) and rung is Rung.RESTORE:
        return "the session has no container, but its state was saved"
    if not has_come_up(container):
        return f"the session has no container and no saved state, so only {rung} is left"
    if seen is not None:
        return f"the provider shows the container as {seen}, so the best rung is {rung}"
    return f"the session is paused {session.pause_depth or 'SUSPENDED'}, so the best rung is {rung}"
