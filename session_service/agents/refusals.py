"""Why a session does not do what is asked of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.agent import AgentState

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession


def missing(session_id: str) -> errors.AgentSessionNotFound:
    """No such session."""
    return errors.AgentSessionNotFound(
        f"no agent session {session_id!r}: it was never made, or was purged",
        {"session_id": session_id},
    )


def taken(session_id: str) -> errors.AgentSessionExists:
    """The id is another's."""
    return errors.AgentSessionExists(
        f"there is an agent session {session_id!r}; give another id, or none",
        {"session_id": session_id},
    )


def expired(session: AgentSession) -> errors.AgentSessionExpired:
    """It expired or was ended."""
    if session.state is AgentState.EXPIRED:
        text = "expired; append with revive, or UndeleteAgentSession brings it back"
    else:
        text = "was ended; UndeleteAgentSession brings it back"
    return errors.AgentSessionExpired(
        f"agent session {session.session_id!r} {text}",
        {"session_id": session.session_id, "state": session.state},
    )


def over(session: AgentSession) -> errors.AgentSessionExpired:
    """Its retention is over."""
    return errors.AgentSessionExpired(
        f"the retention of agent session {session.session_id!r} is over; nothing brings it back",
        {"session_id": session.session_id, "state": session.state},
    )


def conflict(session: AgentSession, expected: int) -> errors.TurnConflict:
    """It has other turns than the caller has seen."""
    return errors.TurnConflict(
        f"agent session {session.session_id!r} has {session.turn_count} turns, not {expected};"
        " read them and try again with a new request_id",
        {"session_id": session.session_id, "turn_count": str(session.turn_count)},
    )
