"""The decision: given what is wanted and what is known, what should a start do?

`decide` is a pure, total function of facts and the time within them. It looks at nothing and
changes nothing; whoever calls it carries its plan out, and asks again when facts have changed.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, assert_never

from session_service.domain import policy as policies
from session_service.domain import wish as wishes
from session_service.domain.asked import least, mode_of
from session_service.domain.changed_spec import changed
from session_service.domain.evidence import Evidence, Presence
from session_service.domain.plans import (
    Ask,
    Climb,
    Decision,
    Join,
    Look,
    Open,
    Refusal,
    Refuse,
    Replace,
    TakeOver,
    TakeTurn,
    Use,
)
from session_service.domain.rungs import (
    BEST_OF,
    restorable,
    rungs_for,
    stood,
    untold,
    without_memory,
)
from session_service.domain.session import (
    Container,
    ContainerState,
    Continuity,
    Mode,
    Record,
    Rung,
    Session,
)
from session_service.domain.states import State, Transition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.fingerprint import Change
    from session_service.domain.wish import Wish


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
        plan = changed(wish, policy, record, change, saved=saved)
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
    if change is not None and changed(wish, policy, record, change, saved=False) is not None:
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
    if not stood(container) and rung is Rung.RESTORE:
        return "the session has no container to bring back, but state that was saved"
    if not stood(container):
        return f"the session has no container to bring back, so that only {rung} is left"
    if seen is not None:
        return f"the provider shows the container {seen}, so that the best rung is {rung}"
    return (
        f"the session rests {session.pause_depth or 'SUSPENDED'}, so that the best rung is {rung}"
    )
