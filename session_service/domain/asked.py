"""What a start asks for, by itself and by the policy in force."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.domain import policy as policies
from session_service.domain.session import Continuity, Mode

if TYPE_CHECKING:
    from session_service.domain.wish import Wish


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
