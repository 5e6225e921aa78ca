"""What a start does that wants another spec than the container was created from."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from session_service.domain import policy as policies
from session_service.domain.asked import least
from session_service.domain.fingerprint import Carrier, Change
from session_service.domain.plans import Climb, Refusal, Refuse
from session_service.domain.rungs import BEST_OF, anew, stood
from session_service.domain.session import Continuity, Record, Rung

if TYPE_CHECKING:
    from session_service.domain.wish import Wish


def changed(
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
    rests_on_it = saved and not stood(record.container)
    if change.same_hook and (rests_on_it or not change.same_volume):
        return Carrier.CHECKPOINT
    return Carrier.VOLUME if change.same_volume else None


def _recreate(
    wish: Wish, policy: policies.Policy, record: Record, by: Carrier, because: str, *, saved: bool
) -> Climb | Refuse:
    """Make the container anew, unless that would keep less than is asked for."""
    rungs: tuple[Rung, ...] = (Rung.CREATE,)
    if by is Carrier.CHECKPOINT:
        # A container that is there has its state saved first.
        rungs = (Rung.RESTORE,) if stood(record.container) else anew(saved=saved)
    plan = Climb("FINGERPRINT_CHANGED", because, rungs, recreate=by)
    wanted = least(wish, policy)
    if wanted is not None and wanted > kept_by(plan):
        kept = "its volume's files" if by is Carrier.VOLUME else "what is saved of it"
        told = f"{because}; made anew it would keep {kept}, and no more"
        return Refuse("FINGERPRINT_CHANGED", told, Refusal.CONTINUITY_UNAVAILABLE)
    return plan


def kept_by(plan: Climb) -> Continuity:
    """The most that a container which is made anew by this plan has of the one before it."""
    return Continuity.FILESYSTEM if plan.recreate is Carrier.VOLUME else BEST_OF[plan.rungs[0]]
