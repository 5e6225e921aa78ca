"""Scheduled checkpoints: saves the state of running sessions every `checkpoint_every`.

This is the one action of the due pass that is not a transition. The session keeps running and can
be used, paused and ended as before; no call waits for the save. If the session changes its state
meanwhile, the save is cancelled and its checkpoint is FAILED.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from session_service import loops
from session_service.checkpoints.vault import required_kind
from session_service.domain import next_action
from session_service.domain.checkpoint import Reason
from session_service.domain.session import (
    Condition,
    ConditionType,
    dump_conditions,
    load_conditions,
)
from session_service.domain.states import State
from session_service.errors import RoostError, StorageUnavailable
from session_service.observe.probe import address
from session_service.storage.checkpoint import write
from session_service.storage.checkpoint.write import AlreadyWriting
from session_service.storage.session import change as changes
from session_service.storage.session import due, reads
from session_service.storage.session.change import Change

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from session_service.checkpoints.vault import Vault
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Record, Session
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Time between two checks that the session is still running, in s.
CHECK_INTERVAL = 1.0


class ScheduledCheckpoints:
    """Saves sessions whose scheduled checkpoint is due."""

    def __init__(self, database: Database, vault: Vault, budget: timedelta) -> None:
        """`budget` is the longest time that one save may take."""
        self._database = database
        self._vault = vault
        self._budget = budget.total_seconds()

    async def save(self, record: Record, other: datetime | None) -> bool:
        """Save the session's state. Returns whether it was saved.

        A failure to save is recorded in the session, as the condition CHECKPOINT_FAILED. `other` is
        the time at which the session's next action of another kind is due. The save must not delay
        that action, so the row is made due at `other` or earlier. Raises StorageUnavailable.
        """
        again = next_action.checkpoint_reread_time(record)
        if not await due.note_scheduled(self._database, record.session, min(again, other or again)):
            return False
        checkpoint = await self._begin(record.session)
        if checkpoint is None:
            return False
        try:
            return await self._write(checkpoint, record)
        except RoostError as error:
            await self._note_failure(record.session, error)
            return False

    async def _begin(self, session: Session) -> Checkpoint | None:
        """Commit the checkpoint as WRITING. Returns None if the session has changed, or if another
        checkpoint of it is being written whose writer is alive.
        """
        kind = required_kind(session, None)
        while True:
            try:
                return await self._vault.begin(session, kind, Reason.SCHEDULE)
            except AlreadyWriting:
                # The retention pass deletes the bytes of one that is marked FAILED here.
                if not await write.fail_expired(self._database, session.session_id):
                    return None

    async def _write(self, checkpoint: Checkpoint, record: Record) -> bool:
        """Write the checkpoint for as long as the session runs. Returns False if the session no
        longer runs; the write is then cancelled. Raises RoostError.
        """
        if record.container is None:
            raise AssertionError("next_step() saves no session without a container")
        where = address(record.container)
        writing = self._vault.write(checkpoint, where, record.session, timeout=self._budget)
        # Any: the result, the checkpoint as READY, is not used.
        job: asyncio.Task[Any] = asyncio.create_task(writing, name="scheduled checkpoint")
        try:
            while not job.done():
                await asyncio.wait({job}, timeout=CHECK_INTERVAL)
                if not job.done() and not await self._runs(record.session):
                    return False
            await job
        finally:
            await loops.end({job})
        return True

    async def _runs(self, session: Session) -> bool:
        """Whether the session still runs. True if the database does not answer: the save goes on
        then, and its own commit decides, which needs the database too.
        """
        with suppress(StorageUnavailable):
            return await self._running(session) is not None
        return True

    async def _running(self, session: Session) -> Record | None:
        """The session's record now, if the session has been ACTIVE all the time since `session` was
        read. None if it is not ACTIVE, is in transition, or was started again.
        """
        record = await reads.find(self._database, session.session_id)
        if record is None or record.session.start_time != session.start_time:
            return None
        settled = record.session.transition is None and record.session.state is State.ACTIVE
        return record if settled else None

    async def _note_failure(self, session: Session, error: RoostError) -> None:
        """Give the session the condition CHECKPOINT_FAILED, with an event, if it has none yet. The
        commit that makes a checkpoint READY removes the condition.
        """
        record = await self._running(session)
        if record is None:
            return
        conditions = load_conditions(record.session.conditions)
        if any(item.type is ConditionType.CHECKPOINT_FAILED for item in conditions):
            return
        change = Change(
            record.session.session_id,
            record.session.epoch,
            {"conditions": dump_conditions([*conditions, _condition(error, record.now)])},
            event="CHECKPOINT_FAILED",
        )
        # If the session has changed meanwhile, nothing is written; the next failure is.
        await changes.write(self._database, change)


def _condition(error: RoostError, now: datetime) -> Condition:
    message = (
        "The scheduled checkpoint failed. The session keeps running, and the save is tried again. "
        f"{error.reason}: {error.message}"
    )
    return Condition(ConditionType.CHECKPOINT_FAILED, message, now)
