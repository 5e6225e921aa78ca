"""Which checkpoint a session's state descends from, if one becomes READY late."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.domain.checkpoint import Kind, Place, Reason
from session_service.storage.checkpoint import reads as checkpoint_reads
from session_service.storage.checkpoint import write
from session_service.storage.checkpoint.write import NewCheckpoint, Proved
from session_service.storage.session import reads
from tests.eventually import eventually
from tests.session.saving import Checkpoint, client, counting, execute

if TYPE_CHECKING:
    from session_service.domain import checkpoint as domain
    from session_service.storage.database import Database
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

#: The insert of a checkpoint waits for lock 8.
HOLD = """
    CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_advisory_xact_lock(8); RETURN NEW; END $$
"""
HELD = "CREATE TRIGGER hold BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION hold()"
WAITING = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@dataclass(frozen=True)
class Late:
    """A checkpoint in progress: the state is captured and stored, and is still to be verified."""

    database: Database
    checkpoint: domain.Checkpoint
    epoch: int
    proved: Proved

    async def ready(self) -> None:
        """The commit of READY."""
        checkpoint_id = self.checkpoint.checkpoint_id
        assert await write.ready(
            self.database, checkpoint_id, self.proved, epoch=self.epoch, answers=False
        )


async def begun(roost: World, session: pb.Session, like: str) -> Late:
    """A checkpoint in progress, with the same state as the checkpoint `like`."""
    database = roost.one.running.database
    record = await reads.find(database, UUID(session.session_id))
    same = await checkpoint_reads.get(database, "default", UUID(like))
    assert record is not None
    assert same is not None
    epoch = record.session.epoch
    new = NewCheckpoint(
        uuid4(),
        record.session.session_id,
        epoch,
        Kind.APPLICATION,
        Reason.SCHEDULE,
        Place.DATABASE,
        timedelta(minutes=1),
    )
    late = await write.begin(database, new)
    piece = await write.get(database, same.checkpoint_id, 0)
    assert late is not None
    assert piece is not None
    assert await write.put(database, late.checkpoint_id, 0, piece)
    proved = Proved(same.size_bytes or 0, same.stored_bytes or 0, same.sha256)
    return Late(database, late, epoch, proved)


@pytest.mark.replicas(2)
async def test_a_checkpoint_whose_parent_was_deleted_is_restored_before_older_ones(
    always_probing: World,
) -> None:
    """Also if the session was paused and started while it was written: its state is the newest.

    Without the parent the session descends, until then, from the state before a rollback.
    """
    roost = always_probing
    session = await counting(roost, 1)
    checkpoints = client(roost.one)
    first = await checkpoints.create(session.session_id)
    await roost.counter(session, "/click")
    await checkpoints.restore(session.session_id, number=1)
    parent = await checkpoints.create(session.session_id)
    await checkpoints.delete(first.checkpoint_id)
    late = await begun(roost, session, parent.checkpoint_id)
    await checkpoints.delete(parent.checkpoint_id)
    await roost.one.pause(session.session_id)
    await roost.one.start()
    await late.ready()
    await roost.destroy_behind_our_back(session)
    answer = await roost.two.start()
    assert await roost.counter(answer.session) == "1", answer.attempts


async def test_a_rollback_of_a_lost_container_fails_a_checkpoint_in_progress(
    roost: World,
) -> None:
    """It would otherwise become the newest state of the session, which the user wanted to leave."""
    session = await counting(roost, 1)
    checkpoints = client(roost.one)
    first = await checkpoints.create(session.session_id)
    late = await begun(roost, session, first.checkpoint_id)
    await roost.destroy_behind_our_back(session)
    answer = await checkpoints.restore(session.session_id, checkpoint_id=first.checkpoint_id)
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    shown = await checkpoints.get(str(late.checkpoint.checkpoint_id))
    assert shown.state == Checkpoint.STATE_FAILED


@pytest.mark.usefixtures("patient_database")
async def test_a_checkpoint_is_not_begun_of_a_session_that_changes_meanwhile(
    roost: World, database_url: str
) -> None:
    """A rollback whose intent is committed while the row is inserted cannot mark it FAILED."""
    session = await counting(roost, 1)
    execute(database_url, HOLD)
    execute(database_url, HELD)
    database = roost.one.running.database
    record = await reads.find(database, UUID(session.session_id))
    assert record is not None
    new = NewCheckpoint(
        uuid4(),
        record.session.session_id,
        record.session.epoch,
        Kind.APPLICATION,
        Reason.SCHEDULE,
        Place.DATABASE,
        timedelta(minutes=1),
    )

    async def waits() -> bool:
        ((waiting,),) = await asyncio.to_thread(execute, database_url, WAITING)
        return int(waiting) == 1

    async with await psycopg.AsyncConnection.connect(database_url) as holder:
        await holder.execute("SELECT pg_advisory_xact_lock(8)")
        beginning = asyncio.create_task(write.begin(database, new))
        await eventually(waits)
        await holder.execute("UPDATE sessions SET epoch = epoch + 1")
    assert await beginning is None
    assert await client(roost.one).of() == []
