"""Dates sessions back in the database, so that no test waits for a timeout."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from google.protobuf.duration_pb2 import Duration

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.storage.session import events
from tests.session.harness import TIMEOUT, Replica, World

if TYPE_CHECKING:
    from collections import Counter

    from session_service.domain.next_action import Action
    from session_service.storage.session.events import Event

#: Idle timeout and warning of such sessions: too long to pass within a test.
IDLE = timedelta(minutes=10)
WARNING = timedelta(minutes=1)


async def sql(replica: Replica, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement in the replica's database; return its rows, if any. Any: every type."""
    async with replica.running.database.connection() as connection:
        cursor = await connection.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description is not None else []


async def make_idle(roost: World, *sessions: pb.Session, warned: bool = True) -> None:
    """Make the sessions idle for longer than their timeout, and due.

    `warned`: the warning was given more than `WARNING` ago.
    """
    await sql(
        roost.one,
        "UPDATE sessions SET last_active_time = now() - interval '11 minutes', due_at = now(),"
        " warn_time = CASE WHEN %s THEN now() - interval '90 seconds' END"
        " WHERE session_id = ANY(%s::uuid[])",
        warned,
        [session.session_id for session in sessions],
    )


async def make_due(roost: World, *sessions: pb.Session) -> None:
    """Make the sessions due, for the next due pass."""
    await sql(
        roost.one,
        "UPDATE sessions SET due_at = now() WHERE session_id = ANY(%s::uuid[])",
        [session.session_id for session in sessions],
    )


async def run_due_pass(replica: Replica) -> Counter[Action]:
    """Run one due pass of the replica to its end; return the number of each action."""
    return (await replica.running.background.due_pass.settle()).actions


async def events_of(roost: World, session: pb.Session, after: int = 0) -> list[Event]:
    """The session's events after a sequence number, oldest first."""
    return await events.after(roost.one.running.database, id_of(session), after, 1000)


def id_of(session: pb.Session) -> UUID:
    """The session's id as a UUID."""
    return UUID(session.session_id)


async def touch(replica: Replica, session: pb.Session, activity: str = "") -> pb.Session:
    """TouchSession."""
    request = rpc_pb.TouchSessionRequest(session_id=session.session_id, activity=activity)
    return (await replica.stub.TouchSession(request, timeout=TIMEOUT)).session


async def hold(
    replica: Replica, session_id: str, name: str = "build", ttl: timedelta = timedelta(minutes=5)
) -> rpc_pb.Hold:
    """PutHold."""
    span = Duration()
    span.FromTimedelta(ttl)
    request = rpc_pb.PutHoldRequest(session_id=session_id, name=name, ttl=span)
    return (await replica.stub.PutHold(request, timeout=TIMEOUT)).hold


async def release(replica: Replica, session_id: str, name: str = "build") -> None:
    """ReleaseHold."""
    request = rpc_pb.ReleaseHoldRequest(session_id=session_id, name=name)
    await replica.stub.ReleaseHold(request, timeout=TIMEOUT)


async def explain_idle(replica: Replica, session: pb.Session) -> rpc_pb.ExplainIdleResponse:
    """ExplainIdle."""
    request = rpc_pb.ExplainIdleRequest(session_id=session.session_id)
    return await replica.stub.ExplainIdle(request, timeout=TIMEOUT)
