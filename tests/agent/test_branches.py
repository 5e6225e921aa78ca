"""Forks and rewinds: contents and totals are exact; no turn is copied or lost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import pytest

from tests.agent.harness import Replica, request_id
from tests.container.harness import failing

if TYPE_CHECKING:
    from collections.abc import Awaitable


async def talked(agents: Replica, session_id: str, *contents: str) -> None:
    """A session with a turn of each content; turn n has n tokens."""
    await agents.create(session_id=session_id)
    for number, content in enumerate(contents, start=1):
        await agents.append(session_id, content, tokens=number)


async def check(agents: Replica, session_id: str, contents: list[str], tokens: int) -> None:
    """Every way of reading the session gives just these turns and totals."""
    session = await agents.get(session_id)
    assert (session.turn_count, session.total_tokens) == (len(contents), tokens)
    assert await agents.contents(session_id) == contents
    assert await agents.contents(session_id, page_size=2) == contents
    backwards = await agents.contents(session_id, page_size=2, order_by="turn_number desc")
    assert backwards == contents[::-1]
    context = await agents.context(session_id, max_tokens=10_000)
    assert [turn.messages[0].content for turn in context.turns] == contents
    assert context.tokens == tokens
    ((history,),) = await agents.rows(
        "SELECT conversation_history::text FROM llm_session_history WHERE session_id = %s",
        session_id,
    )
    assert [message["content"] for message in json.loads(history)] == contents


async def test_a_fork_of_a_fork_has_its_own_future(agents: Replica) -> None:
    await talked(agents, "a", "a1", "a2", "a3", "a4", "a5")
    before = await agents.rows("SELECT count(*) FROM llm_turns")
    fork = await agents.fork("a", at_turn=3, new_session_id="b", labels={"kind": "fork"})
    assert (fork.parent_session_id, fork.parent_turn_number) == ("a", 3)
    assert fork.agent_role == "ceo"
    assert await agents.rows("SELECT count(*) FROM llm_turns") == before
    await agents.append("b", "b4", tokens=40)
    await agents.append("b", "b5", tokens=50)
    await agents.fork("b", at_turn=4, new_session_id="c")
    await agents.append("c", "c5", tokens=500)
    await agents.append("a", "a6", tokens=6)
    await check(agents, "a", ["a1", "a2", "a3", "a4", "a5", "a6"], 21)
    await check(agents, "b", ["a1", "a2", "a3", "b4", "b5"], 96)
    await check(agents, "c", ["a1", "a2", "a3", "b4", "c5"], 546)


async def test_a_fork_may_be_at_either_end(agents: Replica) -> None:
    await talked(agents, "a", "a1", "a2")
    await agents.fork("a", new_session_id="all")
    await agents.fork("a", at_turn=0, new_session_id="nothing")
    await agents.append("nothing", "n1", tokens=1)
    await check(agents, "all", ["a1", "a2"], 3)
    await check(agents, "nothing", ["n1"], 1)
    drawn = await agents.fork("a", at_turn=1)
    assert drawn.session_id.startswith("ceo_")


async def test_a_rewind_sets_turns_aside_and_undo_brings_them_back(agents: Replica) -> None:
    await talked(agents, "a", "a1", "a2", "a3", "a4", "a5")
    was = (await agents.get("a")).branch_id
    rewound = await agents.rewind("a", 2)
    assert rewound.set_aside_branch_id == was
    await check(agents, "a", ["a1", "a2"], 3)
    await agents.append("a", "x3", tokens=30)
    await check(agents, "a", ["a1", "a2", "x3"], 33)
    assert await agents.contents("a", branch_id=was) == ["a1", "a2", "a3", "a4", "a5"]
    undone = await agents.undo("a")
    await check(agents, "a", ["a1", "a2", "a3", "a4", "a5"], 15)
    aside = undone.set_aside_branch_id
    assert await agents.contents("a", branch_id=aside, page_size=1) == ["a1", "a2", "x3"]
    await agents.append("a", "a6", tokens=6)
    await check(agents, "a", ["a1", "a2", "a3", "a4", "a5", "a6"], 21)


async def test_rewinds_can_be_undone_one_after_the_other(agents: Replica) -> None:
    await talked(agents, "a", "a1", "a2", "a3")
    await agents.rewind("a", 2)
    await agents.append("a", "b3", tokens=3)
    await agents.rewind("a", 0)
    await agents.append("a", "c1", tokens=1)
    await agents.rewind("a", 1)
    await check(agents, "a", ["c1"], 1)
    await agents.undo("a")
    await check(agents, "a", ["c1"], 1)
    await agents.undo("a")
    await check(agents, "a", ["a1", "a2", "b3"], 6)
    await agents.undo("a")
    await check(agents, "a", ["a1", "a2", "a3"], 6)
    failure = await failing(agents.undo("a"))
    assert failure.reason == "SESSION_STATE_CONFLICT"
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION


async def test_many_rewinds_leave_a_conversation_that_reads_as_one(agents: Replica) -> None:
    await talked(agents, "a", "0")
    contents = ["0"]
    for number in range(1, 30):
        await agents.append("a", "wrong", tokens=1)
        await agents.rewind("a", len(contents))
        await agents.append("a", str(number), tokens=1)
        contents.append(str(number))
    await check(agents, "a", contents, 30)
    assert [t.turn_number for t in (await agents.context("a", last_turns=2)).turns] == [29, 30]


async def test_a_repeated_rewind_is_done_once(agents: Replica) -> None:
    await talked(agents, "a", "a1", "a2", "a3")
    token = request_id()
    first = await agents.rewind("a", 1, request_id=token)
    await agents.append("a", "b2", tokens=2)
    again = await agents.rewind("a", 1, request_id=token)
    assert again.set_aside_branch_id == first.set_aside_branch_id
    assert again.agent_session.turn_count == 2
    await check(agents, "a", ["a1", "b2"], 3)
    failure = await failing(agents.rewind("a", 0, request_id=token))
    assert failure.reason == "REQUEST_ID_REUSED"
    fork = request_id()
    made = await agents.fork("a", request_id=fork)
    assert (await agents.fork("a", request_id=fork)).session_id == made.session_id
    undo = request_id()
    await agents.undo("a", request_id=undo)
    await agents.undo("a", request_id=undo)
    await check(agents, "a", ["a1", "a2", "a3"], 6)


async def test_an_append_after_a_rewind_still_knows_its_request(agents: Replica) -> None:
    await talked(agents, "a", "a1")
    token = request_id()
    done = await agents.append("a", "a2", request_id=token)
    await agents.rewind("a", 1)
    again = await agents.append("a", "a2", request_id=token)
    assert again.turn == done.turn
    assert again.agent_session.turn_count == 1


@pytest.mark.parametrize("call", ["fork", "rewind", "conflict", "branch", "missing", "taken"])
async def test_what_cannot_be_is_refused(agents: Replica, call: str) -> None:
    await talked(agents, "a", "a1")
    await talked(agents, "b", "b1")
    foreign = (await agents.get("b")).branch_id
    calls: dict[str, tuple[Awaitable[object], str]] = {
        "fork": (agents.fork("a", at_turn=2), "INVALID_FIELD"),
        "rewind": (agents.rewind("a", 2), "INVALID_FIELD"),
        "conflict": (agents.rewind("a", 0, expected_turn_count=5), "TURN_CONFLICT"),
        "branch": (agents.turns("a", branch_id=foreign), "INVALID_FIELD"),
        "missing": (agents.fork("none"), "AGENT_SESSION_NOT_FOUND"),
        "taken": (agents.fork("a", new_session_id="b"), "AGENT_SESSION_EXISTS"),
    }
    for name, (awaitable, reason) in calls.items():
        if name == call:
            assert (await failing(awaitable)).reason == reason
        else:
            awaitable.close()  # type: ignore[attr-defined]  # a coroutine that is not wanted
    await check(agents, "a", ["a1"], 1)
