"""What a session cannot do, or not as it was asked."""

from __future__ import annotations

from session_service.errors.base import RoostError


class SessionNotFound(RoostError):
    """No such session, or none that this tenant may see."""

    reason = "SESSION_NOT_FOUND"


class LiveSessionExists(RoostError):
    """A live session stands at the key."""

    reason = "LIVE_SESSION_EXISTS"


class SessionStateConflict(RoostError):
    """The session's state does not allow it."""

    reason = "SESSION_STATE_CONFLICT"


class ContinuityUnavailable(RoostError):
    """Less survived than was asked for; nothing was created."""

    reason = "CONTINUITY_UNAVAILABLE"
