"""What tenants may have at most, as data."""

from __future__ import annotations

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
)
PAID = Tier("paid")

#: Every tier, by its name.
TIERS: Mapping[str, Tier] = {tier.name: tier for tier in (FREE, PAID)}


def tier_of(name: str) -> Tier:
    """The tier of this name; one that this version does not know, any more or yet, caps most."""
    return TIERS.get(name, FREE)
