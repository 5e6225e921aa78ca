"""Dumps: import and export byte for byte, repeated imports, refusals with reasons."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import struct_pb2

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agents import dumps
from session_service.domain.agent import SessionFilter
from session_service.rpc.agent import streams
from session_service.storage.agent import listing
from session_service.storage.agent.export import conversations
from tests.agent.harness import TIMEOUT, Replica, numbers, replica, said
from tests.service_processes import fork

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.database import Databases


async def export(agents: Replica, **fields: Any) -> list[pb.AgentSessionRecord]:
    """ExportAgentSessions. Any: fields of the request."""
    request = rpc_pb.ExportAgentSessionsRequest(**fields)
    stream = agents.stub.ExportAgentSessions(request, timeout=TIMEOUT)
    return [response.record async for response in stream]


async def take(
    agents: Replica, records: Iterable[pb.AgentSessionRecord]
) -> rpc_pb.ImportAgentSessionsResponse:
    """ImportAgentSessions."""
    requests = [rpc_pb.ImportAgentSessionsRequest(record=record) for record in records]
    return await agents.stub.ImportAgentSessions(iter(requests), timeout=TIMEOUT)


async def fill(agents: Replica) -> None:
    """Sessions with everything that a turn can hold, and a fork that shares a turn."""
    metadata = struct_pb2.Struct()
    metadata.update({"n": 1e300, "list": [None, 2, "🦉"]})
    await agents.create("ceo", session_id="a", startup_context="Be brief.", startup_tokens=3)
    await agents.append("a", messages=[said('🦉 \\ "\n', metadata=metadata, tokens=5)])
    picture = pb.Part(mime_type="image/png", data=b"\x00\xff")
    call = pb.ToolCall(id="c", name="f", arguments="{}")
    await agents.append("a", messages=[said("look", parts=[picture]), said("", tool_calls=[call])])
    await agents.fork("a", at_turn=1, new_session_id="b", labels={"kind": "fork"})
    await agents.append("b", "own")
    await agents.create("cto", session_id="empty", never_expires=True)


def comparable(record: pb.AgentSessionRecord) -> pb.AgentSessionRecord:
    """The record without the fields that an import sets newly."""
    kept = pb.AgentSessionRecord()
    kept.CopyFrom(record)
    if kept.HasField("session"):
        for name in ("expire_time", "branch_id", "parent_session_id", "parent_turn_number"):
            kept.session.ClearField(name)
    else:
        kept.turn.turn.branch_id = 0
    return kept


async def test_a_dump_moves_out_and_in_unchanged(
    agents: Replica, databases: Databases, migrated_database: str
) -> None:
    await fill(agents)
    records = await export(agents)
    assert [r.WhichOneof("record") for r in records] == [
        *("session", "turn", "turn"),
        *("session", "turn", "turn"),
        "session",
    ]
    url = databases.create(template=migrated_database)
    async with replica(url) as elsewhere:
        report = await take(elsewhere, records)
        assert (report.imported_session_count, report.imported_turn_count) == (3, 4)
        again = await take(elsewhere, records)
        assert (again.existing_session_count, again.existing_turn_count) == (3, 4)
        assert again.imported_session_count + again.imported_turn_count + again.refused_count == 0
        assert [comparable(r) for r in await export(elsewhere)] == [comparable(r) for r in records]
        session = await elsewhere.get("a")
        assert session.total_tokens == (await agents.get("a")).total_tokens
        assert (await elsewhere.append("a", "on")).turn.turn_number == 3
    databases.drop(url)


async def test_an_export_can_be_narrowed(agents: Replica) -> None:
    await fill(agents)
    filters = rpc_pb.AgentSessionFilter(labels={"kind": "fork"})
    assert {r.session.session_id for r in await export(agents, filter=filters)} == {"b", ""}
    assert len(await export(agents, session_ids=["empty", "none"])) == 1


def session(session_id: str, agent_role: str = "ceo") -> pb.AgentSessionRecord:
    """A session's record."""
    return pb.AgentSessionRecord(
        session=pb.AgentSession(session_id=session_id, agent_role=agent_role)
    )


def turn(session_id: str, number: int, *contents: str) -> pb.AgentSessionRecord:
    """A turn's record."""
    messages = [said(content) for content in contents]
    return pb.AgentSessionRecord(
        turn=pb.SessionTurn(
            session_id=session_id, turn=pb.Turn(turn_number=number, messages=messages)
        )
    )


async def test_what_cannot_be_taken_is_told_and_the_rest_is_taken(agents: Replica) -> None:
    await agents.create("cto", session_id="other")
    await agents.create("ceo", session_id="ended")
    await agents.end("ended")
    report = await take(
        agents,
        [
            session("a"),
            turn("a", 1, "one"),
            turn("a", 3, "gap"),
            turn("a", 2, "two"),
            turn("a", 1, "another"),
            session("other"),
            turn("other", 1, "x"),
            turn("none", 1, "x"),
            session("b", "no role!"),
            session("ended"),
            turn("ended", 1, "x"),
            turn("a", 3),
            turn("a", 3, "nul \0"),
            pb.AgentSessionRecord(),
        ],
    )
    assert [(each.record_number, each.reason) for each in report.refusals] == [
        (3, "TURN_GAP"),
        (5, "TURN_DIFFERS"),
        (6, "SESSION_DIFFERS"),
        (7, "SESSION_REFUSED"),
        (8, "AGENT_SESSION_NOT_FOUND"),
        (9, "INVALID_FIELD"),
        (11, "SESSION_NOT_ACTIVE"),
        (12, "INVALID_FIELD"),
        (13, "INVALID_FIELD"),
        (14, "INVALID_FIELD"),
    ]
    assert report.refused_count == 10
    assert await agents.contents("a") == ["one", "two"]


async def test_a_broken_off_import_is_repeated_from_the_start(agents: Replica) -> None:
    """Each session's turns are there once, wherever the stream broke."""
    records = [session("a"), *(turn("a", n, str(n)) for n in range(1, 1301))]
    requests = [rpc_pb.ImportAgentSessionsRequest(record=record) for record in records]
    call = agents.stub.ImportAgentSessions(timeout=TIMEOUT)
    for request in requests[:800]:
        await call.write(request)
    call.cancel()
    await asyncio.wait([asyncio.ensure_future(call.wait_for_connection())])
    report = await take(agents, records)
    assert report.refused_count == 0
    assert report.imported_turn_count + report.existing_turn_count == 1300
    assert numbers(await agents.turns("a", page_size=500)) == list(range(1, 1301))
    assert (await agents.get("a")).turn_count == 1300


async def command(agents: Replica, *arguments: str, text: str = "") -> tuple[int, str, str]:
    """`python -m session_service agent …`: status, output, errors."""
    process = await fork(
        "session_service",
        *("agent", "--target", agents.target, *arguments),
        environment={"PATH": os.environ["PATH"]},
        data=text.encode(),
    )
    out, err = await asyncio.wait_for(process.communicate(), 50)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_command_moves_a_dump(agents: Replica, tmp_path: Path) -> None:
    await fill(agents)
    dump = tmp_path / "dump.jsonl"
    assert (await command(agents, "export", str(dump)))[0] == 0
    lines = dump.read_text().splitlines()
    assert len(lines) == 7
    assert json.loads(lines[0])["session"]["session_id"] == "a"
    status, _, err = await command(agents, "import", str(dump))
    assert (status, err.count("3 and 4 existed already")) == (0, 1)
    status, _, err = await command(agents, "import", "-", text='{"session": {"agent_role": 7}}\n')
    assert (status, "line 1" in err, err.count("\n")) == (2, True, 1)
    status, _, err = await command(agents, "import", "-", text='{"nonsense": 1}\n')
    assert (status, "neither a record nor" in err, err.count("\n")) == (2, True, 1)
    status, _, err = await command(agents, "import", str(tmp_path / "none"))
    assert (status, "No such file" in err) == (2, True)


async def test_the_command_takes_the_dump_of_an_in_memory_store(agents: Replica) -> None:
    """A session with its history in one object, as the view has it, too."""
    store = {
        "session_id": "ceo_1762842800_145484",
        "agent_role": "ceo",
        "startup_context": "You are the CEO.",
        "conversation_history": [
            {"role": "system", "content": "Rules."},
            {"role": "user", "content": "Plan?"},
            {"role": "assistant", "content": "Soon.", "tokens": 793},
            {"role": "user", "content": "And now?"},
        ],
        "turn_count": 2,
        "created_at": 1762842800.5,
        "last_query_at": "2025-11-11 06:33:21",
    }
    status, _, err = await command(agents, "import", "-", text=json.dumps(store))
    assert status == 0, err
    kept = await agents.get("ceo_1762842800_145484")
    assert (kept.turn_count, kept.total_tokens) == (2, 793)
    assert kept.create_time.ToNanoseconds() == 1762842800_500_000_000
    assert kept.last_query_time.ToSeconds() == 1762842801, "and not when it came in"
    turns = await agents.turns(kept.session_id)
    assert {turn.create_time.ToSeconds() for turn in turns} == {1762842801}
    assert [len(turn.messages) for turn in turns] == [3, 1]
    ((line,),) = await agents.rows("SELECT row_to_json(h)::text FROM llm_session_history h")
    status, _, err = await command(agents, "import", "-", text=str(line).replace("ceo_", "cfo_"))
    assert status == 0, err
    assert len(await agents.turns("cfo_1762842800_145484")) == 2


async def one_by_one(agents: Replica) -> list[pb.AgentSessionRecord]:
    """What an export of all sessions must be, read by the calls for one session."""
    request = rpc_pb.ListAgentSessionsRequest(page_size=500, order_by="create_time")
    listed = await agents.stub.ListAgentSessions(request, timeout=TIMEOUT)
    records = []
    for each in listed.agent_sessions:
        whole = (await agents.context(each.session_id, last_turns=1)).agent_session
        records.append(pb.AgentSessionRecord(session=whole))
        records += [
            pb.AgentSessionRecord(turn=pb.SessionTurn(session_id=each.session_id, turn=turn))
            for turn in await agents.turns(each.session_id)
        ]
    return records


async def fill_many(agents: Replica) -> None:
    """Sessions with no turn, few, and many; with large startup contexts; forked, and rewound."""
    await fill(agents)
    for number in range(12):
        name = f"n{number}"
        await agents.create("ceo", session_id=name, startup_context="x" * 300 * (number % 3))
        for turn_number in range(number % 5):
            await agents.append(name, f"turn {turn_number}", "y" * (1 + 200 * (number % 4)))
    await agents.rewind("n4", 2)
    await agents.append("n4", "another third")
    await agents.fork("n4", at_turn=3, new_session_id="fork")
    await agents.fork("fork", at_turn=1, new_session_id="fork of fork")
    await agents.rewind("fork", 0)
    await agents.append("fork of fork", "own")
    for turn_number in range(30):
        await agents.append("n11", f"one of many {turn_number}", "z" * 100)


@pytest.mark.parametrize(("count", "size"), [(500, 4 << 20), (1, 1), (4, 1000), (500, 3000)])
async def test_sessions_read_together_are_exported_as_one_by_one(
    agents: Replica, count: int, size: int
) -> None:
    """Also where one is larger than what is read at once."""
    await fill_many(agents)
    expected = await one_by_one(agents)
    records = [
        streams.render_record(record).record
        async for record in dumps.export(
            agents.database, "default", SessionFilter(), count=count, size=size
        )
    ]
    assert records == expected


async def test_a_session_that_is_purged_during_an_export_is_left_out_whole(
    agents: Replica,
) -> None:
    """Its row was read, and its turns are deleted in part when they are read."""
    for name in ("a", "b", "c"):
        await agents.create(session_id=name)
        await agents.append(name, "one")
    listed = await listing.page(
        agents.database, "default", SessionFilter(), None, 10, descending=False
    )
    found = listed.rows
    await agents.rows("DELETE FROM llm_sessions WHERE session_id IN ('a', 'b')")
    read, taken = await conversations(agents.database, found, 1 << 20)
    assert taken == 3
    assert [(each.session.session_id, len(each.turns)) for each in read] == [("c", 1)]
    await agents.append("c", "two")
    await agents.rewind("c", 0)
    read, _ = await conversations(agents.database, found, 1 << 20)
    assert [turn.messages[0].content for turn in read[0].turns] == ["one"]
