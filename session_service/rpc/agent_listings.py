"""The paged calls about agent sessions: requests into pages to read, and pages into replies."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.domain.agent import AgentState, SessionFilter
from session_service.errors import InvalidField
from session_service.rpc import agent_fields, agent_render, pages
from session_service.rpc.fields import Fields
from session_service.storage.agent_listing import After
from session_service.storage.agent_reading import Position

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession
    from session_service.storage.agent_reading import Turns

_STATES: dict[int, AgentState] = {agent_render.state(state): state for state in AgentState}
_SESSION_ORDERS = {"": True, "create_time": False, "create_time asc": False}
_SESSION_ORDERS["create_time desc"] = True
_TURN_ORDERS = {"": False, "turn_number": False, "turn_number asc": False}
_TURN_ORDERS["turn_number desc"] = True


@dataclass(frozen=True, slots=True)
class WantedSessions:
    """A page of sessions."""

    filter: SessionFilter
    after: After | None
    size: int
    descending: bool
    listing: str


@dataclass(frozen=True, slots=True)
class WantedTurns:
    """A page of turns."""

    session_id: str
    position: Position
    size: int
    descending: bool
    listing: str


def parse_filter(fields: Fields, name: str, message: rpc_pb.AgentSessionFilter) -> SessionFilter:
    """Which sessions."""
    since = None
    if message.HasField("active_since_time"):
        since = agent_fields.time(fields, f"{name}.active_since_time", message.active_since_time)
    role = message.agent_role
    if role:
        agent_fields.agent_role(fields, f"{name}.agent_role", role)
    labels = agent_fields.labels(fields, f"{name}.labels", message.labels)
    states = [
        fields.choice(f"{name}.states", state, _STATES, AgentState.ACTIVE)
        for state in message.states
    ]
    return SessionFilter(
        role or None, labels if message.labels else None, since, tuple(dict.fromkeys(states))
    )


def parse_sessions(message: rpc_pb.ListAgentSessionsRequest, tenant: str) -> WantedSessions:
    """The page of sessions that is asked for."""
    fields = Fields()
    size = fields.page_size(message.page_size)
    descending = _order(fields, message.order_by, _SESSION_ORDERS, "create_time")
    wanted = parse_filter(fields, "filter", message.filter)
    fields.done()
    form = message.filter.SerializeToString(deterministic=True).hex()
    listing = pages.digest("agent_sessions", tenant, form, str(descending))
    after = None
    if message.page_token:
        after = _after(*pages.read(message.page_token, listing, 2))
    return WantedSessions(wanted, after, size, descending, listing)


def _after(time: str, session_id: str) -> After:
    try:
        created_at = datetime.fromisoformat(time)
    except ValueError:
        created_at = None
    if created_at is None or created_at.tzinfo is None or not session_id.isprintable():
        raise InvalidField.of("page_token", "cannot be read; begin without one")
    return After(created_at, session_id)


def render_sessions(
    rows: list[AgentSession], wanted: WantedSessions
) -> rpc_pb.ListAgentSessionsResponse:
    """The page, out of one row more than it holds, and where to go on."""
    shown = rows[: wanted.size]
    token = ""
    if len(rows) > wanted.size:
        last = shown[-1]
        token = pages.make(wanted.listing, [last.created_at.isoformat(), last.session_id])
    return rpc_pb.ListAgentSessionsResponse(
        agent_sessions=[agent_render.session(row) for row in shown], next_page_token=token
    )


def parse_turns(message: rpc_pb.ListTurnsRequest, tenant: str) -> WantedTurns:
    """The page of turns that is asked for."""
    fields = Fields()
    session_id = agent_fields.session_id(fields, "session_id", message.session_id)
    size = fields.page_size(message.page_size)
    descending = _order(fields, message.order_by, _TURN_ORDERS, "turn_number")
    branch = agent_fields.count(fields, "branch_id", message.branch_id)
    fields.done()
    listing = pages.digest("turns", tenant, session_id, str(descending), str(branch))
    position = Position(branch or None)
    if message.page_token:
        position = _position(pages.read(message.page_token, listing, 3))
    return WantedTurns(session_id, position, size, descending, listing)


def _position(parts: list[str]) -> Position:
    numbers = [int(part) if part.isascii() and part.isdigit() else -1 for part in parts]
    if not all(0 <= number < 2**62 for number in numbers):
        raise InvalidField.of("page_token", "cannot be read; begin without one")
    return Position(*numbers)


def render_turns(found: Turns, wanted: WantedTurns) -> rpc_pb.ListTurnsResponse:
    """The page, and where to go on: on the branch that was read, up to the turn it had then."""
    turns = list(reversed(found.turns)) if wanted.descending else found.turns
    token = ""
    if turns:
        last = turns[-1].turn_number
        if last > 1 if wanted.descending else last < found.high:
            parts = [str(found.branch_id), str(found.high), str(last)]
            token = pages.make(wanted.listing, parts)
    return rpc_pb.ListTurnsResponse(
        turns=[agent_render.turn(turn) for turn in turns], next_page_token=token
    )


def _order(fields: Fields, value: str, orders: dict[str, bool], name: str) -> bool:
    order = " ".join(value.split())
    if order not in orders:
        fields.wrong("order_by", f"must be {name} or {name} desc")
    return orders.get(order, False)
