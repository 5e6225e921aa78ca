"""The answers of session_service as text: enum values without their prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.session.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from roost.session.v1.session_service_pb2 import StartSessionResponse

#: What each pause depth preserves.
PAUSE_DEPTHS = {
    pb.PAUSE_DEPTH_SUSPENDED: "machine suspended with its memory",
    pb.PAUSE_DEPTH_STOPPED: "machine stopped, files kept",
    pb.PAUSE_DEPTH_CHECKPOINT: "state saved, no machine",
}


def outcome_of(reply: StartSessionResponse) -> str:
    """The outcome of a start, such as CREATED."""
    return pb.StartOutcome.Name(reply.outcome).removeprefix("START_OUTCOME_")


def continuity_of(reply: StartSessionResponse) -> str:
    """The continuity of a start, such as MEMORY."""
    return pb.Continuity.Name(reply.continuity).removeprefix("CONTINUITY_")


def kept(reply: StartSessionResponse) -> str:
    """The preserved state as the end of a line; empty when nothing is preserved."""
    if reply.continuity in (pb.CONTINUITY_UNSPECIFIED, pb.CONTINUITY_NONE):
        return ""
    verified = "verified" if reply.continuity_verified else "not verified"
    return f", {continuity_of(reply)} kept ({verified})"


def reply_of(reply: StartSessionResponse) -> str:
    """Outcome and continuity of a start, such as `RESTORED, CHECKPOINT, verified`."""
    verified = "verified" if reply.continuity_verified else "not verified"
    return f"{outcome_of(reply)}, {continuity_of(reply)}, {verified}"


def state_of(session: pb.Session) -> str:
    """The state of a session, such as PAUSED."""
    return pb.Session.State.Name(session.state).removeprefix("STATE_")


def paused_state_of(session: pb.Session) -> str:
    """The state after a stop and what it preserves: `PAUSED: state saved, no machine`."""
    if session.state != pb.Session.STATE_PAUSED:
        return state_of(session)
    return f"{state_of(session)}: {PAUSE_DEPTHS.get(session.pause_depth, 'unknown depth')}"


def short(session: pb.Session) -> str:
    """The last 8 characters of the id: a UUIDv7 begins with the time, equal for most."""
    return session.session_id[-8:]
