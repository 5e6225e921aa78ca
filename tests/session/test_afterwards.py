"""What is left to do when a transition has ended, and when its caller is gone."""

from __future__ import annotations

import asyncio
import gc
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc.aio
import psycopg
import pytest

from roost.session.v1 import session_pb2 as pb
from tests.container.harness import read_failure
from tests.eventually import eventually
from tests.session.database_faults import rows
from tests.session.harness import request_id, world
from tests.session.saving import client, hooked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.fly.emulator import Emulator
    from tests.session.harness import Replica

LEASE = timedelta(seconds=6)
LEASE_LOST = "the lease on a transition was lost"


async def test_a_discard_that_takes_longer_than_a_renewal_is_not_cut(
    emulator: Emulator, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The commit of the outcome has advanced the epoch: there is no lease to renew any more.

    The next renewal ended the discard, and said that the lease was lost.
    """
    async with world(emulator, database_url, 1, lease=LEASE) as roost:
        await roost.one.start()
        await roost.admin.set_fault("capacity", action="create", times=None)
        # What the discard begins with: there may be a machine of this name.
        held = await roost.admin.set_fault("slow_before", action="list", delay_ms=60_000)
        starting = asyncio.ensure_future(roost.one.start(mode=pb.START_MODE_FRESH))

        async def listing() -> bool:
            return await roost.admin.fired(held) > 0

        assert await eventually(listing)
        # A lease is renewed after three tenths of it, or a little later.
        await asyncio.wait({starting}, timeout=LEASE.total_seconds() / 2)
        await roost.admin.end_fault(held)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await starting
        assert read_failure(error.value).reason == "PROVIDER_CAPACITY"
        left = await rows(
            database_url,
            "SELECT count(*) FROM containers WHERE NOT wanted AND destroy_time IS NULL",
        )
        # A machine that stood still may have made the listing too late: that is another line.
        assert left == [(0,)] or "was not destroyed yet" in caplog.text
    assert LEASE_LOST not in caplog.text


async def pause(at: Replica, session_id: str) -> object:
    return await at.pause(session_id)


async def save(at: Replica, session_id: str) -> object:
    return await client(at).create(session_id, request_id=request_id())


@pytest.mark.parametrize("call", [pause, save])
async def test_a_commit_whose_caller_is_gone_and_that_fails_is_one_line(
    emulator: Emulator,
    database_url: str,
    caplog: pytest.LogCaptureFixture,
    call: Callable[[Replica, str], Awaitable[object]],
) -> None:
    """It was asyncio's "Task exception was never retrieved", with a traceback."""
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    async with (
        world(emulator, database_url, 1) as roost,
        await psycopg.AsyncConnection.connect(database_url) as rogue,
        await psycopg.AsyncConnection.connect(database_url, autocommit=True) as looking,
    ):
        session = (await roost.one.start(spec=hooked())).session
        await rogue.execute(
            "SELECT 1 FROM sessions WHERE session_id = %s FOR UPDATE", [session.session_id]
        )
        calling = asyncio.ensure_future(call(roost.one, session.session_id))

        async def waiting() -> bool:
            found = await looking.execute(
                "SELECT 1 FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock'"
            )
            return await found.fetchone() is not None

        assert await eventually(waiting)
        calling.cancel()
        await asyncio.wait({calling})

        def failed() -> bool:
            gc.collect()
            return "did not wait for" in caplog.text or bool(unheard)

        assert await eventually(failed, timeout=60)
        await rogue.rollback()
    assert unheard == []
