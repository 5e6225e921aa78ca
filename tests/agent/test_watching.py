"""A watcher sees turns as they are appended, and rewinds, from any turn on, at any replica."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.agents import retention
from session_service.server.agent_service import AgentSettings
from session_service.storage.agent.changes import ChangeTimings
from tests.agent.harness import Replica, numbers, replica
from tests.container.harness import failing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: The time for an event, in s: only a lost one takes so long.
SOON = 30.0


class Watcher:
    """A stream, read event by event."""

    def __init__(self, agents: Replica, session_id: str, **fields: Any) -> None:
        request = rpc_pb.WatchTurnsRequest(session_id=session_id, **fields)
        self.stream = agents.stub.WatchTurns(request)

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stream.cancel()

    async def next(self) -> rpc_pb.WatchTurnsResponse:
        """The next event."""
        event: Any = await asyncio.wait_for(self.stream.read(), SOON)
        assert isinstance(event, rpc_pb.WatchTurnsResponse), event
        return event

    async def turns(self, count: int) -> list[pb.Turn]:
        """The next events, which are turns."""
        events = [await self.next() for _ in range(count)]
        assert [event.WhichOneof("event") for event in events] == ["turn"] * count
        return [event.turn for event in events]


@pytest.fixture
def agent_settings() -> AgentSettings:
    """A short poll: a change without a notice is seen soon."""
    return AgentSettings(changes=ChangeTimings(poll_interval=0.2))


@pytest.fixture
async def other(database_url: str, agent_settings: AgentSettings) -> AsyncIterator[Replica]:
    """Another replica of the same database."""
    async with replica(database_url, agent_settings) as running:
        yield running


async def test_turns_are_seen_as_they_come_at_any_replica(agents: Replica, other: Replica) -> None:
    await agents.create(session_id="w")
    await agents.append("w", "one")
    async with Watcher(agents, "w", after_turn=0) as here, Watcher(other, "w", after_turn=1) as far:
        assert (await here.turns(1))[0].messages[0].content == "one"
        for number in range(2, 6):
            await agents.append("w", str(number))
            assert numbers(await here.turns(1)) == [number]
            assert numbers(await far.turns(1)) == [number]
        many = [agents.append("w", "x") for _ in range(250)]
        await asyncio.gather(*many)
        assert numbers(await here.turns(250)) == list(range(6, 256))
        assert numbers(await far.turns(250)) == list(range(6, 256))


async def test_without_a_cursor_only_what_comes_is_seen(agents: Replica) -> None:
    """The headers say that the stream has begun. They do not wait for the first event: a proxy that
    waits for them would give up.
    """
    await agents.create(session_id="n")
    await agents.append("n", "old")
    async with Watcher(agents, "n") as watcher:
        await asyncio.wait_for(watcher.stream.initial_metadata(), SOON)
        await agents.append("n", "new")
        assert (await watcher.next()).turn.turn_number == 2


async def test_a_rewind_is_an_event_and_the_new_turns_follow(agents: Replica) -> None:
    await agents.create(session_id="r")
    for number in range(1, 6):
        await agents.append("r", f"a{number}")
    first = (await agents.get("r")).branch_id
    async with Watcher(agents, "r", after_turn=0) as watcher:
        assert numbers(await watcher.turns(5)) == [1, 2, 3, 4, 5]
        second = (await agents.rewind("r", 3)).agent_session.branch_id
        event = await watcher.next()
        assert (event.rewind.to_turn, event.rewind.branch_id) == (3, second)
        await agents.append("r", "b4")
        (turn,) = await watcher.turns(1)
        assert (turn.turn_number, turn.messages[0].content) == (4, "b4")
        await agents.undo("r")
        event = await watcher.next()
        assert (event.rewind.to_turn, event.rewind.branch_id) == (3, first)
        assert [t.messages[0].content for t in await watcher.turns(2)] == ["a4", "a5"]


async def test_a_stream_resumes_by_branch_and_turn_across_a_rewind(agents: Replica) -> None:
    await agents.create(session_id="s")
    for number in range(1, 6):
        await agents.append("s", f"a{number}")
    was = (await agents.get("s")).branch_id
    await agents.rewind("s", 2)
    await agents.append("s", "b3")
    for seen, common in ((5, 2), (2, 2), (1, 1)):
        async with Watcher(agents, "s", branch_id=was, after_turn=seen) as watcher:
            assert (await watcher.next()).rewind.to_turn == common
            contents = [t.messages[0].content for t in await watcher.turns(3 - common)]
            assert contents == ["a2", "b3"][common - 3 :]


async def test_the_end_is_told_and_a_purge_ends_the_stream(
    agents: Replica,
) -> None:
    await agents.create(session_id="e")
    await agents.append("e", "one")
    async with Watcher(agents, "e", after_turn=0) as watcher:
        await watcher.turns(1)
        await agents.end("e")
        assert (await watcher.next()).state == pb.AgentSession.STATE_ENDED
        await agents.undelete("e")
        assert (await watcher.next()).state == pb.AgentSession.STATE_ACTIVE
        await agents.end("e", now=True)
        assert (await watcher.next()).state == pb.AgentSession.STATE_ENDED
        await retention.run_pass(agents.database, agents.retention)
        failure = await failing(watcher.stream.read())
        assert failure.code is grpc.StatusCode.NOT_FOUND


async def test_a_lost_notice_costs_time_only(agents: Replica, other: Replica) -> None:
    """The poll finds the change."""
    await agents.create(session_id="q")
    async with Watcher(other, "q", after_turn=0) as watcher:
        await agents.append("q", "one")
        await watcher.turns(1)
        await agents.rows(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%%'"
            " AND datname = current_database()"
        )
        await agents.append("q", "two")
        assert numbers(await watcher.turns(1)) == [2]


async def test_what_cannot_be_watched_is_refused(agents: Replica) -> None:
    await agents.create(session_id="x")
    for fields, reason in (
        ({"session_id": "none"}, "AGENT_SESSION_NOT_FOUND"),
        ({"session_id": "x", "after_turn": 1}, "INVALID_FIELD"),
        ({"session_id": "x", "branch_id": 5}, "INVALID_FIELD"),
        ({"session_id": "x", "after_turn": -1}, "INVALID_FIELD"),
        ({"session_id": "x", "heartbeat_interval": Duration(nanos=999_999_999)}, "INVALID_FIELD"),
        ({"session_id": "x", "heartbeat_interval": Duration(seconds=3601)}, "INVALID_FIELD"),
    ):
        request = rpc_pb.WatchTurnsRequest(**fields)
        failure = await failing(agents.stub.WatchTurns(request).read())
        assert failure.reason == reason


async def test_heartbeats_say_where_the_stream_is(agents: Replica) -> None:
    """One at the beginning, and one after each silence; only for who asks."""
    await agents.create(session_id="b")
    await agents.append("b", "one")
    branch = (await agents.get("b")).branch_id
    async with Watcher(agents, "b", heartbeat_interval=Duration(seconds=1)) as watcher:
        for turn in (1, 1, 2):
            if turn == 2:
                await agents.append("b", "two")
                while (event := await watcher.next()).WhichOneof("event") == "heartbeat":
                    pass
                assert event.turn.turn_number == 2
            beat = (await watcher.next()).heartbeat
            assert (beat.branch_id, beat.turn_number) == (branch, turn)


async def test_a_watch_that_ends_without_an_error_says_where_to_resume(database_url: str) -> None:
    """Also one that asked for what comes, and to which nothing came."""
    async with replica(database_url) as agents:
        await agents.create(session_id="p")
        await agents.append("p", "one")
        branch = (await agents.get("p")).branch_id
        async with Watcher(agents, "p") as watcher:
            await watcher.stream.initial_metadata()
            agents.end_streams()
            assert await asyncio.wait_for(watcher.stream.read(), SOON) is grpc.aio.EOF
            trailers = dict(await watcher.stream.trailing_metadata())
    assert trailers["roost-branch-id"] == str(branch)
    assert trailers["roost-after-turn"] == "1"


async def test_a_replica_that_stops_ends_its_streams(database_url: str) -> None:
    async with replica(database_url) as agents:
        await agents.create(session_id="s")
        await agents.append("s", "one")
        watcher = Watcher(agents, "s", after_turn=0)
        await watcher.turns(1)
        agents.end_streams()
        assert await asyncio.wait_for(watcher.stream.read(), SOON) is grpc.aio.EOF
