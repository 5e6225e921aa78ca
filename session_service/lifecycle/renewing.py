"""Keeping the leases of all transitions that this replica owns, with few statements for all.

One loop asks for those whose time it is, many in a statement. Whether a lease is lost is each
owner's own look at the clock: whatever becomes of the loop or of a statement, an owner whose lease
was not confirmed in time stops.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from session_service import loops
from session_service.errors import StorageUnavailable
from session_service.storage import leases
from session_service.storage.leases import Renewal

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from datetime import timedelta
    from uuid import UUID

    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Between tries to renew while the database does not answer, or somebody writes the row, in s.
RENEW_PAUSE = 0.1
#: Leases in one statement.
BATCH = 500
#: Rounds in the time after which a lease is renewed: each gathers what falls due within it.
ROUNDS = 4


@dataclass(eq=False, slots=True)
class _Lease:
    """A lease that somebody here holds. Times are monotonic."""

    session_id: UUID
    epoch: int
    confirmed: float
    """When it was asked for what was last confirmed: it lasts from then on, at the least."""
    asked: bool = False
    """Whether a statement about it is under way."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set where the database says that it is ours no more."""


class Renewing:
    """Renews what is held here; nothing runs where nothing is."""

    def __init__(self, database: Database, lease: timedelta, every: timedelta) -> None:
        """Leases last for `lease`, and are renewed `every` so often."""
        self._database = database
        self._lease = lease
        self._every = every.total_seconds()
        self._held: set[_Lease] = set()
        self._loop: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def until_lost(self, session_id: UUID, epoch: int, began: float) -> None:
        """Hold the lease, which lasts from the monotonic time `began`; return when it is lost.

        That is where the database refuses to renew it, or has not renewed it for as long as it
        lasts. Cancelled, it is renewed no more.
        """
        lease = _Lease(session_id, epoch, began)
        self._held.add(lease)
        if self._loop is None:
            self._loop = self._begun(self._renew())
        try:
            await self._lost(lease)
        finally:
            self._held.discard(lease)
        _log.warning(
            "a transition's lease was lost; its work here is stopped",
            extra={"action": "renew", "session_id": str(session_id)},
        )

    async def close(self) -> None:
        """Renew nothing more."""
        await loops.end(set(self._tasks))

    async def _lost(self, lease: _Lease) -> None:
        while (left := lease.confirmed + self._lease.total_seconds() - monotonic()) > 0:
            try:
                async with asyncio.timeout(left):
                    await lease.gone.wait()
            except TimeoutError:
                continue  # it may have been confirmed meanwhile
            return

    async def _renew(self) -> None:
        """Ask for what is due, for as long as anything is held.

        No statement is waited for: one that hangs is not to cost those that others hold.
        """
        try:
            while self._held:
                due = monotonic() - self._every
                batch = [each for each in self._held if not each.asked and each.confirmed <= due]
                for start in range(0, len(batch), BATCH):
                    self._ask(batch[start : start + BATCH])
                await asyncio.sleep(self._every / ROUNDS)
        finally:
            self._loop = None

    def _ask(self, batch: list[_Lease]) -> None:
        for each in batch:
            each.asked = True
        self._begun(self._until_answered(batch))

    async def _until_answered(self, batch: list[_Lease]) -> None:
        """Ask until the database has said something of each that is still held."""
        unknown = {(each.session_id, each.epoch): each for each in batch}
        try:
            while True:
                unknown = {key: each for key, each in unknown.items() if each in self._held}
                if not unknown:
                    return
                asked = monotonic()
                try:
                    answers = await leases.renew(self._database, list(unknown), self._lease)
                except StorageUnavailable:
                    answers = {}
                for key, answer in answers.items():
                    self._answered(unknown, key, answer, asked)
                if unknown:
                    await asyncio.sleep(RENEW_PAUSE)
        finally:
            for each in unknown.values():
                each.asked = False

    def _answered(
        self,
        unknown: dict[tuple[UUID, int], _Lease],
        key: tuple[UUID, int],
        answer: Renewal,
        asked: float,
    ) -> None:
        if answer is Renewal.BUSY:
            return
        lease = unknown.pop(key)
        lease.asked = False
        if answer is Renewal.KEPT:
            lease.confirmed = asked
        else:
            lease.gone.set()

    def _begun(self, steps: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of ours. Any: what coroutines send and receive, unused."""
        task = asyncio.create_task(steps, name="renewing")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("leases were not renewed", exc_info=error, extra={"action": "renew"})
