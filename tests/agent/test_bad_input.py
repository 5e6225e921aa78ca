"""Invalid requests: rejected with the name of the field, and nothing is written."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.errors import InvalidField
from session_service.rpc.agent import listings, parse, streams
from tests.agent.harness import Replica, said
from tests.cases import each
from tests.container.harness import failing
from tests.paging import pages

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

LONG = "x" * 129


def create(**fields: Any) -> rpc_pb.CreateAgentSessionRequest:
    """A valid request with these fields changed. Any: fields of every type."""
    return rpc_pb.CreateAgentSessionRequest(**{"agent_role": "ceo", **fields})


def append(*messages: pb.Message, **fields: Any) -> rpc_pb.AppendTurnRequest:
    """A valid request with these fields changed. Any: fields of every type."""
    return rpc_pb.AppendTurnRequest(
        **{"session_id": "s", "messages": messages or [said("x")], **fields}
    )


def number(value: float) -> struct_pb2.Struct:
    """A struct with a number that JSON may not have."""
    return struct_pb2.Struct(fields={"n": struct_pb2.Value(number_value=value)})


WRONG: dict[str, tuple[str, Message]] = {
    "no role": ("agent_role", create(agent_role="")),
    "odd role": ("agent_role", create(agent_role="a b")),
    "long id": ("session_id", create(session_id=LONG)),
    "odd id": ("session_id", create(session_id="a\nb")),
    "no uuid": ("request_id", create(request_id="1")),
    "NUL in context": ("startup_context", create(startup_context="a\0b")),
    "large context": ("startup_context", create(startup_context="é" * 600_000)),
    "negative startup": ("startup_tokens", create(startup_tokens=-1)),
    "short idle": ("idle_timeout", create(idle_timeout=duration_pb2.Duration(nanos=5))),
    "endless idle": ("idle_timeout", create(idle_timeout=duration_pb2.Duration(seconds=2**62))),
    "both idles": (
        "idle_timeout",
        create(idle_timeout=duration_pb2.Duration(seconds=5), never_expires=True),
    ),
    'odd label': ('labels["k"]', create(labels={"k": "\0"})),
    "many labels": ("labels", create(labels={str(i): "" for i in range(17)})),
    "no messages": ("messages", rpc_pb.AppendTurnRequest(session_id="s")),
    "many messages": ("messages", append(*[said("x")] * 1001)),
    "large turn": ("messages", append(*[said("x" * 1_100_000)] * 3)),
    "no id": ("session_id", append(session_id="")),
    "odd speaker": ("messages[0].role", append(said("x", "boss"))),
    "NUL in content": ("messages[1].content", append(said("x"), said("a\0"))),
    "nothing said": ("messages[0].content", append(said(""))),
    "negative tokens": ("messages[0].tokens", append(said("x", tokens=-1))),
    "many tokens": ("messages[0].tokens", append(said("x", tokens=2**40))),
    "NUL in metadata": (
        "messages[0].metadata",
        append(said("x", metadata=struct_pb2.Struct(fields={
            "a": struct_pb2.Value(string_value="\0")
        }))),
    ),
    "NUL as a key": (
        "messages[0].metadata key",
        append(said("x", metadata=struct_pb2.Struct(fields={"\0": struct_pb2.Value()}))),
    ),
    "not a number": ("messages[0].metadata", append(said("x", metadata=number(float("nan"))))),
    "infinite": ("messages[0].metadata", append(said("x", metadata=number(float("inf"))))),
    "NUL in a call": (
        "messages[0].tool_calls[0].arguments",
        append(said("x", tool_calls=[pb.ToolCall(name="f", arguments="\0")])),
    ),
    "nameless call": (
        "messages[0].tool_calls[0].name",
        append(said("x", tool_calls=[pb.ToolCall(id="1")])),
    ),
    "large part": (
        "messages",
        append(said("x", parts=[pb.Part(mime_type="a/b", data=b"x" * 1_048_577)])),
    ),
    "negative expectation": ("expected_turn_count", append(expected_turn_count=-1)),
}  # fmt: skip


@each("name", WRONG)
async def test_a_wrong_field_is_named_and_nothing_is_written(agents: Replica, name: str) -> None:
    field, request = WRONG[name]
    if isinstance(request, rpc_pb.CreateAgentSessionRequest):
        failure = await failing(agents.stub.CreateAgentSession(request, timeout=30))
    else:
        assert isinstance(request, rpc_pb.AppendTurnRequest)
        failure = await failing(agents.stub.AppendTurn(request, timeout=30))
    assert (failure.code, failure.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert field in failure.fields
    assert await agents.rows("SELECT count(*) FROM llm_branches") == [(0,)]


async def test_a_message_over_the_limit_is_refused_by_grpc(agents: Replica) -> None:
    await agents.create(session_id="s")
    failure = await failing(agents.append("s", "x" * 4_200_000))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await agents.get("s")).turn_count == 0


async def test_foreign_page_tokens_and_orders_are_refused(agents: Replica) -> None:
    for name in ("s", "t"):
        await agents.create(session_id=name)
        for _ in range(3):
            await agents.append(name, "x")
    page = rpc_pb.ListTurnsRequest(session_id="s", page_size=1)
    token = (await agents.stub.ListTurns(page, timeout=30)).next_page_token
    sessions = rpc_pb.ListAgentSessionsRequest(page_size=1)
    other = (await agents.stub.ListAgentSessions(sessions, timeout=30)).next_page_token
    calls: list[tuple[Any, str]] = [
        (rpc_pb.ListTurnsRequest(session_id="t", page_token=token), "page_token"),
        (rpc_pb.ListTurnsRequest(session_id="s", page_token=other), "page_token"),
        (rpc_pb.ListTurnsRequest(session_id="s", page_size=-1), "page_size"),
        (rpc_pb.ListTurnsRequest(session_id="s", order_by="role"), "order_by"),
    ]
    for request, field in calls:
        failure = await failing(agents.stub.ListTurns(request, timeout=30))
        assert field in failure.fields
    bad = rpc_pb.ListAgentSessionsRequest(page_token=token)
    assert "page_token" in (await failing(agents.stub.ListAgentSessions(bad, timeout=30))).fields
    state = rpc_pb.AgentSessionFilter(states=[77])  # type: ignore[list-item]  # no such state
    bad = rpc_pb.ListAgentSessionsRequest(filter=state)
    failure = await failing(agents.stub.ListAgentSessions(bad, timeout=30))
    assert "filter.states" in failure.fields


async def test_sessions_are_listed_by_what_a_filter_says(agents: Replica) -> None:
    for i in range(7):
        labels = {"parity": str(i % 2), "n": str(i)}
        await agents.create(("ceo", "cto")[i % 2], session_id=f"s{i}", labels=labels)
    await agents.end("s4")
    await agents.rows(
        "UPDATE llm_sessions SET (last_query_at, seen_at) = (now() - interval '1 h',"
        " now() - interval '1 h') WHERE session_id < 's3'"
    )
    since = timestamp_pb2.Timestamp()
    since.GetCurrentTime()
    since.seconds -= 600

    async def listed(order: str = "", **fields: Any) -> list[str]:
        request = rpc_pb.ListAgentSessionsRequest(
            filter=rpc_pb.AgentSessionFilter(**fields), page_size=2, order_by=order
        )
        listed = pages(agents.stub.ListAgentSessions, request)
        return [each.session_id async for page in listed for each in page.agent_sessions]

    assert await listed() == [f"s{i}" for i in reversed(range(7))]
    assert await listed("create_time") == [f"s{i}" for i in range(7)]
    assert await listed(agent_role="cto") == ["s5", "s3", "s1"]
    assert await listed(labels={"parity": "0", "n": "2"}) == ["s2"]
    assert await listed(active_since_time=since) == ["s6", "s5", "s4", "s3"]
    assert await listed(states=[pb.AgentSession.STATE_ENDED]) == ["s4"]
    assert await listed(agent_role="ceo", active_since_time=since) == ["s6", "s4"]


PARSERS: dict[type[Message], Callable[[Any], object]] = {
    rpc_pb.CreateAgentSessionRequest: lambda m: parse.create(m, "t"),
    rpc_pb.AppendTurnRequest: lambda m: parse.append(m, "t"),
    rpc_pb.GetContextRequest: parse.context,
    rpc_pb.ForkAgentSessionRequest: lambda m: parse.fork(m, "t"),
    rpc_pb.RewindAgentSessionRequest: lambda m: parse.rewind(m, "t"),
    rpc_pb.EndAgentSessionRequest: lambda m: parse.end(m, "t"),
    rpc_pb.ListTurnsRequest: lambda m: listings.parse_turns(m, "t"),
    rpc_pb.ListAgentSessionsRequest: lambda m: listings.parse_sessions(m, "t"),
    rpc_pb.SearchTurnsRequest: lambda m: listings.parse_search(m, "t"),
    rpc_pb.GetAgentStatsRequest: listings.parse_stats,
    rpc_pb.WatchTurnsRequest: streams.parse_watch,
    rpc_pb.ExportAgentSessionsRequest: streams.parse_export,
    rpc_pb.ImportAgentSessionsRequest: lambda m: streams.parse_record(1, m.record),
}


@pytest.mark.parametrize("kind", PARSERS, ids=lambda kind: str(kind.__name__))
@given(data=st.binary(max_size=300))
def test_whatever_bytes_come_are_read_or_refused(kind: type[Message], data: bytes) -> None:
    """Only InvalidField comes out of the converters."""
    try:
        message = kind.FromString(data)
    except DecodeError:
        return
    try:
        PARSERS[kind](message)
    except InvalidField as refusal:
        assert refusal.violations


texts = st.text(max_size=40) | st.sampled_from(["", "\0", "user", "tool", "a" * 200])
values = st.recursive(
    st.none() | st.booleans() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=10,
)


@st.composite
def turns(draw: st.DrawFn) -> rpc_pb.AppendTurnRequest:
    """Appends of every shape."""
    messages = []
    for _ in range(draw(st.integers(0, 3))):
        message = pb.Message(role=draw(texts), content=draw(texts), name=draw(texts))
        if draw(st.booleans()):
            message.tokens = draw(st.integers(-(2**63), 2**63 - 1))
        if draw(st.booleans()):
            message.metadata.update(draw(st.dictionaries(texts, values, max_size=3)))
        if draw(st.booleans()):
            message.tool_calls.add(id=draw(texts), name=draw(texts), arguments=draw(texts))
        messages.append(message)
    return rpc_pb.AppendTurnRequest(
        request_id=draw(texts), session_id=draw(texts), messages=messages
    )


@given(request=turns())
def test_whatever_is_said_is_taken_whole_or_refused(request: rpc_pb.AppendTurnRequest) -> None:
    try:
        wanted = parse.append(request, "t")
    except InvalidField as refusal:
        assert refusal.violations
        return
    assert [message.content for message in wanted.turn.messages] == [
        message.content for message in request.messages
    ]
    for message in wanted.turn.messages:
        json.dumps(message.extra, allow_nan=False)
        assert "\0" not in message.content + json.dumps(message.extra, ensure_ascii=False)


@given(parts=st.lists(st.text(max_size=30) | st.integers(), max_size=5))
def test_a_page_token_that_somebody_made_is_read_or_refused(parts: list[object]) -> None:
    wanted = rpc_pb.ListTurnsRequest(session_id="s")
    listing = listings.parse_turns(wanted, "t").listing
    for values_ in (parts, [listing, *parts]):
        raw = json.dumps(values_).encode()
        wanted.page_token = base64.urlsafe_b64encode(raw).decode().rstrip("=")
        try:
            listings.parse_turns(wanted, "t")
        except InvalidField as refusal:
            assert refusal.violations[0].field == "page_token"
