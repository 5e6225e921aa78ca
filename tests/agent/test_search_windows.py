"""A search finds the same by windows as by reading everything.

The replicas of the tests run no background job: the tests index, and leave roles out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.storage.agent import search
from session_service.storage.agent.search_query import LARGE, PROBE, SearchQuery
from tests.agent.harness import TIMEOUT, Replica, said

WORDS = ["owl", "barn", "roost", "feather", "moon", "field", "hedge", "vole"]
ROLES = ["ceo", "cto", "cfo"]
DAYS = 400
#: A search looks for all matches, however slow the machine is.
ENDLESS = timedelta(minutes=10)


@dataclass(frozen=True)
class Found:
    """A message that a session has."""

    turn_id: int
    branch_id: int
    turn_number: int
    message_index: int
    session_id: str
    agent_role: str
    role: str
    content: str
    create_time: datetime

    @property
    def place(self) -> tuple[int, int, int]:
        """What identifies it."""
        return self.branch_id, self.turn_number, self.message_index


def wanted(query: str, **fields: Any) -> SearchQuery:
    """A search of all hits. Any: its fields."""
    given: dict[str, Any] = {
        "session_id": None, "agent_role": None, "message_roles": (), "from_time": None,
        "to_time": None, "through": None, "skip": 0, "size": 5000,
    }  # fmt: skip
    return SearchQuery("default", query, **given | fields)


async def index(agents: Replica) -> None:
    """Index all turns."""
    while await search.index(agents.database, "english"):
        pass


async def fill(agents: Replica, chance: random.Random) -> None:
    """Sessions with turns of a few words, some shared or set aside, far apart in turn_id."""
    names = [f"s{number}" for number in range(6)]
    for number, name in enumerate(names):
        await agents.create(ROLES[number % len(ROLES)], session_id=name)
    for step in range(90):
        await agents.rows(
            "SELECT setval('llm_turns_turn_id_seq',"
            " (SELECT coalesce(max(turn_id), 0) FROM llm_turns) + %s)",
            chance.choice([1, 1, 2000, 70_000]),
        )
        name = chance.choice(names)
        count = (await agents.get(name)).turn_count
        if count > 2 and chance.random() < 0.08:
            await agents.rewind(name, chance.randint(0, count - 1))
        elif count > 2 and chance.random() < 0.08:
            names.append(f"f{step}")
            at_turn = chance.randint(1, count)
            await agents.fork(name, at_turn=at_turn, new_session_id=names[-1])
        messages = [
            said(
                " ".join(chance.choices(WORDS, weights=range(1, 9), k=chance.randint(1, 4))),
                chance.choice(["user", "assistant", "tool"]),
                tokens=1,
            )
            for _ in range(chance.randint(1, 3))
        ]
        await agents.append(name, messages=messages)
    await agents.rows(
        "UPDATE llm_turns SET create_time = now() - (turn_number * 7919 + branch_id * 104729)"
        " %% (%s * 86400) * interval '1 s'",
        DAYS,
    )


async def everything(agents: Replica) -> list[Found]:
    """The messages that sessions have, by the list of turns."""
    ids = {
        (branch, number): turn_id
        for branch, number, turn_id in await agents.rows(
            "SELECT branch_id, turn_number, turn_id FROM llm_turns"
        )
    }
    sessions = await agents.stub.ListAgentSessions(
        rpc_pb.ListAgentSessionsRequest(page_size=500), timeout=TIMEOUT
    )
    return [
        Found(
            ids[turn.branch_id, turn.turn_number],
            turn.branch_id,
            turn.turn_number,
            place,
            session.session_id,
            session.agent_role,
            message.role,
            message.content,
            turn.create_time.ToDatetime(UTC),
        )
        for session in sessions.agent_sessions
        for turn in await agents.turns(session.session_id, page_size=500)
        for place, message in enumerate(turn.messages)
    ]


async def expected(
    agents: Replica, messages: list[Found], query: SearchQuery, ranked: int
) -> set[tuple[int, int, int]]:
    """What the search must find: the newest that match, each message read."""
    texts = sorted({message.content for message in messages})
    matching = {
        text
        for (text,) in await agents.rows(
            "SELECT text FROM unnest(%s::text[]) AS t (text)"
            " WHERE to_tsvector('english', text) @@ websearch_to_tsquery('english', %s)",
            texts,
            query.query,
        )
    }
    found = {
        (message.turn_id, message.message_index): message.place
        for message in messages
        if message.content in matching
        and query.session_id in (None, message.session_id)
        and query.agent_role in (None, message.agent_role)
        and (not query.message_roles or message.role in query.message_roles)
        and (query.from_time is None or message.create_time >= query.from_time)
        and (query.to_time is None or message.create_time < query.to_time)
    }
    return {found[key] for key in sorted(found, reverse=True)[:ranked]}


def any_query(chance: random.Random, sessions: list[str]) -> SearchQuery:
    """A query with some of the filters."""
    first, second = chance.choice(WORDS), chance.choice(WORDS)
    text = chance.choice(
        [
            first,
            "absent",
            f"{first} {second}",
            f'"{first} {second}"',
            f"{first} or {second}",
            f"{first} -{second}",
            f"-{first}",
            f"{first} {second} or moon -vole",
            f'{first} -"{second} owl"',
        ]
    )
    start = datetime.now(UTC) - timedelta(days=chance.uniform(0, DAYS))
    every: dict[str, Any] = {
        "session_id": chance.choice(sessions),
        "agent_role": chance.choice([*ROLES, "none"]),
        "message_roles": tuple(chance.sample(["user", "assistant", "tool", "system"], 2)),
        "from_time": start,
        "to_time": start + timedelta(days=chance.choice([0.02, 1, 30, 300])),
    }
    return wanted(text, **{name: value for name, value in every.items() if chance.random() < 0.3})


@pytest.mark.parametrize("seed", [1, 2])
async def test_any_search_finds_what_a_reader_of_everything_finds(
    agents: Replica, seed: int
) -> None:
    """Also while roles are not filled in, in part or at all."""
    chance = random.Random(seed)
    await fill(agents, chance)
    await index(agents)
    messages = await everything(agents)
    sessions = sorted({message.session_id for message in messages})
    for unfilled in ("turn_id > 0", "mod(turn_id, 2) = 0", "false"):
        await agents.rows(f"UPDATE llm_search SET agent_role = NULL WHERE {unfilled}")
        for _ in range(40):
            query, ranked = any_query(chance, sessions), chance.choice([3, 1000])
            found = await search.search(agents.database, "english", query, ranked, ENDLESS)
            places = [(hit.branch_id, hit.turn_number, hit.message_index) for hit in found.hits]
            assert len(places) == len(set(places))
            assert set(places) == await expected(agents, messages, query, ranked), query
            if query.agent_role:
                assert {hit.agent_role for hit in found.hits} <= {query.agent_role}
        while await search.fill_roles(agents.database, 1):
            pass
        assert await agents.rows("SELECT 1 FROM llm_search WHERE agent_role IS NULL") == []


async def test_the_roles_that_are_filled_in_are_those_of_the_sessions(agents: Replica) -> None:
    """As the index job writes them; of a purged session's turns, those of its forks."""
    await fill(agents, random.Random(3))
    await index(agents)
    before = await agents.rows("SELECT turn_id, message_index, agent_role FROM llm_search")
    await agents.rows("UPDATE llm_search SET agent_role = NULL")
    assert await search.fill_roles(agents.database) == len(before)
    after = await agents.rows("SELECT turn_id, message_index, agent_role FROM llm_search")
    assert sorted(after) == sorted(before)
    assert {role for _, _, role in after} == set(ROLES)
    await agents.create("owner", session_id="parent")
    await agents.append("parent", "kept words")
    await agents.fork("parent", at_turn=1, new_session_id="child")
    await agents.rows("DELETE FROM llm_sessions WHERE session_id = 'parent'")
    await index(agents)
    assert await agents.rows("SELECT agent_role FROM llm_search WHERE document @@ 'kept'") == [
        ("owner",)
    ]


#: Turns of one session, 20 turn ids apart, with words in each, in one of two, and in the first ten.
DENSE = """
WITH turn AS (
    INSERT INTO llm_turns (branch_id, turn_number, turn_id, tokens, estimated_tokens, size_bytes,
        tokens_after, estimated_after, bytes_after, create_time, tenant, roles, contents,
        token_counts) OVERRIDING SYSTEM VALUE
    SELECT head_branch, n, n * 20, 1, 0, 9, n, 0, n * 9, now(), 'default', '{user}',
        ARRAY['dense' || CASE WHEN mod(n, 2) = 0 THEN ' even' ELSE ' odd' END
            || CASE WHEN n <= 10 THEN ' first' ELSE '' END], '{1}'
    FROM llm_sessions, generate_series(1, 5000) AS n WHERE session_id = 'dense'
)
UPDATE llm_sessions SET turn_count = 5000 WHERE session_id = 'dense'
"""


async def test_more_matches_than_are_taken_at_once_are_found_newest_first(
    agents: Replica,
) -> None:
    """Several times as many in a large window as `PROBE`; and rare words among the oldest."""
    assert PROBE * 2 < (1 << LARGE) // 20
    await agents.create("ceo", session_id="dense")
    await agents.rows(DENSE)
    await agents.rows("SELECT setval('llm_turns_turn_id_seq', 100000)")
    await index(agents)
    for query, numbers in (
        ("dense", range(5000, 4000, -1)),
        ("even", range(5000, 3000, -2)),
        ("dense odd", range(4999, 2999, -2)),
        ("dense or absent", range(5000, 4000, -1)),
        ("first", range(10, 0, -1)),
        ("first even", range(10, 0, -2)),
        ("even odd", range(0)),
    ):
        found = await search.search(agents.database, "english", wanted(query), budget=ENDLESS)
        assert [hit.turn_number for hit in found.hits] == list(numbers), query
        assert found.older_left_out == (len(numbers) == 1000)


async def test_a_search_without_time_says_that_it_left_messages_out(agents: Replica) -> None:
    await agents.create(session_id="a")
    await agents.append("a", "words")
    await index(agents)
    found = await search.search(
        agents.database, "english", wanted("words"), budget=timedelta(seconds=-1)
    )
    assert (found.hits, found.older_left_out) == ([], True)
