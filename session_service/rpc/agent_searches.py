"""Searches and figures of agent sessions: requests and replies."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.domain.agent import ROLES
from session_service.errors import InvalidField
from session_service.rpc import agent_fields, pages
from session_service.rpc.fields import Fields
from session_service.rpc.times import duration, timestamp
from session_service.storage.agent_search import RANKED, Search

if TYPE_CHECKING:
    from session_service.storage.agent_search import Found, Hit
    from session_service.storage.agent_stats import Stats

QUERY_LIMIT = 1024


@dataclass(frozen=True, slots=True)
class WantedHits:
    """A page of what is found; it reads one more than it answers with."""

    search: Search
    size: int
    listing: str


def parse_search(message: rpc_pb.SearchTurnsRequest, tenant: str) -> WantedHits:
    """What to find."""
    fields = Fields()
    size = fields.page_size(message.page_size)
    if not message.query.strip() or len(message.query) > QUERY_LIMIT or "\0" in message.query:
        fields.wrong("query", f"must be 1 to {QUERY_LIMIT} characters, none of them NUL")
    agent_fields.session_id(fields, "session_id", message.session_id, required=False)
    if message.agent_role:
        agent_fields.agent_role(fields, "agent_role", message.agent_role)
    for i, role in enumerate(message.message_roles):
        if role not in ROLES:
            fields.wrong(f"message_roles[{i}]", f"must be one of {', '.join(ROLES)}")
    start = end = None
    if message.HasField("from_time"):
        start = agent_fields.time(fields, "from_time", message.from_time)
    if message.HasField("to_time"):
        end = agent_fields.time(fields, "to_time", message.to_time)
    fields.done()
    search = Search(
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
    listing = pages.digest("search", tenant, *_form(search))
    if message.page_token:
        through, skip = (_number(part) for part in pages.read(message.page_token, listing, 2))
        search = replace(search, through=through, skip=min(skip, RANKED))
    return WantedHits(search, size, listing)


def _form(search: Search) -> list[str]:
    """What makes a search what it is."""
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
        raise InvalidField.of("page_token", "cannot be read; begin without one")
    return int(text)


def render_search(found: Found, wanted: WantedHits) -> rpc_pb.SearchTurnsResponse:
    """The page, and where to go on: within what was indexed at the first page."""
    token = ""
    if len(found.hits) > wanted.size:
        token = pages.make(
            wanted.listing, [str(found.through), str(wanted.search.skip + wanted.size)]
        )
    return rpc_pb.SearchTurnsResponse(
        hits=[_hit(hit) for hit in found.hits[: wanted.size]],
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
    """The role, and the span."""
    fields = Fields()
    if message.agent_role:
        agent_fields.agent_role(fields, "agent_role", message.agent_role)
    start = end = datetime(1970, 1, 1, tzinfo=UTC)
    for name in ("from_time", "to_time"):
        if not message.HasField(name):
            fields.wrong(name, "must be set")
    if message.HasField("from_time"):
        start = agent_fields.time(fields, "from_time", message.from_time)
    if message.HasField("to_time"):
        end = agent_fields.time(fields, "to_time", message.to_time)
    if end < start:
        fields.wrong("to_time", "must not be before from_time")
    fields.done()
    return message.agent_role or None, start, end


def render_stats(rows: list[Stats]) -> rpc_pb.GetAgentStatsResponse:
    """The figures of each role, and their sum."""
    return rpc_pb.GetAgentStatsResponse(
        roles=[_stats(row.agent_role, [row]) for row in rows], total=_stats("", rows)
    )


def _stats(agent_role: str, rows: list[Stats]) -> rpc_pb.AgentStats:
    sessions = sum(row.sessions for row in rows)
    talked = sum(row.talked for row in rows)
    lifetime = sum((row.lifetime for row in rows), timedelta(0))
    return rpc_pb.AgentStats(
        agent_role=agent_role,
        session_count=sessions,
        turn_count=sum(row.turns for row in rows),
        total_tokens=sum(row.tokens for row in rows),
        average_lifetime=duration(lifetime / sessions if sessions else timedelta(0)),
        continuation_rate=sum(row.continued for row in rows) / talked if talked else 0.0,
    )
