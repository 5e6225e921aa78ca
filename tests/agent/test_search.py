"""Search: the index job is apart from the append, and only turns that a session has are found.

The replicas of the tests run no index job: the tests do.
"""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agents import retention
from session_service.server.agent_service import AgentSettings
from session_service.storage.agent import search
from session_service.storage.agent.search_query import SearchQuery
from session_service.storage.database import Database
from tests.agent.harness import TIMEOUT, Replica, replica, said
from tests.eventually import eventually


async def index(agents: Replica) -> int:
    """One run of the index job."""
    return await search.index(agents.database, "english")


async def find(agents: Replica, query: str, **fields: Any) -> rpc_pb.SearchTurnsResponse:
    """SearchTurns. Any: fields of the request."""
    request = rpc_pb.SearchTurnsRequest(query=query, **fields)
    return await agents.stub.SearchTurns(request, timeout=TIMEOUT)


def places(found: rpc_pb.SearchTurnsResponse) -> set[tuple[str, int]]:
    """Where the hits are."""
    return {(hit.session_id, hit.turn_number) for hit in found.hits}


async def test_what_is_trimmed_while_it_is_indexed_is_found_no_more(agents: Replica) -> None:
    """A trim does not see entries that are not committed: it leaves their turns to the next."""
    await agents.create(session_id="a")
    await agents.append("a", "The owls roosted in the barn.")
    async with agents.database.transaction() as connection:
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        assert await search._index_batch(connection, "english", 2**40) == 1
        await agents.end("a", now=True)
        assert (await retention.run_pass(agents.database, timedelta(0))).purged == 1
    await retention.run_pass(agents.database, timedelta(0))
    for table in ("llm_turns", "llm_search"):
        assert await agents.rows(f"SELECT count(*) FROM {table}") == [(0,)], table


async def test_words_are_found_ranked_and_marked(agents: Replica) -> None:
    await agents.create("owl", session_id="a")
    await agents.append("a", "The owls roosted in the barn.", "Barn, barn, nothing but barn.")
    await agents.append("a", "Nothing here")
    assert await index(agents) == 2
    found = await find(agents, "barn")
    assert [(hit.turn_number, hit.message_index, hit.role) for hit in found.hits] == [
        (1, 1, "assistant"),
        (1, 0, "user"),
    ]
    assert found.hits[0].rank > found.hits[1].rank
    assert found.hits[1].highlight == "owls roosted in the «barn»"
    assert found.hits[0].agent_role == "owl"
    assert len((await find(agents, "roosting owl")).hits) == 1
    assert len((await find(agents, '"owls roosted"')).hits) == 1
    assert len((await find(agents, "barn -owl")).hits) == 1
    assert not (await find(agents, "the")).hits


async def test_filters_narrow(agents: Replica) -> None:
    for role in ("ceo", "cto"):
        await agents.create(role, session_id=role)
        await agents.append(role, "budget question", "budget answer")
    await index(agents)
    assert len((await find(agents, "budget")).hits) == 4
    assert places(await find(agents, "budget", agent_role="cto")) == {("cto", 1)}
    assert places(await find(agents, "budget", session_id="ceo")) == {("ceo", 1)}
    found = await find(agents, "budget", message_roles=["assistant"])
    assert {hit.role for hit in found.hits} == {"assistant"}
    now = datetime.now(UTC)
    assert not (await find(agents, "budget", from_time=now + timedelta(hours=1))).hits
    assert not (await find(agents, "budget", to_time=now - timedelta(hours=1))).hits
    assert len((await find(agents, "budget", from_time=now - timedelta(hours=1))).hits) == 4


async def test_what_is_not_indexed_yet_is_told(agents: Replica) -> None:
    await agents.create(session_id="a")
    for _ in range(3):
        await agents.append("a", "pending")
    found = await find(agents, "pending")
    assert (len(found.hits), found.unindexed_turn_count) == (0, 3)
    assert 0 < found.index_lag.ToTimedelta().total_seconds() < 60
    assert await index(agents) == 3
    assert await index(agents) == 0
    found = await find(agents, "pending")
    assert (len(found.hits), found.unindexed_turn_count) == (3, 0)
    assert found.index_lag.ToTimedelta() == timedelta(0)


async def test_a_turn_that_commits_late_is_not_skipped(agents: Replica, database_url: str) -> None:
    """Its number is given out before another's that commits first."""
    await agents.create(session_id="slow")
    await agents.create(session_id="fast")
    async with Database(database_url) as database, database.transaction() as connection:
        await connection.execute(
            "WITH s AS (UPDATE llm_sessions SET turn_count = 1 WHERE session_id = 'slow'"
            " RETURNING head_branch) INSERT INTO llm_turns (branch_id, turn_number, tokens,"
            " estimated_tokens, size_bytes, tokens_after, estimated_after, bytes_after,"
            " create_time, tenant, roles, contents, token_counts)"
            " SELECT head_branch, 1, 0, 0, 9, 0, 0, 9, now(), 'default', '{user}',"
            " '{late words}', '{NULL}' FROM s"
        )
        await agents.append("fast", "early words")
        # It gives up for now rather than skip.
        assert await index(agents) == 0
    assert await index(agents) == 2
    assert places(await find(agents, "words")) == {("slow", 1), ("fast", 1)}


@pytest.mark.parametrize(
    "content",
    [
        "needle " + "x" * 999_990,
        "needle " + " ".join(f"{i:06d}é{i}" for i in range(80_000)),
        "needle " + "-".join(f"ж{i}ж" for i in range(90_000)),
        "needle " + "🦉 " * 200_000,
        "needle http://" + "/".join(f"a{i}" for i in range(140_000)),
    ],
    ids=["one word", "all distinct", "hyphens", "emoji", "path"],
)
async def test_a_megabyte_never_fails_an_append_nor_the_indexer(
    agents: Replica, content: str
) -> None:
    await agents.create(session_id="m")
    await agents.append("m", content)
    await agents.append("m", "needle after")
    assert await index(agents) == 2
    assert places(await find(agents, "needle")) >= {("m", 2)}


async def test_only_what_a_session_still_has_is_found(agents: Replica) -> None:
    await agents.create(session_id="a")
    for number in range(1, 5):
        await agents.append("a", f"word turn{number}")
    await agents.fork("a", at_turn=3, new_session_id="b")
    await agents.append("b", "word inb")
    await index(agents)
    assert places(await find(agents, "word")) == {("a", n) for n in range(1, 5)} | {("b", 4)}
    await agents.rewind("a", 1)
    # Turns 2 and 3 are only in the fork now, turn 4 is in no session.
    found = places(await find(agents, "word"))
    assert found == {("a", 1), ("b", 2), ("b", 3), ("b", 4)}
    assert places(await find(agents, "word", session_id="a")) == {("a", 1)}
    assert places(await find(agents, "word", session_id="b")) == {("b", n) for n in range(1, 5)}
    await agents.undo("a")
    assert ("a", 4) in places(await find(agents, "word"))
    await agents.end("a", now=True)
    await retention.run_pass(agents.database, agents.retention)
    assert places(await find(agents, "word")) == {("b", n) for n in range(1, 5)}


async def test_pages_hold_still_while_more_is_indexed(
    database_url: str,
) -> None:
    async with replica(database_url, AgentSettings(ranked=20)) as agents:
        await check_pages(agents)


async def test_a_changed_page_token_costs_no_more_than_the_first_page(agents: Replica) -> None:
    """Its numbers come from outside: one of 18 digits must not be searched turn by turn."""
    await agents.create(session_id="p")
    for number in range(8):
        await agents.append("p", "plain words", str(number))
    await index(agents)
    first = await find(agents, "plain", page_size=3)
    token = first.next_page_token
    values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    values[1] = "9" * 18
    changed = base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")
    expected = await find(agents, "plain", page_size=3, page_token=token)
    found = await find(agents, "plain", page_size=3, page_token=changed)
    assert [hit.turn_number for hit in found.hits] == [hit.turn_number for hit in expected.hits]


async def check_pages(agents: Replica) -> None:
    """All pages of a search that ranks 20 of 25 matches; turns are added between the pages."""
    await agents.create(session_id="p")
    for number in range(25):
        await agents.append("p", "plain words", str(number))
    await index(agents)
    seen: list[int] = []
    token = ""
    while True:
        page = await find(agents, "plain", page_size=6, page_token=token)
        assert page.older_left_out
        seen += [hit.turn_number for hit in page.hits]
        token = page.next_page_token
        if not token:
            break
        await agents.append("p", "plain words")
        await index(agents)
    assert seen == list(range(25, 5, -1))


async def test_another_language_indexes_everything_anew(agents: Replica) -> None:
    await agents.create(session_id="l")
    await agents.append("l", "Häuser am See", "die Eulen")
    await index(agents)
    assert await search.index(agents.database, "german") == 1
    request = SearchQuery("default", "Haus", None, None, (), None, None, None, 0, 10)
    found = await search.search(agents.database, "german", request)
    assert [hit.message_index for hit in found.hits] == [0]


async def test_indexers_of_several_replicas_index_each_turn_once(agents: Replica) -> None:
    await agents.create(session_id="i")
    messages = [said("alone", "user", tokens=1)]
    await asyncio.gather(*(agents.append("i", messages=messages) for _ in range(60)))
    counts = list(await asyncio.gather(*(index(agents) for _ in range(4))))

    async def all_indexed() -> bool:
        # None goes on while a transaction is open anywhere in the cluster: the server's own too.
        counts.append(await index(agents))
        return sum(counts) >= 60

    assert await eventually(all_indexed)
    assert sum(counts) == 60
    assert len((await find(agents, "alone", page_size=100)).hits) == 60


async def test_figures_are_counted_by_role(agents: Replica) -> None:
    for role, turns in (("ceo", 3), ("ceo", 1), ("ceo", 0), ("cto", 1)):
        session = await agents.create(role)
        for _ in range(turns):
            await agents.append(session.session_id, "x", tokens=7)
    await agents.rows("UPDATE llm_sessions SET created_at = last_query_at - interval '10 s'")
    now = datetime.now(UTC)
    span: dict[str, Any] = {
        "from_time": now - timedelta(hours=1),
        "to_time": now + timedelta(hours=1),
    }
    request = rpc_pb.GetAgentStatsRequest(**span)
    figures = await agents.stub.GetAgentStats(request, timeout=TIMEOUT)
    ceo, cto = figures.roles
    assert (ceo.agent_role, ceo.session_count, ceo.turn_count, ceo.total_tokens) == (
        "ceo", 3, 4, 28,
    )  # fmt: skip
    assert ceo.continuation_rate == 0.5
    assert ceo.average_lifetime.seconds == 10
    assert (cto.agent_role, cto.continuation_rate) == ("cto", 0.0)
    assert (figures.total.session_count, figures.total.turn_count) == (4, 5)
    request = rpc_pb.GetAgentStatsRequest(agent_role="cto", **span)
    figures = await agents.stub.GetAgentStats(request, timeout=TIMEOUT)
    assert [role.agent_role for role in figures.roles] == ["cto"]
