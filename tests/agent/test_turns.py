"""Appending and reading: in order, exactly once, byte for byte."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf import struct_pb2

from roost.agent.v1 import agent_session_pb2 as pb
from tests.agent.harness import numbers, replica, request_id, said
from tests.container.harness import failing
from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.agent.harness import Replica


async def test_a_session_begins_empty_under_an_id_that_tells_its_role(agents: Replica) -> None:
    session = await agents.create("ceo", startup_context="Be brief.", labels={"team": "a"})
    assert re.fullmatch(r"ceo_\d{10}_\d{6}", session.session_id)
    assert session.state == pb.AgentSession.STATE_ACTIVE
    assert (session.turn_count, session.total_tokens) == (0, 0)
    assert session.startup_context == "Be brief."
    assert dict(session.labels) == {"team": "a"}
    assert session.idle_timeout.seconds == 3600
    assert await agents.get(session.session_id) == session


async def test_turns_are_numbered_and_their_tokens_summed(agents: Replica) -> None:
    session = await agents.create(session_id="mine")
    first = await agents.append("mine", "hello", "hi", tokens=100)
    second = await agents.append("mine", "more", tokens=7)
    assert (first.turn.turn_number, first.turn.tokens) == (1, 200)
    assert (second.turn.turn_number, second.turn.total_tokens) == (2, 207)
    assert second.agent_session.turn_count == 2
    assert second.agent_session.total_tokens == 207
    assert second.agent_session.branch_id == session.branch_id
    turns = await agents.turns("mine")
    assert [[m.content for m in turn.messages] for turn in turns] == [["hello", "hi"], ["more"]]
    assert [m.role for m in turns[0].messages] == ["user", "assistant"]
    assert turns[1].create_time == second.turn.create_time


async def test_contents_are_kept_byte_for_byte(agents: Replica) -> None:
    texts = ["🦉 ünïcödé\u202e\ufffe", '\\N "quoted" {a,b} NULL \r\n\t\x01', "x" * 1_000_000]
    await agents.create(session_id="bytes")
    metadata = struct_pb2.Struct()
    metadata.update({"a": [1.5, None, {"b": "🦉"}], "c": True})
    call = pb.ToolCall(id="1", name="find", arguments='{"q": "\\u0000 stays text"}')
    rich = said("", "assistant", tool_calls=[call], metadata=metadata, name="Ann")
    picture = said("look", parts=[pb.Part(mime_type="image/png", data=bytes(range(256)))])
    answer = said("found", "tool", tool_call_id="1", tokens=3)
    messages = [*map(said, texts), rich, picture, answer]
    await agents.append("bytes", messages=messages)
    (turn,) = await agents.turns("bytes")
    for kept, given in zip(turn.messages, messages, strict=True):
        kept.estimated_tokens = 0
        assert kept == given


async def test_a_missing_count_is_estimated_and_marked(agents: Replica) -> None:
    await agents.create(session_id="rough", startup_context="12345678")
    await agents.append("rough", "x" * 401, tokens=None)
    await agents.append("rough", "counted", tokens=5)
    context = await agents.context("rough")
    assert (context.tokens, context.estimated_tokens) == (5, 2 + 101)
    first = context.turns[0].messages[0]
    assert not first.HasField("tokens")
    assert first.estimated_tokens == 101
    assert context.agent_session.estimated_tokens == 101


async def test_a_context_is_the_newest_turns_that_fit(agents: Replica) -> None:
    await agents.create(session_id="c", startup_context="You are.", startup_tokens=10)
    for number in range(1, 12):
        await agents.append("c", f"turn {number}", "answer", tokens=number)
    for budget, first in ((10, 12), (31, 12), (32, 11), (51, 11), (52, 10), (141, 2), (142, 1)):
        context = await agents.context("c", max_tokens=budget)
        assert numbers(context.turns) == list(range(first, 12)), budget
        assert context.omitted_turn_count == first - 1
        assert context.tokens == 10 + sum(2 * n for n in range(first, 12))
        assert not context.size_limited
        assert context.agent_session.startup_context == "You are."
    assert numbers((await agents.context("c", last_turns=3)).turns) == [9, 10, 11]
    assert numbers((await agents.context("c", last_turns=0)).turns) == []
    assert len((await agents.context("c", last_turns=99)).turns) == 11
    assert len((await agents.context("c")).turns) == 11


async def test_a_context_holds_no_more_than_a_reply_does(agents: Replica) -> None:
    await agents.create(session_id="big")
    for _ in range(5):
        await agents.append("big", "x" * 1_000_000, tokens=1)
    context = await agents.context("big", max_tokens=1000)
    assert (numbers(context.turns), context.size_limited) == ([3, 4, 5], True)
    context = await agents.context("big", max_tokens=3)
    assert (numbers(context.turns), context.size_limited) == ([3, 4, 5], False)
    context = await agents.context("big", last_turns=3)
    assert (numbers(context.turns), context.size_limited) == ([3, 4, 5], False)
    assert numbers(await agents.turns("big")) == [1, 2, 3, 4, 5]
    assert numbers(await agents.turns("big", order_by="turn_number desc")) == [5, 4, 3, 2, 1]


async def test_pages_go_both_ways(agents: Replica) -> None:
    await agents.create(session_id="p")
    for number in range(7):
        await agents.append("p", str(number))
    assert numbers(await agents.turns("p", page_size=3)) == [1, 2, 3, 4, 5, 6, 7]
    backwards = await agents.turns("p", page_size=2, order_by="turn_number desc")
    assert numbers(backwards) == [7, 6, 5, 4, 3, 2, 1]


async def test_eight_writers_lose_and_reorder_nothing(agents: Replica) -> None:
    """1,000 turns: numbers 1 to 1,000, each once; the totals equal the sums."""
    await agents.create(session_id="busy")
    acknowledged: dict[int, str] = {}

    async def write(writer: int) -> None:
        seen = 0
        for number in range(125):
            text = f"{writer}:{number}"
            done = await agents.append("busy", text, tokens=writer + 1)
            assert done.turn.turn_number > seen
            seen = done.turn.turn_number
            acknowledged[seen] = text

    async with asyncio.TaskGroup() as group:
        for writer in range(8):
            group.create_task(write(writer))
    turns = await agents.turns("busy", page_size=500)
    assert numbers(turns) == list(range(1, 1001))
    assert {turn.turn_number: turn.messages[0].content for turn in turns} == acknowledged
    session = await agents.get("busy")
    assert session.turn_count == 1000
    assert session.total_tokens == sum(turn.tokens for turn in turns) == 125 * 36
    assert turns[-1].total_tokens == session.total_tokens
    times = [turn.create_time.ToNanoseconds() for turn in turns]
    assert times == sorted(times)


async def test_a_repeat_is_answered_with_the_turn_that_it_made(agents: Replica) -> None:
    await agents.create(session_id="r")
    token = request_id()
    first = await agents.append("r", "once", request_id=token)
    await agents.append("r", "another")
    again = await agents.append("r", "once", request_id=token)
    assert again.turn == first.turn
    assert again.agent_session.turn_count == 2
    failure = await failing(agents.append("r", "other body", request_id=token))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "REQUEST_ID_REUSED",
    )
    assert await agents.contents("r") == ["once", "another"]


async def test_racing_repeats_append_once(agents: Replica) -> None:
    await agents.create(session_id="race")
    tokens = [request_id() for _ in range(10)]
    sends = [agents.append("race", token, request_id=token) for token in tokens for _ in range(8)]
    answers = await asyncio.gather(*sends)
    assert len({answer.turn.turn_number for answer in answers}) == 10
    assert sorted(await agents.contents("race")) == sorted(tokens)
    assert (await agents.get("race")).turn_count == 10


async def test_an_append_after_others_is_a_conflict_that_tells_the_count(agents: Replica) -> None:
    await agents.create(session_id="e")
    await agents.append("e", "one", expected_turn_count=0)
    token = request_id()
    for _ in range(2):
        failure = await failing(agents.append("e", "x", expected_turn_count=0, request_id=token))
        assert (failure.code, failure.reason) == (grpc.StatusCode.ABORTED, "TURN_CONFLICT")
        assert failure.metadata["turn_count"] == "1"
    assert (await agents.append("e", "two", expected_turn_count=1)).turn.turn_number == 2


async def test_one_of_racing_expectations_wins(agents: Replica) -> None:
    await agents.create(session_id="o")
    sends = [agents.append("o", str(i), expected_turn_count=0) for i in range(8)]
    answers = await asyncio.gather(*sends, return_exceptions=True)
    assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
    assert (await agents.get("o")).turn_count == 1


async def test_what_is_not_there_is_not_found(agents: Replica) -> None:
    for call in (
        agents.get("none"),
        agents.append("none", "x"),
        agents.context("none"),
        agents.turns("none"),
    ):
        failure = await failing(call)
        assert failure.code is grpc.StatusCode.NOT_FOUND
        assert failure.reason == "AGENT_SESSION_NOT_FOUND"


@pytest.mark.parametrize("known", [True, False])
async def test_a_taken_id_is_refused_and_a_repeat_is_not(agents: Replica, known: bool) -> None:
    token = request_id() if known else ""
    made = await agents.create(session_id="t", request_id=token)
    if known:
        assert await agents.create(session_id="t", request_id=token) == made
    failure = await failing(agents.create(session_id="t"))
    assert failure.code is grpc.StatusCode.ALREADY_EXISTS
    assert failure.reason == "AGENT_SESSION_EXISTS"


async def test_appends_touch_no_index_of_the_sessions(database_url: str) -> None:
    """Each stays heap-only, with all that a session can have, also after a pause of hours."""
    async with replica(database_url) as agents:
        await agents.create(session_id="hot", startup_context="x" * 1500, labels={"a": "b"})
        await agents.create(session_id="rare")
        for number in range(50):
            await agents.append("hot", str(number), request_id=request_id())
            if number % 10 == 0:
                # Dated back by the columns that no index has.
                await agents.rows(
                    "UPDATE llm_sessions SET last_query_at = last_query_at - interval '3 h'"
                    " WHERE session_id = 'rare'"
                )
                await agents.append("rare", str(number), revive=number % 20 == 0)
    async with replica(database_url) as agents:

        async def figures() -> list[tuple[int, int]]:
            return await agents.rows(
                "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables"
                " WHERE relname = 'llm_sessions'"
            )

        # A connection tells its figures when its process at the server ends.
        async def all_told() -> bool:
            return (await figures())[0][0] >= 60

        assert await eventually(all_told)
        assert await figures() == [(60, 60)]
