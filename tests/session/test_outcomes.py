"""The database rejects the outcome of a transition once: the same outcome is committed again.

The work at the provider stays done, and the caller gets the usual answer. A trigger raises the
error, as a server does whose disk is full for a moment.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from roost.session.v1 import session_pb2 as pb
from tests.eventually import eventually
from tests.session.database_faults import behind, rows
from tests.session.harness import request_id, world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from local.fly.emulator import Emulator
    from tests.session.harness import World

#: A trigger on the first statement that settles a session or turns its transition into another. The
#: sequence keeps its count when the statement is rolled back.
FIRST_OUTCOME = """
CREATE SEQUENCE outcomes;
CREATE FUNCTION strike() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('outcomes') = 1 THEN {strike}; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER strike BEFORE UPDATE ON sessions FOR EACH ROW
WHEN (old.transition IS NOT NULL AND new.transition IS DISTINCT FROM old.transition)
EXECUTE FUNCTION strike()
"""
REFUSED = "RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'"
#: It waits for the test, which holds the lock.
HELD = "PERFORM set_config('lock_timeout', '0', true); PERFORM pg_advisory_xact_lock(9)"
WAITING = (
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
)
TAKEN_OVER = "SELECT sequence FROM session_events WHERE type = 'TAKEN_OVER'"
STRUCK = "SELECT last_value, is_called FROM outcomes"
#: Longer than the database is unavailable in these tests.
LEASE = timedelta(seconds=20)
ACTIVE, PAUSED = pb.Session.STATE_ACTIVE, pb.Session.STATE_PAUSED
ENDED = pb.Session.STATE_ENDED


async def strike(url: str, how: str = REFUSED) -> None:
    """Make the next outcome fail this way."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(FIRST_OUTCOME.format(strike=how).encode())


async def resume(roost: World, session: pb.Session, url: str) -> None:
    await roost.one.pause(session.session_id)
    await strike(url)
    answer = await roost.one.resume(session.session_id, request_id=request_id())
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert answer.session.state == ACTIVE


async def pause(roost: World, session: pb.Session, url: str) -> None:
    await strike(url)
    answer = await roost.one.pause(session.session_id, request_id=request_id())
    assert answer.state == PAUSED


async def end(roost: World, session: pb.Session, url: str) -> None:
    await strike(url)
    answer = await roost.one.end(session.session_id, request_id=request_id())
    assert answer.state == ENDED


@pytest.mark.parametrize(
    ("call", "state", "seen"),
    [(resume, ACTIVE, "started"), (pause, PAUSED, "suspended"), (end, ENDED, "suspended")],
)
async def test_an_outcome_that_is_rejected_once_is_committed_anyway(
    emulator: Emulator,
    database_url: str,
    call: Callable[[World, pb.Session, str], Awaitable[None]],
    state: pb.Session.State.ValueType,
    seen: str,
) -> None:
    async with world(emulator, database_url, 1, lease=LEASE) as roost:
        session = (await roost.one.start()).session
        await call(roost, session, database_url)
        assert await rows(database_url, TAKEN_OVER) == [], "no takeover was needed"
        assert await rows(database_url, STRUCK) == [(2, True)], "rejected once, and then committed"
        assert (await roost.one.get(session.session_id)).state == state
        assert await roost.provider_state(session) == seen


async def test_a_fresh_start_whose_outcome_is_rejected_once_ends_the_old_session(
    emulator: Emulator, database_url: str
) -> None:
    """The end of the session that it replaced begins with the committed outcome."""
    async with world(emulator, database_url, 1, lease=LEASE) as roost:
        old = (await roost.one.start()).session
        await strike(database_url)
        new = await roost.one.start(mode=pb.START_MODE_FRESH, request_id=request_id())
        assert new.outcome == pb.START_OUTCOME_CREATED
        await roost.until_state(old.session_id, ENDED)
        assert await roost.provider_state(old) == "suspended"
        assert await roost.provider_state(new.session) == "started"


async def test_an_outcome_whose_commit_answer_is_lost_is_still_the_answer(
    emulator: Emulator, database_url: str
) -> None:
    """It is committed, but its answer is lost. The second try finds a newer epoch, and the call
    finds its decision finished.
    """
    async with behind(emulator, database_url, replicas=1, lease=LEASE) as (roost, fault):
        session = (await roost.one.start()).session
        await roost.one.pause(session.session_id)
        await strike(database_url, HELD)

        async def waits() -> bool:
            return bool(await rows(database_url, WAITING))

        async def committed() -> bool:
            return await rows(database_url, "SELECT state FROM sessions") == [("ACTIVE",)]

        async with await psycopg.AsyncConnection.connect(database_url) as holder:
            await holder.execute("SELECT pg_advisory_xact_lock(9)")
            resume = roost.one.resume(session.session_id, request_id=request_id())
            call = asyncio.create_task(resume)
            await eventually(waits)
            fault.half_open()
        await eventually(committed)
        fault.clear()
        answer = await call
        assert answer.outcome == pb.START_OUTCOME_RESUMED
        assert answer.session.state == ACTIVE
        assert await roost.provider_state(session) == "started"
