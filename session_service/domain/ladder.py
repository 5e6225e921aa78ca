"""The decision: given what is wanted and what is known, what should a start do?

`decide` is a pure, total function of facts and the time within them. It looks at nothing and
changes nothing; whoever calls it carries its plan out, and asks again when facts have changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, assert_never

from session_service.domain import policy as policies
from session_service.domain import spec as specs
from session_service.domain import wish as wishes
from session_service.domain.fingerprint import Carrier
from session_service.domain.session import (
    Container,
    ContainerState,
    Continuity,
    Mode,
    PauseDepth,
    Record,
    Rung,
    Session,
)
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.fingerprint import Change
    from session_service.domain.wish import Wish


class Presence(StrEnum):
    """What the provider says of a container."""

    PRESENT = "PRESENT"
    ABSENT = "ABSENT"
    """Proved lost: destroyed, or twice not found apart by the lag window and in no listing."""
    UNKNOWN = "UNKNOWN"
    """An error, a time-out, an odd state: changes nothing."""


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot as a look showed it: the guest's boot id, and the start event known before that."""

    boot_id: str
    boot_time: datetime | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was observed of a session's container."""

    presence: Presence
    state: ContainerState = ContainerState.UNKNOWN
    memory_intact: bool | None = None
    """True: the same boot as last proved. False: another one. None: not known."""
    preview_answered: bool | None = None
    """Whether the preview answered; None where it was not asked."""
    first_boot: Boot | None = None
    """The boot of a container of which none was known before, so that nothing could be proved. Once
    an answer has said so, it is what later ones are compared with."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do; `rule` is a machine-readable word, `because` a sentence for people."""

    rule: str
    because: str


@dataclass(frozen=True, slots=True)
class Use(Plan):
    """Answer REUSED with what is there."""

    continuity: Continuity = Continuity.MEMORY
    verified: bool = True
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Look(Plan):
    """Not decidable yet: look at the container, then decide again."""


@dataclass(frozen=True, slots=True)
class Open(Plan):
    """Insert a new session and create its first container."""


@dataclass(frozen=True, slots=True)
class Replace(Plan):
    """Insert a new session in place of the one there, which ends once the new one stands."""


@dataclass(frozen=True, slots=True)
class Climb(Plan):
    """Bring the session back by these rungs, each only if those before it are proved lost."""

    rungs: tuple[Rung, ...] = ()
    recreate: Carrier | None = None
    """Where its container is destroyed first, and made anew of the wanted spec: what brings over
    what is kept."""


@dataclass(frozen=True, slots=True)
class Ask(Plan):
    """Ask the user what to do about the session that is there."""


@dataclass(frozen=True, slots=True)
class Join(Plan):
    """Wait for the start in flight and answer with its outcome."""


@dataclass(frozen=True, slots=True)
class TakeTurn(Plan):
    """Wait for the transition in flight to end, then decide again."""


@dataclass(frozen=True, slots=True)
class TakeOver(Plan):
    """The transition's owner is gone: finish or undo it, then decide again."""


class Refusal(StrEnum):
    """Why a start is refused."""

    LIVE_SESSION_EXISTS = "LIVE_SESSION_EXISTS"
    CONTINUITY_UNAVAILABLE = "CONTINUITY_UNAVAILABLE"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    SESSION_STATE_CONFLICT = "SESSION_STATE_CONFLICT"
    FINGERPRINT_CHANGED = "FINGERPRINT_CHANGED"


@dataclass(frozen=True, slots=True)
class Refuse(Plan):
    """Answer with an error."""

    refusal: Refusal = Refusal.SESSION_STATE_CONFLICT
    parts: tuple[str, ...] = ()
    """The parts of the spec that differ, where that is why."""


Decision = Use | Look | Open | Replace | Climb | Ask | Join | TakeTurn | TakeOver | Refuse

#: How long a look at the provider counts: within it a start makes no provider call.
FRESHNESS = timedelta(seconds=10)

#: States that mean: there, but not running; a rung brings it back.
AT_REST = frozenset(
    {
        ContainerState.SUSPENDED,
        ContainerState.STOPPED,
        ContainerState.FAILED,
        ContainerState.CREATED,
    }
)


def least(wish: Wish, policy: policies.Policy) -> Continuity | None:
    """The least that must survive: the stricter of what the call and the policy ask for."""
    asked = [level for level in (wish.min_continuity, policy.min_continuity) if level is not None]
    return max(asked, default=None)


def mode_of(wish: Wish, policy: policies.Policy) -> Mode:
    """The mode in force: what the call says, or else the policy. UNSPECIFIED: the user is asked."""
    if wish.mode is not Mode.UNSPECIFIED:
        return wish.mode
    if policy.persistence is policies.Persistence.EPHEMERAL:
        return Mode.FRESH
    asks = policy.persistence is policies.Persistence.ASK
    return Mode.UNSPECIFIED if asks else Mode.CONTINUE


def decide(
    wish: Wish,
    policy: policies.Policy,
    record: Record | None,
    evidence: Evidence | None = None,
    freshness: timedelta = FRESHNESS,
    change: Change | None = None,
    checkpoints: Sequence[Checkpoint] = (),
) -> Decision:
    """What a start that wants `wish` should do about the session that stands at its key.

    `record` is the live session at the key, None where there is none; `evidence` what was observed
    of its container, None where nobody looked; `change` how the spec that is wanted differs from
    its container's; `checkpoints` what the session could go back to. The time is the record's,
    which is the database's.
    """
    if record is None:
        return Open("NO_LIVE_SESSION", "no live session stands at this key")
    mode = mode_of(wish, policy)
    if mode is Mode.FAIL_IF_LIVE and not record.abandoned:
        return Refuse(
            "FAIL_IF_LIVE", "a live session stands at this key", Refusal.LIVE_SESSION_EXISTS
        )
    if record.session.transition is not None:
        return _in_flight(wish, mode, policy, record, change)
    if mode is Mode.FRESH:
        return _replace(wish)
    if mode is Mode.UNSPECIFIED:
        return Ask("CHOICE", "a session stands at this key, and the policy is to ask the user")
    if wish.checkpoint_id is not None and record.session.state in (State.ACTIVE, State.PAUSED):
        return Climb("ROLLBACK", "an older state was asked for by its checkpoint", (Rung.RESTORE,))
    saved = restorable(checkpoints)
    if change is not None:
        plan = _changed(wish, policy, record, change, saved=saved)
        if plan is not None:
            return plan
    match record.session.state:
        case State.ACTIVE:
            return _active(wish, policy, record, evidence, freshness, saved)
        case State.PAUSED:
            return _climb(wish, policy, record.session, record.container, saved=saved)
        case State.STARTING | State.PAUSING | State.ENDING | State.ENDED:
            return Refuse("NOT_STARTABLE", f"the session is {record.session.state}")
        case other:
            assert_never(other)


def _replace(wish: Wish) -> Replace:
    if wish.mode is Mode.FRESH:
        return Replace("FRESH_ASKED", "a fresh session was asked for in place of the one there")
    return Replace("FRESH_BY_POLICY", "what is in force makes every start of this user fresh")


def _changed(
    wish: Wish, policy: policies.Policy, record: Record, change: Change, *, saved: bool
) -> Climb | Refuse | None:
    """What the policy says of another spec than the container was created from; None: go on."""
    names = ", ".join(change.parts)
    because = f"the container was created from another spec than is wanted: {names}"
    match policy.on_fingerprint_change:
        case policies.OnFingerprintChange.ALLOW:
            return None
        case policies.OnFingerprintChange.RECREATE_KEEPING_FILES:
            by = _carrier(record, change, saved=saved)
            if by is not None:
                return _recreate(wish, policy, record, by, because, saved=saved)
            because += (
                ". Its files are on no volume that both mount, and both declare no state hook, or "
                "not the same, to hand its state over by: all would go with the container"
            )
        case policies.OnFingerprintChange.REFUSE:
            pass
        case other:
            assert_never(other)
    return Refuse("FINGERPRINT_CHANGED", because, Refusal.FINGERPRINT_CHANGED, change.parts)


def _carrier(record: Record, change: Change, *, saved: bool) -> Carrier | None:
    """What would bring over what the session has: files on a volume are more than a checkpoint, but
    where the container is gone the checkpoint is what it rests on.
    """
    rests_on_it = saved and not _stood(record.container)
    if change.same_hook and (rests_on_it or not change.same_volume):
        return Carrier.CHECKPOINT
    return Carrier.VOLUME if change.same_volume else None


def _recreate(
    wish: Wish, policy: policies.Policy, record: Record, by: Carrier, because: str, *, saved: bool
) -> Climb | Refuse:
    """Make the container anew, unless that would keep less than is asked for."""
    rungs: tuple[Rung, ...] = (Rung.CREATE,)
    most, kept = Continuity.FILESYSTEM, "its volume's files"
    if by is Carrier.CHECKPOINT:
        # A container that is there has its state saved first.
        rungs = (Rung.RESTORE,) if _stood(record.container) else _anew(saved=saved)
        most, kept = BEST_OF[rungs[0]], "what is saved of it"
    wanted = least(wish, policy)
    if wanted is not None and wanted > most:
        told = f"{because}; made anew it would keep {kept}, and no more"
        return Refuse("FINGERPRINT_CHANGED", told, Refusal.CONTINUITY_UNAVAILABLE)
    return Climb("FINGERPRINT_CHANGED", because, rungs, recreate=by)


def _in_flight(
    wish: Wish, mode: Mode, policy: policies.Policy, record: Record, change: Change | None
) -> Decision:
    """Somebody works on the session: join, wait for one's turn, or take over."""
    if record.abandoned:
        return TakeOver("LEFT_OPEN", "an earlier start of this key failed and can be gone on with")
    if record.lapsed:
        return TakeOver("OWNER_GONE", "the transition's owner let its lease run out")
    if record.session.transition is not Transition.START:
        return TakeTurn("BUSY", f"the session is {record.session.state}")
    if wish.checkpoint_id is not None:
        return TakeTurn("ROLLBACK_AFTER_START", "a start is in flight; the rollback comes after it")
    leader = wishes.load(record.session.wish)
    equal = leader.mode is Mode.FRESH and leader.spec_hash == wish.spec_hash
    if mode is Mode.FRESH and not equal:
        return TakeTurn("FRESH_AFTER_START", "a start of another kind is in flight")
    if change is not None and _changed(wish, policy, record, change, saved=False) is not None:
        return TakeTurn("OTHER_SPEC", "a start is in flight of another spec than is wanted")
    return Join("START_IN_FLIGHT", "a start of this key is in flight")


def _active(
    wish: Wish,
    policy: policies.Policy,
    record: Record,
    evidence: Evidence | None,
    freshness: timedelta,
    saved: bool,
) -> Decision:
    """The session is thought to run: use it if that was seen lately, or is seen now."""
    session, container = record.session, record.container
    seen = session.verified_at
    if seen is not None and record.now - seen < freshness:
        return _use(wish, policy, record, "SEEN_LATELY", "it was seen running within the window")
    if evidence is None:
        return Look("NOT_SEEN_LATELY", "it was not seen running within the freshness window")
    if evidence.presence is Presence.ABSENT:
        return _climb(wish, policy, session, None, saved=saved)
    if evidence.presence is Presence.PRESENT and evidence.state is ContainerState.STARTED:
        return _use(wish, policy, record, "SEEN_RUNNING", "the provider shows it running", evidence)
    if evidence.presence is Presence.PRESENT and evidence.state in AT_REST:
        return _climb(wish, policy, session, container, evidence.state, saved=saved)
    return _unknown(wish, policy, record, evidence)


def _unknown(
    wish: Wish, policy: policies.Policy, record: Record, evidence: Evidence
) -> Use | Refuse:
    """The provider does not tell: a preview that answers is good enough to go on with."""
    if not evidence.preview_answered:
        return Refuse(
            "PROVIDER_UNKNOWN",
            "the provider does not say how the container is, and its preview does not answer",
            Refusal.PROVIDER_UNAVAILABLE,
        )
    because = "the provider does not say how the container is, but its preview answers"
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
    """Use the running container, saying no more than is proved of what survived in it."""
    continuity, verified = _running_continuity(record, evidence)
    wanted = least(wish, policy)
    if wanted is not None and continuity < wanted:
        return Refuse(
            "LESS_THAN_ASKED",
            f"the session runs, but only {continuity.name} of the last visit is proved",
            Refusal.CONTINUITY_UNAVAILABLE,
        )
    return Use(rule, because, continuity, verified, unreachable)


def _running_continuity(record: Record, evidence: Evidence | None) -> tuple[Continuity, bool]:
    """What a running container holds of the last visit, and whether that is proved."""
    if record.session.loss_untold:
        return untold(record.session), True
    if evidence is not None and evidence.memory_intact is False:
        return without_memory(record.session), True
    booted = record.container is not None and record.container.boot_id is not None
    if evidence is None:
        return (Continuity.MEMORY, True) if booted else (without_memory(record.session), False)
    if evidence.memory_intact:
        return Continuity.MEMORY, True
    return without_memory(record.session), False


def without_memory(session: Session) -> Continuity:
    """What is left where memory is gone: files, if the container's root file system keeps them."""
    return Continuity.FILESYSTEM if specs.keeps_files(session.spec) else Continuity.NONE


def untold(session: Session) -> Continuity:
    """What is left of the last visit where something was lost since that no answer has told of."""
    left = session.untold_continuity
    return without_memory(session) if left is None else left


def _stood(container: Container | None) -> bool:
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
    new = _anew(saved=saved)
    if not _stood(container):
        return new
    stopped = session.pause_depth is PauseDepth.STOPPED
    if seen is not None:
        stopped = seen is not ContainerState.SUSPENDED
    return (Rung.RESTART if stopped else Rung.RESUME, *new)


def _anew(*, saved: bool) -> tuple[Rung, ...]:
    """The rungs that make a new container."""
    return (Rung.RESTORE, Rung.CREATE) if saved else (Rung.CREATE,)


def expected_continuity(session: Session, container: Container | None) -> Continuity:
    """What the next start is expected to bring back; an expectation, not a promise."""
    if not _stood(container):
        return Continuity.NONE if session.checkpoint_id is None else Continuity.CHECKPOINT
    if session.loss_untold:
        return untold(session)
    stopped = session.pause_depth is PauseDepth.STOPPED
    return without_memory(session) if stopped else Continuity.MEMORY


def _climb(
    wish: Wish,
    policy: policies.Policy,
    session: Session,
    container: Container | None,
    seen: ContainerState | None = None,
    *,
    saved: bool,
) -> Climb | Refuse:
    """Bring it back by the best rung; refuse where none can give the least that is asked for."""
    rungs = rungs_for(session, container, seen, saved=saved)
    wanted = least(wish, policy)
    if wanted is not None:
        rungs = tuple(rung for rung in rungs if BEST_OF[rung] >= wanted)
    if not rungs:
        return Refuse(
            "NO_RUNG_ENOUGH",
            f"nothing is left that could bring back {wanted.name if wanted else 'anything'}",
            Refusal.CONTINUITY_UNAVAILABLE,
        )
    return Climb(f"{rungs[0]}_FIRST", _why(session, container, seen, rungs[0]), rungs)


def _why(
    session: Session, container: Container | None, seen: ContainerState | None, rung: Rung
) -> str:
    """A sentence for people: what the container is, and so the best rung that is left."""
    if not _stood(container) and rung is Rung.RESTORE:
        return "the session has no container to bring back, but state that was saved"
    if not _stood(container):
        return f"the session has no container to bring back, so that only {rung} is left"
    if seen is not None:
        return f"the provider shows the container {seen}, so that the best rung is {rung}"
    return (
        f"the session rests {session.pause_depth or 'SUSPENDED'}, so that the best rung is {rung}"
    )


#: The most that a rung can bring back.
BEST_OF = {
    Rung.LIVE: Continuity.MEMORY,
    Rung.RESUME: Continuity.MEMORY,
    Rung.RESTART: Continuity.FILESYSTEM,
    Rung.RESTORE: Continuity.CHECKPOINT,
    Rung.CREATE: Continuity.NONE,
}
