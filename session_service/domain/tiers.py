"""What tenants may have at most, as data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain.effective import Setting, Tier
from session_service.domain.policy import Persistence

if TYPE_CHECKING:
    from collections.abc import Mapping

FREE = Tier(
    "free",
    Setting(
        persistence=Persistence.EPHEMERAL,
        idle_timeout=timedelta(minutes=30),
        # What was undeleted within its grace does not rest for long either.
        deepen_after=timedelta(minutes=10),
        expire_after=timedelta(minutes=10),
        grace_period=timedelta(minutes=10),
        recover_at_once=False,
        checkpoint_on_stop=False,
        checkpoint_every=timedelta(0),
        # As few as there can be: what a user asks to be saved is kept until something newer is.
        keep_checkpoints=1,
    ),
    # A few users who try it out; who is more has customers.
    live_sessions=10,
)
PAID = Tier("paid")

#: Every tier, by its name.
TIERS: Mapping[str, Tier] = {tier.name: tier for tier in (FREE, PAID)}


def tier_of(name: str) -> Tier:
    """The tier of this name; one that this version does not know, any more or yet, caps most."""
    return TIERS.get(name, FREE)


@dataclass(frozen=True, slots=True)
class LiveQuota:
    """The most live sessions that a tenant may have, and who says so."""

    most: int
    tier: str | None
    """The name of the tier that says so; None: the operator."""


def live_quota(operator: int, tier: Tier) -> LiveQuota | None:
    """The smaller of what the operator allows every tenant (0: as many as are asked for) and the
    tier; None where neither says anything.
    """
    if tier.live_sessions is None:
        return LiveQuota(operator, None) if operator else None
    if operator and operator <= tier.live_sessions:
        return LiveQuota(operator, None)
    return LiveQuota(tier.live_sessions, tier.name)
