"""The demo's words for what session_service answers: enum values without their prefixes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.session.v1 import session_pb2 as pb

if TYPE_CHECKING:
    from roost.session.v1.session_service_pb2 import StartSessionResponse

#: What is left of a session at rest.
RESTS = {
    pb.PAUSE_DEPTH_SUSPENDED: "machine frozen with its memory",
    pb.PAUSE_DEPTH_STOPPED: "machine stopped, files kept",
    pb.PAUSE_DEPTH_CHECKPOINT: "state saved, no machine",
}


def outcome_of(reply: StartSessionResponse) -> str:
    """What the start did: CREATED."""
    return pb.StartOutcome.Name(reply.outcome).removeprefix("START_OUTCOME_")


def continuity_of(reply: StartSessionResponse) -> str:
    """What the user got back: MEMORY."""
    return pb.Continuity.Name(reply.continuity).removeprefix("CONTINUITY_")


def kept(reply: StartSessionResponse) -> str:
    """What the user got back, as the end of a sentence; empty for nothing."""
    if reply.continuity in (pb.CONTINUITY_UNSPECIFIED, pb.CONTINUITY_NONE):
        return ""
    proved = "proved" if reply.continuity_verified else "not proved"
    return f", {continuity_of(reply)} kept: {proved}"


def reply_of(reply: StartSessionResponse) -> str:
    """All that the reply says of what survived: RESTORED, CHECKPOINT, proved."""
    proved = "proved" if reply.continuity_verified else "not proved"
    return f"{outcome_of(reply)}, {continuity_of(reply)}, {proved}"


def state_of(session: pb.Session) -> str:
    """Where the session stands: PAUSED."""
    return pb.Session.State.Name(session.state).removeprefix("STATE_")


def rest_of(session: pb.Session) -> str:
    """Where a stop left the session, and what is left of it: PAUSED: state saved, no machine."""
    if session.state != pb.Session.STATE_PAUSED:
        return state_of(session)
    return f"{state_of(session)}: {RESTS.get(session.pause_depth, 'depth not told')}"


def short(session: pb.Session) -> str:
    """The end of the id: a UUIDv7 begins with the time, which is nearly the same for all."""
    return session.session_id[-8:]
