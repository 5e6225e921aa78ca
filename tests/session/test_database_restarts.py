"""The database fails and returns: calls fail with UNAVAILABLE meanwhile and then succeed again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import psycopg

from roost.session.v1 import session_pb2 as pb
from tests.container.harness import failing
from tests.eventually import eventually
from tests.session.harness import request_id

if TYPE_CHECKING:
    from tests.session.harness import Replica, World


async def cut_all(database_url: str) -> int:
    """End all other connections to the database, as a restart of the server would."""
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as connection:
        rows = await connection.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        found = await rows.fetchone()
    return int(found[0]) if found else 0


async def answered(replica: Replica, once: str) -> pb.StartOutcome.ValueType:
    """The start's outcome. It is repeated while UNAVAILABLE."""

    async def outcome() -> pb.StartOutcome.ValueType | None:
        try:
            return (await replica.start(request_id=once)).outcome
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return None

    found: pb.StartOutcome.ValueType | None = await eventually(outcome)
    assert found is not None
    return found


async def test_cut_connections_heal_and_a_repeat_is_one_start(
    roost: World, database_url: str
) -> None:
    """Every replica answers again, with one decision for the repeated call."""
    session = (await roost.one.start()).session
    assert await cut_all(database_url) > 2
    for replica in roost.replicas:
        once = request_id()
        assert await answered(replica, once) == pb.START_OUTCOME_REUSED
        decisions = await roost.one.decisions(session.session_id)
        assert sum(decision.request_id == once for decision in decisions) == 1


async def test_joiners_are_answered_although_the_listener_was_cut(
    roost: World, database_url: str
) -> None:
    """A notice can be missed; the poll behind it finds the change."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=500)
    first = asyncio.create_task(roost.one.start())
    await roost.until_live("wren")
    second = asyncio.create_task(answered(roost.two, request_id()))
    await cut_all(database_url)
    await asyncio.gather(first, return_exceptions=True)
    assert await second in (pb.START_OUTCOME_CREATED, pb.START_OUTCOME_REUSED)
    assert await roost.committed("create") == 1


async def test_a_missing_database_is_unavailable_with_a_retry_delay(
    roost: World, database_url: str
) -> None:
    """Within the call's deadline, with RetryInfo, and without the database's address."""
    await roost.one.start()
    name = database_url.rsplit("/", 1)[1]
    admin = database_url.rsplit("/", 1)[0] + "/postgres"
    async with await psycopg.AsyncConnection.connect(admin, autocommit=True) as connection:
        await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            failure = await failing(roost.one.start())
            assert (failure.code, failure.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "STORAGE_UNAVAILABLE",
            )
            assert failure.retry_seconds
            assert name not in failure.message
        finally:
            await connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert await answered(roost.one, request_id()) == pb.START_OUTCOME_REUSED
