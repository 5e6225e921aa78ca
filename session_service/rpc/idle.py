"""Holds, what keeps a session awake, and what happens to it: into and out of messages."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from roost.session.v1 import session_service_pb2 as pb
from session_service.domain.holds import LONGEST
from session_service.rpc import render
from session_service.rpc.fields import Fields
from session_service.rpc.times import timestamp

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.holds import Hold
    from session_service.domain.idleness import Explanation
    from session_service.lifecycle.watching import Happened
    from session_service.rpc.render import Renderer

NAME_LIMIT = 64


@dataclass(frozen=True, slots=True)
class WantedHold:
    """A hold that is asked for."""

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
        fields.wrong("ttl", f"must be more than 0 s, and {LONGEST.total_seconds():.0f} s at most")
        seconds = 1
    fields.done()
    return WantedHold(session_id, name, timedelta(seconds=seconds))


def parse_release(message: pb.ReleaseHoldRequest) -> tuple[UUID, str]:
    """The session, and the name of its hold. Raises InvalidField."""
    fields = Fields()
    session_id = fields.uuid("session_id", message.session_id)
    name = fields.text("name", message.name, NAME_LIMIT, required=True)
    fields.done()
    return session_id, name


def parse_watch(message: pb.WatchSessionRequest) -> tuple[UUID, int]:
    """The session, and the last event that was seen. Raises InvalidField."""
    fields = Fields()
    session_id = fields.uuid("session_id", message.session_id)
    if message.after_sequence < 0:
        fields.wrong("after_sequence", "must be 0 or more")
    fields.done()
    return session_id, message.after_sequence


def render_hold(hold: Hold) -> pb.Hold:
    """A hold."""
    return pb.Hold(name=hold.name, expire_time=timestamp(hold.expire_time))


def render_explanation(explanation: Explanation) -> pb.ExplainIdleResponse:
    """What keeps a session awake."""
    return pb.ExplainIdleResponse(
        holds=[render_hold(hold) for hold in explanation.holds],
        idle_time=timestamp(explanation.idle_time),
        next_action=render.next_action(explanation.step),
        reasons=explanation.reasons,
    )


def render_happened(happened: Happened, renderer: Renderer) -> pb.WatchSessionResponse:
    """An event, or where all events are gone the session alone."""
    session = renderer.session(happened.record)
    event = happened.event
    if event is None:
        return pb.WatchSessionResponse(
            sequence=happened.record.session.event_sequence,
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
        past_is_gone=happened.past_is_gone,
        state=render.state(event.state),
        generation=event.generation,
        details=json.loads(event.details),
    )
