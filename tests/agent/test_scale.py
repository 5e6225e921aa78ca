"""Many sessions: queries over all of them answer within a time limit, by plans that use indexes.

ROOST_SCALE=100000 fills in as many sessions, of 20 turns each; 6,000 where it is not set.
"""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import TYPE_CHECKING, Any

import pytest

from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agents import retention
from session_service.domain.agent import AgentState, SessionFilter
from session_service.storage.agent import expiry, listing, search, stats
from session_service.storage.agent.search_query import (
    SearchQuery,
    search_parameters,
    search_statement,
)
from tests.agent import scale
from tests.agent.harness import Replica, replica

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.storage.database import Statement

SESSIONS = int(os.environ.get("ROOST_SCALE", "6000"))
TURNS = 20 if SESSIONS > 10_000 else 5
#: Seconds within which each answers: the statement's own time on a quiet machine is a tenth.
BOUND = 2.0


@asynccontextmanager
async def full(database_url: str) -> AsyncGenerator[Replica]:
    """A replica over many sessions, all indexed, that does nothing by itself meanwhile."""
    async with replica(database_url) as agents:
        async with agents.database.connection() as connection:
            await scale.fill(connection, SESSIONS, TURNS)
        began = perf_counter()
        count = 0
        while added := await search.index(agents.database, "english"):
            count += added
        print(f"indexed {count} turns in {perf_counter() - began:.1f} s")
        await agents.rows("VACUUM ANALYZE llm_search")
        yield agents


async def plan(agents: Replica, sql: str, params: dict[str, Any]) -> tuple[set[str], set[str]]:
    """The indexes and the tables read whole in the plan of a statement. Any: its parameters."""
    async with agents.database.connection() as connection:
        cursor = await connection.execute(
            f"EXPLAIN (FORMAT JSON) {sql}".encode(), params, prepare=False
        )
        row = await cursor.fetchone()
    assert row is not None
    indexes: set[str] = set()
    whole: set[str] = set()
    nodes = [json.loads(row[0]) if isinstance(row[0], str) else row[0]]
    while nodes:
        node = nodes.pop()
        if isinstance(node, list):
            nodes += node
        elif isinstance(node, dict):
            nodes += [value for value in node.values() if isinstance(value, (dict, list))]
            indexes |= {node["Index Name"]} if "Index Name" in node else set()
            if node.get("Node Type") == "Seq Scan":
                whole.add(node["Relation Name"])
    return indexes, whole & {"llm_sessions", "llm_turns", "llm_search", "llm_branches"}


def statement_of(query: Statement[Any]) -> tuple[str, dict[str, Any]]:
    """A compiled statement's text and constants. Any: of every type."""
    return query.sql, dict(query.constants)


def wanted(query: str, **fields: Any) -> SearchQuery:
    """A search. Any: its fields."""
    given: dict[str, Any] = {
        "session_id": None, "agent_role": None, "message_roles": (), "from_time": None,
        "to_time": None, "through": None, "skip": 0, "size": 50,
    }  # fmt: skip
    return SearchQuery("default", query, **given | fields)


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.timeout(60 if SESSIONS <= 10_000 else 1800)
async def test_what_is_asked_of_all_sessions_uses_indexes_and_answers_soon(
    database_url: str,
) -> None:
    async with full(database_url) as agents:
        await check_plans(agents)
        await check_times(agents)


async def a_minute_ago(agents: Replica) -> datetime:
    """A minute before the newest session."""
    ((newest,),) = await agents.rows("SELECT max(last_query_at) FROM llm_sessions")
    assert isinstance(newest, datetime)
    return newest - timedelta(minutes=1)


async def check_plans(agents: Replica) -> None:
    """Each by the index that is made for it, and no table of sessions or turns read whole."""
    now = datetime.now(UTC)
    labelled = SessionFilter(labels='{"team": "t7"}')
    active = SessionFilter(active_since=await a_minute_ago(agents))
    of_role = SessionFilter(agent_role="cto", states=(AgentState.ACTIVE,))
    lists = {
        "llm_sessions_created": (SessionFilter(), False, None),
        "llm_sessions_role_created": (SessionFilter(agent_role="cto"), False, None),
        "llm_sessions_active_role_created": (of_role, False, None),
        "llm_sessions_active_role_seen": (of_role, True, None),
        "llm_sessions_role_seen": (SessionFilter(agent_role="cto"), True, None),
        "llm_sessions_state_created": (SessionFilter(states=(AgentState.ENDED,)), False, None),
        "llm_sessions_state_seen": (SessionFilter(states=(AgentState.ENDED,)), True, None),
        "llm_sessions_labels": (labelled, False, "labels"),
        "llm_sessions_active_time": (active, True, None),
    }
    for index, (wanted_filter, seen, by) in lists.items():
        form = listing.form_of(wanted_filter, seen=seen)
        query = listing.statement_of_few(form, by) if by else listing.statement(form)
        text, constants = statement_of(query)
        params = listing.filter_parameters(wanted_filter) | {"tenant": "default", "size": 51}
        found = await plan(agents, text, constants | params)
        assert (index in found[0], found[1]) == (True, set()), (index, found)
    text, constants = statement_of(expiry.EXPIRE)
    sizes: dict[str, Any] = {"size": 500, "retention": timedelta(days=1)}
    assert await plan(agents, text, constants | sizes) == (
        {"llm_sessions_due", "llm_sessions_pkey"},
        set(),
    )
    text, constants = statement_of(expiry.PURGE)
    found = await plan(agents, text, constants | {"size": 500})
    assert ("llm_sessions_purge" in found[0], found[1]) == (True, set())
    text, constants = statement_of(stats._FROM_ROWS[True])
    span = {"tenant": "default", "agent_role": "cto", "start": now - timedelta(hours=2, minutes=5)}
    found = await plan(agents, text, constants | span | {"end": now})
    assert found == ({"llm_sessions_role"}, set())
    ((through,),) = await agents.rows("SELECT indexed_through FROM llm_search_state")
    for asked, tsquery in (
        (wanted("own17x3"), "'own17x3'"),
        (wanted("common"), "'common'"),
        (wanted("common", session_id="s5"), "'common'"),
    ):
        values = search_parameters(asked, tsquery, through, "english", search.RANKED, search.BUDGET)
        found = await plan(agents, search_statement(asked, tsquery), values)
        assert ("llm_search_words" in found[0], found[1]) == (True, set()), (asked, found)


async def check_times(agents: Replica) -> None:
    """Over gRPC, each within the bound; printed."""
    now = datetime.now(UTC)
    stub = agents.stub
    times: dict[str, float] = {}

    async def timed(name: str, call: Any) -> Any:
        began = perf_counter()
        answer = await call
        times[name] = perf_counter() - began
        return answer

    def listing(**fields: Any) -> Any:
        filters = rpc_pb.AgentSessionFilter(**fields)
        return stub.ListAgentSessions(rpc_pb.ListAgentSessionsRequest(filter=filters), timeout=60)

    def searching(query: str, **fields: Any) -> Any:
        return stub.SearchTurns(rpc_pb.SearchTurnsRequest(query=query, **fields), timeout=60)

    listings: dict[str, dict[str, Any]] = {
        "list": {},
        "list by role": {"agent_role": "cfo"},
        "list by label": {"labels": {"team": "t7"}},
        "list the active": {"active_since_time": await a_minute_ago(agents)},
    }
    for name, fields in listings.items():
        page = await timed(name, listing(**fields))
        assert page.agent_sessions
    found = await timed("search, a rare word", searching("own17x3"))
    assert [hit.session_id for hit in found.hits] == ["s17"]
    assert not found.unindexed_turn_count
    found = await timed("search, one in a thousand", searching("topic7"))
    assert found.hits
    found = await timed("search, one in twenty", searching("rather3"))
    assert found.hits
    found = await timed("search, one in two", searching("common answer"))
    assert (len(found.hits), found.older_left_out) == (50, True)
    found = await timed("search of a role", searching("common", agent_role="pm"))
    assert {hit.agent_role for hit in found.hits} == {"pm"}
    found = await timed("search in a session", searching("common", session_id="s5"))
    assert len(found.hits) == TURNS
    span: dict[str, Any] = {"from_time": now - timedelta(days=30), "to_time": now}
    request = rpc_pb.GetAgentStatsRequest(**span)
    figures = await timed("figures of all", stub.GetAgentStats(request, timeout=60))
    assert figures.total.session_count == SESSIONS
    request = rpc_pb.GetAgentStatsRequest(agent_role="cto", **span)
    figures = await timed("figures of a role", stub.GetAgentStats(request, timeout=60))
    assert figures.total.turn_count == SESSIONS * TURNS // 4
    removed = await timed(
        "a pass that expires one in a hundred",
        retention.run_pass(agents.database, agents.retention),
    )
    assert removed.expired == SESSIONS // 100
    removed = await timed(
        "a pass with nothing to do", retention.run_pass(agents.database, agents.retention)
    )
    assert removed.expired == 0
    for name, seconds in times.items():
        print(f"{SESSIONS} sessions, {SESSIONS * TURNS} turns: {name}: {seconds * 1000:.0f} ms")
        assert seconds < BOUND, name
