"""What a caller is told whose tenant has as many live sessions as it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors

if TYPE_CHECKING:
    from session_service.domain.tiers import LiveQuota

#: Room comes when somebody ends a session: there is no use in asking every second.
ASK_AGAIN_SECONDS = 30.0


def exceeded(quota: LiveQuota) -> errors.QuotaExceeded:
    """The refusal, which says whose limit it is, what makes room and what does not."""
    by = "the operator" if quota.tier is None else f"its tier {quota.tier!r}"
    told = {"limit": str(quota.most), "source": "OPERATOR" if quota.tier is None else "TIER"}
    return errors.QuotaExceeded(
        f"the tenant has the {quota.most} live sessions that {by} allows. Paused ones count, since "
        "their containers are kept: end one that is no longer needed, with EndSession",
        told if quota.tier is None else {**told, "tier": quota.tier},
        ASK_AGAIN_SECONDS,
    )
