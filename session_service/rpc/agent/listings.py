"""The calls that answer with pages (lists, search) and GetAgentStats: parse and render.

A page token (AIP-158) holds the position after the page, and a digest of the rest of the request,
so that a token of another listing is rejected. A call that lists rows reads one more than a page
holds, to know whether there is another page.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.domain.agent import ROLES, AgentState, SessionFilter
from session_service.errors import InvalidField
from session_service.rpc import fields as rpc_fields
from session_service.rpc import lists
from session_service.rpc.agent import fields as checks
from session_service.rpc.agent import render
from session_service.rpc.fields import Fields, duration, timestamp
from session_service.rpc.lists import Orders
from session_service.storage.agent.reads import Position
from session_service.storage.agent.search import RANKED
from session_service.storage.agent.search_query import SearchQuery

if TYPE_CHECKING:
    from session_service.domain.agent import AgentSession
    from session_service.storage.agent.reads import TurnPage
    from session_service.storage.agent.search import Hit, SearchResult
    from session_service.storage.agent.stats import RoleStats
    from session_service.storage.scan import Listed
    from session_service.storage.scan import Position as Place

QUERY_LIMIT = 1024
_STATES: dict[int, AgentState] = {render.state(state): state for state in AgentState}
_SESSION_ORDERS = Orders("create_time", "last_query_time", descending=True)
#: The values of `order_by`, and whether each is descending.
_TURN_ORDERS = {
    "": False,
    "turn_number": False,
    "turn_number asc": False,
    "turn_number desc": True,
}


@dataclass(frozen=True, slots=True)
class SessionsQuery:
    """A page of sessions. `listing`: the digest for page tokens, here and below."""

    filter: SessionFilter
    after: Place | None
    size: int
    seen: bool
    descending: bool
    listing: str


@dataclass(frozen=True, slots=True)
class TurnsQuery:
    """A page of turns."""

    session_id: str
    position: Position
    size: int
    descending: bool
    listing: str


@dataclass(frozen=True, slots=True)
class HitsQuery:
    """A page of hits; `search.size` is one more than `size`."""

    search: SearchQuery
    size: int
    listing: str


def parse_filter(fields: Fields, name: str, message: rpc_pb.AgentSessionFilter) -> SessionFilter:
    """A filter of sessions."""
    since = None
    if message.HasField("active_since_time"):
        since = checks.time(fields, f"{name}.active_since_time", message.active_since_time)
    role = message.agent_role
    if role:
        checks.agent_role(fields, f"{name}.agent_role", role)
    labels = checks.labels(fields, f"{name}.labels", message.labels)
    states = [
        fields.choice(f"{name}.states", state, _STATES, AgentState.ACTIVE)
        for state in message.states
    ]
    return SessionFilter(
        role or None, labels if message.labels else None, since, tuple(dict.fromkeys(states))
    )


def parse_sessions(message: rpc_pb.ListAgentSessionsRequest, tenant: str) -> SessionsQuery:
    """ListAgentSessions."""
    fields = Fields()
    size = fields.page_size(message.page_size)
    seen, descending = _SESSION_ORDERS.parse(fields, message.order_by)
    wanted = parse_filter(fields, "filter", message.filter)
    fields.done()
    form = message.filter.SerializeToString(deterministic=True).hex()
    listing = lists.digest("agent_sessions", tenant, form, seen=seen, descending=descending)
    after = lists.position(message.page_token, listing, _session_id)
    return SessionsQuery(wanted, after, size, seen, descending, listing)


def _session_id(text: str) -> str:
    if not text.isprintable():
        raise ValueError(text)
    return text


def render_sessions(
    found: Listed[AgentSession], query: SessionsQuery
) -> rpc_pb.ListAgentSessionsResponse:
    """ListAgentSessions' reply."""
    token = lists.next_token(query.listing, found.after)
    return rpc_pb.ListAgentSessionsResponse(
        agent_sessions=[render.session(row) for row in found.rows], next_page_token=token
    )


def parse_turns(message: rpc_pb.ListTurnsRequest, tenant: str) -> TurnsQuery:
    """ListTurns."""
    fields = Fields()
    session_id = checks.session_id(fields, "session_id", message.session_id)
    size = fields.page_size(message.page_size)
    descending = _descending(fields, message.order_by, _TURN_ORDERS, "turn_number")
    branch = checks.count(fields, "branch_id", message.branch_id)
    fields.done()
    listing = rpc_fields.listing_digest("turns", tenant, session_id, str(descending), str(branch))
    position = Position(branch or None)
    if message.page_token:
        position = _position(rpc_fields.read_page_token(message.page_token, listing, 3))
    return TurnsQuery(session_id, position, size, descending, listing)


def _position(parts: list[str]) -> Position:
    numbers = [int(part) if part.isascii() and part.isdigit() else -1 for part in parts]
    if not all(0 <= number < 2**62 for number in numbers):
        raise _unreadable_token()
    return Position(*numbers)


def render_turns(found: TurnPage, query: TurnsQuery) -> rpc_pb.ListTurnsResponse:
    """ListTurns' reply. The token fixes branch and last turn, so later pages see no rewind."""
    turns = list(reversed(found.turns)) if query.descending else found.turns
    token = ""
    if turns:
        last = turns[-1].turn_number
        if last > 1 if query.descending else last < found.high:
            parts = [str(found.branch_id), str(found.high), str(last)]
            token = rpc_fields.make_page_token(query.listing, parts)
    return rpc_pb.ListTurnsResponse(
        turns=[render.turn(turn) for turn in turns], next_page_token=token
    )


def _descending(fields: Fields, value: str, orders: dict[str, bool], name: str) -> bool:
    order = " ".join(value.split())
    if order not in orders:
        fields.wrong("order_by", f"must be {name} or {name} desc")
    return orders.get(order, False)


def parse_search(message: rpc_pb.SearchTurnsRequest, tenant: str) -> HitsQuery:
    """SearchTurns."""
    fields = Fields()
    size = fields.page_size(message.page_size)
    if not message.query.strip() or len(message.query) > QUERY_LIMIT or "\0" in message.query:
        fields.wrong("query", f"must be 1 to {QUERY_LIMIT} characters, none of them NUL")
    checks.session_id(fields, "session_id", message.session_id, required=False)
    if message.agent_role:
        checks.agent_role(fields, "agent_role", message.agent_role)
    for i, role in enumerate(message.message_roles):
        if role not in ROLES:
            fields.wrong(f"message_roles[{i}]", f"must be one of {', '.join(ROLES)}")
    start = end = None
    if message.HasField("from_time"):
        start = checks.time(fields, "from_time", message.from_time)
    if message.HasField("to_time"):
        end = checks.time(fields, "to_time", message.to_time)
    fields.done()
    search = SearchQuery(
        tenant,
        message.query,
        message.session_id or None,
        message.agent_role or None,
        tuple(dict.fromkeys(message.message_roles)),
        start,
        end,
        None,
        0,
        size + 1,
    )
    listing = rpc_fields.listing_digest("search", tenant, *_form(search))
    if message.page_token:
        through, since, skip = (
            _number(part) for part in rpc_fields.read_page_token(message.page_token, listing, 3)
        )
        search = replace(search, through=through, since=since, skip=min(skip, RANKED))
    return HitsQuery(search, size, listing)


def _form(search: SearchQuery) -> list[str]:
    """The parts of the request that all pages of a search share."""
    return [
        search.query,
        str(search.session_id),
        str(search.agent_role),
        ",".join(search.message_roles),
        str(search.from_time),
        str(search.to_time),
    ]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise _unreadable_token()
    return int(text)


def _unreadable_token() -> InvalidField:
    return InvalidField.of("page_token", "cannot be read; begin without one")


def render_search(found: SearchResult, query: HitsQuery) -> rpc_pb.SearchTurnsResponse:
    """SearchTurns' reply. The token limits later pages to the turns that the first ranked."""
    token = ""
    if len(found.hits) > query.size:
        parts = (found.through, found.since, query.search.skip + query.size)
        token = rpc_fields.make_page_token(query.listing, [str(part) for part in parts])
    return rpc_pb.SearchTurnsResponse(
        hits=[_hit(hit) for hit in found.hits[: query.size]],
        next_page_token=token,
        unindexed_turn_count=found.unindexed,
        index_lag=duration(max(found.lag, timedelta(0))),
        older_left_out=found.older_left_out,
    )


def _hit(hit: Hit) -> rpc_pb.SearchHit:
    return rpc_pb.SearchHit(
        session_id=hit.session_id,
        agent_role=hit.agent_role,
        turn_number=hit.turn_number,
        branch_id=hit.branch_id,
        message_index=hit.message_index,
        role=hit.role,
        highlight=hit.highlight,
        rank=hit.rank,
        create_time=timestamp(hit.create_time),
    )


def parse_stats(
    message: rpc_pb.GetAgentStatsRequest,
) -> tuple[str | None, datetime, datetime]:
    """GetAgentStats: the role (None: all), and the time span."""
    fields = Fields()
    if message.agent_role:
        checks.agent_role(fields, "agent_role", message.agent_role)
    start = end = datetime(1970, 1, 1, tzinfo=UTC)
    for name in ("from_time", "to_time"):
        if not message.HasField(name):
            fields.wrong(name, "must be set")
    if message.HasField("from_time"):
        start = checks.time(fields, "from_time", message.from_time)
    if message.HasField("to_time"):
        end = checks.time(fields, "to_time", message.to_time)
    if end < start:
        fields.wrong("to_time", "must not be before from_time")
    fields.done()
    return message.agent_role or None, start, end


def render_stats(rows: list[RoleStats]) -> rpc_pb.GetAgentStatsResponse:
    """GetAgentStats' reply: the figures of each role, and of all of them."""
    return rpc_pb.GetAgentStatsResponse(
        roles=[_stats(row.agent_role, [row]) for row in rows], total=_stats("", rows)
    )


def _stats(agent_role: str, rows: list[RoleStats]) -> rpc_pb.AgentStats:
    sessions = sum(row.sessions for row in rows)
    with_turn = sum(row.with_turn for row in rows)
    with_second_turn = sum(row.with_second_turn for row in rows)
    lifetime = sum((row.lifetime for row in rows), timedelta(0))
    return rpc_pb.AgentStats(
        agent_role=agent_role,
        session_count=sessions,
        turn_count=sum(row.turns for row in rows),
        total_tokens=sum(row.tokens for row in rows),
        average_lifetime=duration(lifetime / sessions if sessions else timedelta(0)),
        continuation_rate=with_second_turn / with_turn if with_turn else 0.0,
    )
