"""What the conversation of an agent cannot take."""

from __future__ import annotations

from session_service.errors.base import RoostError


class AgentSessionNotFound(RoostError):
    """No such agent session, or none that this tenant may see, or it was purged."""

    reason = "AGENT_SESSION_NOT_FOUND"


class AgentSessionExists(RoostError):
    """The tenant has an agent session of this id."""

    reason = "AGENT_SESSION_EXISTS"


class AgentSessionExpired(RoostError):
    """The agent session expired or was ended; the metadata's `state` says which."""

    reason = "AGENT_SESSION_EXPIRED"


class TurnConflict(RoostError):
    """Others appended since the caller read; the metadata has the current `turn_count`."""

    reason = "TURN_CONFLICT"
