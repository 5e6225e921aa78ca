"""Idle sessions expire; sessions are purged; a late append revives no purged session."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import grpc
import pytest

from roost.agent.v1 import agent_session_pb2 as pb
from session_service.agents import retention
from session_service.storage.agent import expiry, search
from tests.agent.harness import Replica, request_id
from tests.container.harness import failing

if TYPE_CHECKING:
    from session_service.agents.retention import Removed

EXPIRED = pb.AgentSession.STATE_EXPIRED
ACTIVE = pb.AgentSession.STATE_ACTIVE
ENDED = pb.AgentSession.STATE_ENDED


async def run_pass(agents: Replica) -> Removed:
    """One retention pass."""
    return await retention.run_pass(agents.database, agents.retention)


async def age(agents: Replica, session_id: str, seconds: int) -> None:
    """Move all times of a session back by this much."""
    await agents.rows(
        "UPDATE llm_sessions SET (created_at, last_query_at, idle_from, seen_at, due_at, purge_at)"
        " = (created_at - s, last_query_at - s, idle_from - s, seen_at - s, due_at - s,"
        " purge_at - s) FROM make_interval(secs => %s) AS s WHERE session_id = %s",
        seconds,
        session_id,
    )


async def test_an_idle_session_expires_and_append_with_revive_brings_it_back(
    agents: Replica,
) -> None:
    for name in ("idle", "busy"):
        await agents.create(session_id=name)
    await agents.create(session_id="ever", never_expires=True)
    await agents.create(session_id="long")
    await agents.rows("UPDATE llm_sessions SET idle_timeout='1 d' WHERE session_id='long'")
    for name in ("idle", "busy", "ever", "long"):
        await agents.append(name, "hello")
        await age(agents, name, 3700)
    await agents.append("busy", "still here")
    assert (await run_pass(agents)).expired == 1
    states = {name: (await agents.get(name)).state for name in ("idle", "busy", "ever", "long")}
    assert states == {"idle": EXPIRED, "busy": ACTIVE, "ever": ACTIVE, "long": ACTIVE}
    assert await agents.contents("idle") == ["hello"]
    failure = await failing(agents.append("idle", "more"))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (failure.reason, failure.metadata["state"]) == ("AGENT_SESSION_EXPIRED", "EXPIRED")
    back = await agents.append("idle", "more", revive=True)
    assert (back.turn.turn_number, back.agent_session.state) == (2, ACTIVE)
    assert not back.agent_session.HasField("purge_time")
    assert (await run_pass(agents)).expired == 0


async def test_the_time_to_expire_at_is_exact_though_its_index_lags(agents: Replica) -> None:
    """An append does not move the indexed column, and still counts. A retention pass that meets the
    session moves it, and so meets it no more.
    """
    session = await agents.create(session_id="s")
    await agents.append("s", "one")
    assert await agents.rows("SELECT due_at - created_at FROM llm_sessions") == [
        (session.idle_timeout.ToTimedelta(),)
    ]
    await agents.rows("UPDATE llm_sessions SET due_at = now() - interval '1 s'")
    assert (await run_pass(agents)).expired == 0
    exact = (
        "SELECT due_at - last_query_at = idle_timeout, seen_at = last_query_at FROM llm_sessions"
    )
    assert await agents.rows(exact) == [(True, True)]
    await age(agents, "s", 400)
    before = await agents.rows("SELECT due_at, seen_at FROM llm_sessions")
    await agents.append("s", "two")
    assert await agents.rows("SELECT due_at, seen_at FROM llm_sessions") == before
    await age(agents, "s", 3700)
    assert (await run_pass(agents)).expired == 1


async def test_undelete_brings_back_and_begins_the_idle_time_anew(agents: Replica) -> None:
    await agents.create(session_id="u")
    await agents.append("u", "one")
    await age(agents, "u", 7200)
    await run_pass(agents)
    assert (await agents.undelete("u")).state == ACTIVE
    assert (await run_pass(agents)).expired == 0
    ended = await agents.end("u")
    assert ended.state == ENDED
    span = ended.purge_time.ToDatetime() - ended.end_time.ToDatetime()
    assert span == agents.retention
    failure = await failing(agents.append("u", "x", revive=True))
    assert (failure.reason, failure.metadata["state"]) == ("AGENT_SESSION_EXPIRED", "ENDED")
    assert (await agents.end("u")).end_time == ended.end_time
    assert (await agents.undelete("u")).state == ACTIVE
    assert (await agents.undelete("u")).state == ACTIVE


async def test_a_repeated_end_does_not_end_what_was_undeleted(agents: Replica) -> None:
    await agents.create(session_id="r")
    token = request_id()
    await agents.end("r", request_id=token)
    await agents.undelete("r")
    assert (await agents.end("r", request_id=token)).state == ACTIVE


async def test_a_recorded_refusal_is_repeated(agents: Replica) -> None:
    await agents.create(session_id="r")
    await agents.end("r")
    token = request_id()
    assert (await failing(agents.append("r", "x", request_id=token))).reason == (
        "AGENT_SESSION_EXPIRED"
    )
    await agents.undelete("r")
    assert (await failing(agents.append("r", "x", request_id=token))).reason == (
        "AGENT_SESSION_EXPIRED"
    )
    assert (await agents.append("r", "x", request_id=request_id())).turn.turn_number == 1


async def test_a_fork_survives_its_parents_purge(agents: Replica) -> None:
    await agents.create(session_id="a", startup_context="begin")
    for number in range(1, 6):
        await agents.append("a", f"a{number}", tokens=number)
    await agents.fork("a", at_turn=3, new_session_id="b")
    await agents.append("b", "b4", tokens=40)
    await agents.fork("b", at_turn=4, new_session_id="c")
    await agents.append("c", "c5", tokens=500)
    await search.index(agents.database, "english")
    await agents.end("a", now=True)
    removed = await run_pass(agents)
    assert (removed.purged, removed.turns) == (1, 2)
    assert (await failing(agents.get("a"))).reason == "AGENT_SESSION_NOT_FOUND"
    assert (await failing(agents.undelete("a"))).reason == "AGENT_SESSION_NOT_FOUND"
    assert (await failing(agents.append("a", "late"))).reason == "AGENT_SESSION_NOT_FOUND"
    assert await agents.contents("b") == ["a1", "a2", "a3", "b4"]
    assert await agents.contents("c") == ["a1", "a2", "a3", "b4", "c5"]
    assert (await agents.get("c")).total_tokens == 546
    assert (await agents.get("c")).startup_context == "begin"
    await agents.end("b", now=True)
    assert (await run_pass(agents)).turns == 0
    assert await agents.contents("c") == ["a1", "a2", "a3", "b4", "c5"]
    await agents.end("c", now=True)
    assert (await run_pass(agents)).turns == 5
    for table in ("llm_sessions", "llm_branches", "llm_turns", "llm_search"):
        assert await agents.rows(f"SELECT count(*) FROM {table}") == [(0,)]


async def test_what_a_rewind_set_aside_goes_with_its_session(agents: Replica) -> None:
    await agents.create(session_id="a")
    for number in range(1, 6):
        await agents.append("a", f"a{number}")
    await agents.rewind("a", 2)
    await agents.append("a", "b3")
    assert (await run_pass(agents)).turns == 0
    await agents.undo("a")
    assert await agents.contents("a") == ["a1", "a2", "a3", "a4", "a5"]
    await agents.end("a", now=True)
    assert (await run_pass(agents)).turns == 6


async def test_replicas_that_run_passes_at_once_do_not_conflict(agents: Replica) -> None:
    for number in range(40):
        await agents.create(session_id=str(number))
        await agents.append(str(number), "one")
        await agents.end(str(number), now=True)
    removed = await asyncio.gather(*(run_pass(agents) for _ in range(4)))
    assert sum(each.purged for each in removed) == 40
    # What one skipped because another held it, the next pass takes.
    assert sum(each.turns for each in removed) + (await run_pass(agents)).turns == 40
    assert await agents.rows("SELECT count(*) FROM llm_branches") == [(0,)]


async def test_records_of_requests_are_kept_for_a_day(agents: Replica) -> None:
    token = request_id()
    await agents.create(session_id="a", request_id=token)
    await agents.rows("UPDATE llm_requests SET create_time = now() - interval '23 h'")
    assert (await run_pass(agents)).requests == 0
    await agents.rows("UPDATE llm_requests SET create_time = now() - interval '25 h'")
    assert (await run_pass(agents)).requests == 1


async def grow(agents: Replica, chance: random.Random) -> list[str]:
    """Sessions that share turns: forks of forks, and rewinds again and again."""
    names = ["first"]
    await agents.create(session_id="first")
    for step in range(120):
        name = chance.choice(names)
        count = (await agents.get(name)).turn_count
        if count and chance.random() < 0.25:
            names.append(f"fork{step}")
            at_turn = chance.randint(1, count)
            await agents.fork(name, at_turn=at_turn, new_session_id=names[-1])
        elif count and chance.random() < 0.35:
            await agents.rewind(name, chance.randint(0, count - 1))
        else:
            await agents.append(name, f"turn {step} of {name}")
    return names


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_trim_keeps_what_sessions_reach_and_nothing_else(
    agents: Replica, seed: int
) -> None:
    """In batches of any size. What is kept is read as before; in the end nothing is left."""
    chance = random.Random(seed)
    names = await grow(agents, chance)
    await search.index(agents.database, "english")
    contents = {name: await agents.contents(name) for name in names}
    set_aside = {
        branch: await agents.contents(owner, branch_id=branch)
        for branch, owner in await agents.rows("SELECT branch_id, session_id FROM llm_branches")
    }
    while names:
        ended = chance.sample(names, min(len(names), chance.randint(1, 6)))
        await agents.rows("DELETE FROM llm_sessions WHERE session_id = ANY(%s)", ended)
        names = [name for name in names if name not in ended]
        sizes = {
            "branches": chance.choice([1, 3, 1000]),
            "turns": chance.choice([1, 2, 5, 1000]),
            "size": chance.choice([1, 40, 1 << 20]),
        }
        await expiry.delete_unreachable_turns(agents.database, **sizes)
        assert {name: await agents.contents(name) for name in names} == {
            name: contents[name] for name in names
        }
        for branch, owner in await agents.rows(
            "SELECT branch_id, session_id FROM llm_branches WHERE session_id IS NOT NULL"
        ):
            assert await agents.contents(owner, branch_id=branch) == set_aside[branch]
        # Nothing more than that: no ownerless branch ends above what a child continues.
        assert await agents.rows(UNREACHED) == []
        assert await agents.rows(ORPHANED) == []
        assert await expiry.delete_unreachable_turns(agents.database) == 0
    for table in ("llm_branches", "llm_turns", "llm_search"):
        assert await agents.rows(f"SELECT count(*) FROM {table}") == [(0,)]


#: Turns that no branch of a session continues.
UNREACHED = """
WITH RECURSIVE reached (branch_id, parent_id, parent_turn) AS (
    SELECT branch_id, parent_id, parent_turn FROM llm_branches WHERE session_id IS NOT NULL
    UNION
    SELECT b.branch_id, b.parent_id, b.parent_turn
    FROM reached r JOIN llm_branches b ON b.branch_id = r.parent_id
)
SELECT t.branch_id, t.turn_number FROM llm_turns t
JOIN llm_branches b ON b.branch_id = t.branch_id AND b.session_id IS NULL
WHERE t.turn_number > coalesce(
    (SELECT max(r.parent_turn) FROM reached r WHERE r.parent_id = t.branch_id), 0
)
"""
#: Turns and messages of branches that are gone.
ORPHANED = """
SELECT branch_id FROM llm_turns WHERE branch_id NOT IN (SELECT branch_id FROM llm_branches)
UNION ALL
SELECT branch_id FROM llm_search f WHERE NOT EXISTS (
    SELECT 1 FROM llm_turns t
    WHERE t.branch_id = f.branch_id AND t.turn_number = f.turn_number
)
"""
