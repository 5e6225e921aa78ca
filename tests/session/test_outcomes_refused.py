"""The database refuses the outcome of a transition: it is written again, and no caller notices.

A trigger makes PostgreSQL itself fail with an error of the class "insufficient resources", which is
temporary.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from roost.session.v1 import session_pb2 as pb
from tests.eventually import eventually
from tests.session.harness import spec, world
from tests.session.saving import execute

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from local.fly.emulator import Emulator
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

#: Fails the first update that finishes a decision. A sequence counts, as it is not rolled back.
REFUSAL = (
    "CREATE SEQUENCE refusals",
    """
    CREATE FUNCTION refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.finish_time IS NOT NULL AND OLD.finish_time IS NULL
           AND nextval('refusals') = 1 THEN
            RAISE EXCEPTION 'failed by the test' USING ERRCODE = 'disk_full';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER refuse_once BEFORE UPDATE ON decisions
    FOR EACH ROW EXECUTE FUNCTION refuse_once()
    """,
)


@pytest.fixture
async def patient(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Replicas with leases long enough to write an outcome again."""
    async with world(emulator, database_url, lease=timedelta(seconds=10)) as running:
        yield running


@pytest.fixture
async def brief_leases(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas whose leases run out while an outcome is refused."""
    async with world(emulator, database_url, lease=timedelta(seconds=2)) as running:
        yield running


async def create(roost: World, session: pb.Session) -> None:
    answer = await roost.one.start("robin", spec=spec())
    assert answer.outcome == pb.START_OUTCOME_CREATED
    assert answer.session.state == pb.Session.STATE_ACTIVE
    assert await roost.committed("create", answer.session.session_id) == 1


async def resume(roost: World, session: pb.Session) -> None:
    answer = await roost.one.resume(session.session_id)
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert answer.continuity == pb.CONTINUITY_MEMORY
    assert await roost.counter(answer.session) == "2"
    # Only the earlier pause suspended it.
    assert await roost.committed("suspend") == 1


async def pause(roost: World, session: pb.Session) -> None:
    shown = await roost.one.pause(session.session_id)
    assert shown.state == pb.Session.STATE_PAUSED
    assert await roost.committed("suspend") == 1


async def end(roost: World, session: pb.Session) -> None:
    shown = await roost.one.end(session.session_id)
    assert shown.state == pb.Session.STATE_ENDED
    assert await roost.committed("suspend") == 1


async def purge(roost: World, session: pb.Session) -> None:
    shown = await roost.one.end(session.session_id, now=True)
    assert shown.state == pb.Session.STATE_ENDED
    assert await roost.committed("destroy") == 1


# Any: a mark or none.
CASES: list[Any] = [
    pytest.param(transition, id=transition.__name__)
    for transition in (create, resume, pause, end, purge)
]


@pytest.mark.parametrize("transition", CASES)
async def test_an_outcome_that_is_rejected_once_is_written_again(
    patient: World, database_url: str, transition: Callable[[World, pb.Session], Awaitable[None]]
) -> None:
    """Of START, both ways, PAUSE, END and PURGE: the caller gets the usual answer."""
    session = (await patient.one.start()).session
    await patient.click_twice(session)
    if transition is resume:
        await patient.one.pause(session.session_id)
    for statement in REFUSAL:
        execute(database_url, statement)
    await transition(patient, session)
    ((refusals,),) = execute(database_url, "SELECT last_value FROM refusals WHERE is_called")
    assert refusals >= 2, "no outcome was refused, or none was written again"


#: The tries of an outcome are 0, 0.1, 0.3, 0.7, 1.5, 2.5 and 3.5 s after the first one.
REFUSED_FOR_LONG = 6


async def test_what_begins_by_an_outcome_that_is_refused_for_long_is_carried_out(
    brief_leases: World, database_url: str
) -> None:
    """The last try comes 3.5 s after the first one, and a lease lasts for 2 s: the end of the
    session that was replaced begins with the commit that succeeds, and so does its lease.
    """
    roost = brief_leases
    old = (await roost.one.start()).session
    for statement in REFUSAL:
        wanted = statement.replace("nextval('refusals') = 1", "nextval('refusals') <= 6")
        execute(database_url, wanted)
    new = await roost.one.start(mode=pb.START_MODE_FRESH, spec=spec())
    assert new.session.state == pb.Session.STATE_ACTIVE
    ((refusals,),) = execute(database_url, "SELECT last_value FROM refusals WHERE is_called")
    assert refusals > REFUSED_FOR_LONG

    async def ended() -> bool:
        shown = await roost.one.get(old.session_id)
        return shown.state == pb.Session.STATE_ENDED

    # No other replica takes it over: nothing calls about it, and no due pass runs.
    await eventually(ended, timeout=30)


#: Refuses to note that the user was active, while the session is in transition.
REFUSED_TOUCH = (
    """
    CREATE FUNCTION refuse_touch() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.transition IS NOT NULL AND NEW.epoch = OLD.epoch
           AND NEW.last_active_time <> OLD.last_active_time THEN
            RAISE EXCEPTION 'refused by the test' USING ERRCODE = 'disk_full';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER refuse_touch BEFORE UPDATE ON sessions
    FOR EACH ROW EXECUTE FUNCTION refuse_touch()
    """,
)


async def test_a_pause_that_is_taken_over_is_carried_out_though_its_caller_cannot_be_noted(
    roost: World, database_url: str
) -> None:
    """A start takes over a pause that is being deepened, and the note that the user is active is
    refused: the claim is committed by then, so its work begins all the same.
    """
    session = (await roost.one.start()).session
    await roost.one.pause(session.session_id)
    execute(
        database_url,
        "UPDATE sessions SET state = 'PAUSING', transition = 'PAUSE', prior_state = 'PAUSED',"
        " pause_depth = 'STOPPED', cause = 'DEEPEN', epoch = epoch + 1, owner = gen_random_uuid(),"
        " lease_until = now(), deadline = now() + interval '100 s'",
    )
    for statement in REFUSED_TOUCH:
        execute(database_url, statement)
    answer = await roost.one.start()
    assert answer.session.state == pb.Session.STATE_ACTIVE
