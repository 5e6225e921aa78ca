"""Idle sessions expire softly; what nothing reaches is purged; a late writer revives nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from roost.agent.v1 import agent_session_pb2 as pb
from session_service import janitor
from session_service.storage import agent_indexing
from tests.agent.harness import Replica, request_id
from tests.container.harness import failing

if TYPE_CHECKING:
    from session_service.janitor import Swept

EXPIRED = pb.AgentSession.STATE_EXPIRED
ACTIVE = pb.AgentSession.STATE_ACTIVE
ENDED = pb.AgentSession.STATE_ENDED


async def sweep(agents: Replica) -> Swept:
    """One pass."""
    return await janitor.sweep(agents.database, agents.retention)


async def age(agents: Replica, session_id: str, seconds: int) -> None:
    """Let a session be as if all of it had been so much earlier."""
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
    assert (await sweep(agents)).expired == 1
    states = {name: (await agents.get(name)).state for name in ("idle", "busy", "ever", "long")}
    assert states == {"idle": EXPIRED, "busy": ACTIVE, "ever": ACTIVE, "long": ACTIVE}
    assert await agents.contents("idle") == ["hello"]
    failure = await failing(agents.append("idle", "more"))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert (failure.reason, failure.metadata["state"]) == ("AGENT_SESSION_EXPIRED", "EXPIRED")
    back = await agents.append("idle", "more", revive=True)
    assert (back.turn.turn_number, back.agent_session.state) == (2, ACTIVE)
    assert not back.agent_session.HasField("purge_time")
    assert (await sweep(agents)).expired == 0


async def test_the_time_to_expire_at_is_exact_though_its_index_lags(agents: Replica) -> None:
    """Appends within minutes do not move the indexed column, and still count."""
    session = await agents.create(session_id="s")
    await agents.append("s", "one")
    assert await agents.rows("SELECT due_at - created_at FROM llm_sessions") == [
        (session.idle_timeout.ToTimedelta(),)
    ]
    await agents.rows("UPDATE llm_sessions SET due_at = now() - interval '1 s'")
    assert (await sweep(agents)).expired == 0
    await age(agents, "s", 400)
    before = await agents.rows("SELECT due_at FROM llm_sessions")
    await agents.append("s", "two")
    assert await agents.rows("SELECT due_at FROM llm_sessions") > before


async def test_undelete_brings_back_and_begins_the_idle_time_anew(agents: Replica) -> None:
    await agents.create(session_id="u")
    await agents.append("u", "one")
    await age(agents, "u", 7200)
    await sweep(agents)
    assert (await agents.undelete("u")).state == ACTIVE
    assert (await sweep(agents)).expired == 0
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
    await agent_indexing.index(agents.database, "english")
    await agents.end("a", now=True)
    swept = await sweep(agents)
    assert (swept.purged, swept.turns) == (1, 2)
    assert (await failing(agents.get("a"))).reason == "AGENT_SESSION_NOT_FOUND"
    assert (await failing(agents.undelete("a"))).reason == "AGENT_SESSION_NOT_FOUND"
    assert (await failing(agents.append("a", "late"))).reason == "AGENT_SESSION_NOT_FOUND"
    assert await agents.contents("b") == ["a1", "a2", "a3", "b4"]
    assert await agents.contents("c") == ["a1", "a2", "a3", "b4", "c5"]
    assert (await agents.get("c")).total_tokens == 546
    assert (await agents.get("c")).startup_context == "begin"
    await agents.end("b", now=True)
    assert (await sweep(agents)).turns == 0
    assert await agents.contents("c") == ["a1", "a2", "a3", "b4", "c5"]
    await agents.end("c", now=True)
    assert (await sweep(agents)).turns == 5
    for table in ("llm_sessions", "llm_branches", "llm_turns", "llm_search"):
        assert await agents.rows(f"SELECT count(*) FROM {table}") == [(0,)]


async def test_what_a_rewind_set_aside_goes_with_its_session(agents: Replica) -> None:
    await agents.create(session_id="a")
    for number in range(1, 6):
        await agents.append("a", f"a{number}")
    await agents.rewind("a", 2)
    await agents.append("a", "b3")
    assert (await sweep(agents)).turns == 0
    await agents.undo("a")
    assert await agents.contents("a") == ["a1", "a2", "a3", "a4", "a5"]
    await agents.end("a", now=True)
    assert (await sweep(agents)).turns == 6


async def test_replicas_that_sweep_at_once_do_not_fight(agents: Replica) -> None:
    for number in range(40):
        await agents.create(session_id=str(number))
        await agents.append(str(number), "one")
        await agents.end(str(number), now=True)
    swept = await asyncio.gather(*(sweep(agents) for _ in range(4)))
    assert sum(each.purged for each in swept) == 40
    # What one skipped because another held it, the next pass takes.
    assert sum(each.turns for each in swept) + (await sweep(agents)).turns == 40
    assert await agents.rows("SELECT count(*) FROM llm_branches") == [(0,)]


async def test_records_of_requests_are_kept_for_a_day(agents: Replica) -> None:
    token = request_id()
    await agents.create(session_id="a", request_id=token)
    await agents.rows("UPDATE llm_requests SET create_time = now() - interval '23 h'")
    assert (await sweep(agents)).requests == 0
    await agents.rows("UPDATE llm_requests SET create_time = now() - interval '25 h'")
    assert (await sweep(agents)).requests == 1
