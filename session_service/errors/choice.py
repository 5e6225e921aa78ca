"""What the policy forbids, and what its user is to choose or chose too late."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.errors.base import RoostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from session_service.domain.choice import Candidate


class PolicyForbids(RoostError):
    """The policy in force keeps less than what was asked for."""

    reason = "POLICY_FORBIDS"


class FingerprintChanged(RoostError):
    """Another spec is asked for than the container was created from; the metadata's `parts` names
    what differs, and never how.
    """

    reason = "FINGERPRINT_CHANGED"


class ChoiceRequired(RoostError):
    """The user is to choose first. Carries what there is to choose from, tokens and all."""

    reason = "CHOICE_REQUIRED"

    def __init__(
        self, message: str, offered: Sequence[Candidate] = (), expire_time: datetime | None = None
    ) -> None:
        super().__init__(message)
        self.offered = tuple(offered)
        self.expire_time = expire_time


class ChoiceTokenInvalid(RoostError):
    """No such token, or one of another user or key; which, is not told."""

    reason = "CHOICE_TOKEN_INVALID"


class ChoiceTokenExpired(RoostError):
    """The token's time is over."""

    reason = "CHOICE_TOKEN_EXPIRED"


class ChoiceTokenUsed(RoostError):
    """The token was used; the metadata says by which decision."""

    reason = "CHOICE_TOKEN_USED"


class ChoiceStale(RoostError):
    """What was chosen is no longer as it was offered; the metadata says what happened."""

    reason = "CHOICE_STALE"
