"""Saving the state of what runs, by the clock: the keeper's step that is no transition.

The session goes on, and nothing of it waits: a warning and a pause come when they would have come,
and what becomes of the session meanwhile breaks the checkpoint off.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from session_service import loops
from session_service.domain import conditions, schedule
from session_service.domain.checkpoint import Reason
from session_service.domain.session import Condition, ConditionType
from session_service.domain.states import State
from session_service.errors import RoostError, StorageUnavailable
from session_service.lifecycle.evidence import address
from session_service.storage import checkpoint_outcomes, sessions, transitions
from session_service.storage import schedule as notes
from session_service.storage.checkpoints import AlreadyWriting
from session_service.storage.transitions import Change
from session_service.vault.vault import required_kind

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Record, Session
    from session_service.storage.database import Database
    from session_service.vault.vault import Vault

_log = logging.getLogger(__name__)

#: Between two looks at whether what is being saved still runs, in s.
LOOK = 1.0


class Scheduling:
    """Takes the checkpoints that are due."""

    def __init__(self, database: Database, vault: Vault, budget: timedelta) -> None:
        """`budget` is how long one may take."""
        self._database = database
        self._vault = vault
        self._budget = budget.total_seconds()

    async def save(self, record: Record, other: datetime | None) -> bool:
        """Save the session's state, or find out why that is not to be had; True where it is saved.

        `other` is when the next other step is due, which is not to wait. Raises StorageUnavailable.
        """
        look = schedule.look_again(record)
        if not await notes.begin(self._database, record.session, min(look, other or look)):
            return False
        begun = await self._begun(record.session)
        if begun is None:
            return False
        try:
            return await self._written(begun, record)
        except RoostError as error:
            await self._tell(record.session, error)
            return False

    async def _begun(self, session: Session) -> Checkpoint | None:
        """The checkpoint's row; None where the session has changed, or somebody else saves it."""
        kind = required_kind(session, None)
        while True:
            try:
                return await self._vault.begin(session, kind, Reason.SCHEDULE)
            except AlreadyWriting:
                left = await checkpoint_outcomes.lapse(self._database, session.session_id)
                if not left:
                    return None
                for each in left:
                    await self._vault.retention.clean(each)

    async def _written(self, begun: Checkpoint, record: Record) -> bool:
        """See it through for as long as the session runs; False where it no longer does, which
        breaks it off. Raises RoostError. Any: the checkpoint as it is then, unused.
        """
        if record.container is None:
            raise AssertionError("what has no container is not saved")
        where = address(record.container)
        writing = self._vault.write(begun, where, record.session, timeout=self._budget)
        job: asyncio.Task[Any] = asyncio.create_task(writing, name="scheduled checkpoint")
        try:
            while not job.done():
                await asyncio.wait({job}, timeout=LOOK)
                if not job.done() and not await self._runs(record.session):
                    return False
            await job
        finally:
            await loops.end({job})
        return True

    async def _runs(self, session: Session) -> bool:
        """Whether it is still what was to be saved; a database that is away says nothing."""
        with suppress(StorageUnavailable):
            return await self._again(session) is not None
        return True

    async def _again(self, session: Session) -> Record | None:
        """The session's record, where it has run on since; None also where it came up anew."""
        record = await sessions.find(self._database, session.session_id)
        if record is None or record.session.start_time != session.start_time:
            return None
        settled = record.session.transition is None and record.session.state is State.ACTIVE
        return record if settled else None

    async def _tell(self, session: Session, error: RoostError) -> None:
        """Have the session say that its state cannot be saved, from the first time on; the commit
        that makes a checkpoint READY takes that back.
        """
        again = await self._again(session)
        if again is None:
            return
        had = conditions.load(again.session.conditions)
        if any(item.type is ConditionType.CHECKPOINT_FAILED for item in had):
            return
        change = Change(
            again.session.session_id,
            again.session.epoch,
            {"conditions": conditions.dump([*had, _told(error, again.now)])},
            event="CHECKPOINT_FAILED",
        )
        # Where it has changed since, the next try tells.
        await transitions.write(self._database, change)


def _told(error: RoostError, now: datetime) -> Condition:
    message = (
        "Its state could not be saved on its schedule; it runs on, and this is tried again. "
        f"{error.reason}: {error.message}"
    )
    return Condition(ConditionType.CHECKPOINT_FAILED, message, now)
