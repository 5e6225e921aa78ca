"""PutHold, ReleaseHold, ExplainIdle and WatchSession: requests parsed, replies rendered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from roost.session.v1 import session_service_pb2 as pb
from session_service.domain.holds import LONGEST
from session_service.rpc.fields import Fields, timestamp
from session_service.rpc.session import render

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.holds import Hold
    from session_service.domain.next_action import Explanation
    from session_service.rpc.session.render import Renderer
    from session_service.sessions.watch import Quiet, WatchedEvent

NAME_LIMIT = 64


@dataclass(frozen=True, slots=True)
class WantedHold:
    """The arguments of PutHold."""

    session_id: UUID
    name: str
    ttl: timedelta


def parse_put(message: pb.PutHoldRequest) -> WantedHold:
    """The hold to put. Raises InvalidField."""
    fields = Fields()
    session_id = fields.uuid("session_id", message.session_id)
    name = fields.text("name", message.name, NAME_LIMIT, required=True)
    seconds = message.ttl.seconds + message.ttl.nanos / 1e9
    if not 0 < seconds <= LONGEST.total_seconds():
        fields.wrong("ttl", f"must be more than 0 s and at most {LONGEST.total_seconds():.0f} s")
        seconds = 1
    fields.done()
    return WantedHold(session_id, name, timedelta(seconds=seconds))


def parse_release(message: pb.ReleaseHoldRequest) -> tuple[UUID, str]:
    """The session's id and the hold's name. Raises InvalidField."""
    fields = Fields()
    session_id = fields.uuid("session_id", message.session_id)
    name = fields.text("name", message.name, NAME_LIMIT, required=True)
    fields.done()
    return session_id, name


def parse_watch(message: pb.WatchSessionRequest) -> tuple[UUID, int, float | None]:
    """The session's id, the number of the last event that the caller has received, and the interval
    of heartbeats in s.

    Raises InvalidField.
    """
    fields = Fields()
    session_id = fields.uuid("session_id", message.session_id)
    if message.after_sequence < 0:
        fields.wrong("after_sequence", "must be 0 or more")
    heartbeat = None
    if message.HasField("heartbeat_interval"):
        heartbeat = fields.heartbeat(message.heartbeat_interval)
    fields.done()
    return session_id, message.after_sequence, heartbeat


def render_hold(hold: Hold) -> pb.Hold:
    """A hold as a message."""
    return pb.Hold(name=hold.name, expire_time=timestamp(hold.expire_time))


def render_explanation(explanation: Explanation) -> pb.ExplainIdleResponse:
    """The reply of ExplainIdle."""
    return pb.ExplainIdleResponse(
        holds=[render_hold(hold) for hold in explanation.holds],
        idle_time=timestamp(explanation.idle_time),
        next_action=render.next_action(explanation.step),
        reasons=explanation.reasons,
    )


def render_quiet(quiet: Quiet) -> pb.WatchSessionResponse:
    """A heartbeat."""
    return pb.WatchSessionResponse(sequence=quiet.sequence, heartbeat=pb.Heartbeat())


def render_event(watched: WatchedEvent, renderer: Renderer) -> pb.WatchSessionResponse:
    """An event with the session; only the session if all its events have been deleted."""
    session = renderer.session(watched.record)
    event = watched.event
    if event is None:
        return pb.WatchSessionResponse(
            sequence=watched.record.session.event_sequence,
            session=session,
            past_is_gone=True,
            state=session.state,
            generation=session.generation,
        )
    return pb.WatchSessionResponse(
        sequence=event.sequence,
        type=event.type,
        time=timestamp(event.time),
        session=session,
        past_is_gone=watched.past_is_gone,
        state=render.state(event.state),
        generation=event.generation,
        details=json.loads(event.details),
    )
