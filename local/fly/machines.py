"""A machine while the emulator runs: its record, its guest, and what is happening to it."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from local.fly import ids
from local.fly.clock import rfc3339_now, unix_ms
from local.fly.records import Event, Lease, MachineRecord, State
from local.fly.wire import JsonObject

if TYPE_CHECKING:
    from local.fly.checks import Result
    from local.fly.guests import Guest

_log = logging.getLogger(__name__)

EVENTS_KEPT = 50


class Machine:
    """One machine. All of its changes happen in the event loop, each saved as it is made.

    At most one job is under way at a time: the background half of start, stop, suspend, update or
    destroy. Beginning another one abandons it.
    """

    def __init__(
        self, record: MachineRecord, folder: Path, save: Callable[[MachineRecord], None]
    ) -> None:
        self.record = record
        self.folder = folder
        self.guest: Guest | None = None
        self.gone = False
        """It vanished: nobody finds it any more."""
        self.hidden_until = 0.0
        """Event loop time before which reads do not find it (gossip lag)."""
        self.active_until = 0.0
        """Event loop time before which a start answers 412 `machine still active`."""
        self.memory_limit_mb = 0
        """Where the balloon is set; 0 leaves the guest all of its memory."""
        self.checks: dict[str, Result] = {}
        """What the checks of its present or last boot have found, by their names."""
        self.crashes: list[float] = []
        """Event loop times of the crashes that the restart policy still counts."""
        self._save = save
        self._job: asyncio.Task[None] | None = None
        self._watchers: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        """Its id."""
        return self.record.id

    @property
    def state(self) -> State:
        """Its state in Fly's words."""
        return self.record.state

    def move(self, state: State, event: Event | None = None) -> None:
        """Enter a state, with the event that tells of it, save, and wake who waits."""
        self.record.state = state
        if event is not None:
            self.record.events = [*self.record.events[1 - EVENTS_KEPT :], event]
            self.record.state_event_id = event.id
        self.touch()

    def touch(self) -> None:
        """Save a change and wake who waits."""
        self.record.updated_at = rfc3339_now()
        if not self.gone:
            self._save(self.record)
        self.announce()

    def announce(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def set_lease(self, lease: Lease | None) -> None:
        """Give or take away the lease."""
        self.record.lease = lease
        self.touch()

    async def change(self, timeout_s: float) -> None:
        """Wait for the next change; `TimeoutError` when none comes in time."""
        await asyncio.wait_for(self._changed.wait(), timeout_s)

    def begin(self, job: Coroutine[object, object, None]) -> None:
        """Run the background half of a verb, in place of the one under way."""
        # The job may be the one that begins the next: then it ends by itself.
        if self._job is not None and self._job is not asyncio.current_task():
            self._job.cancel()
        self._job = self._supervised(job, "job")

    def watch(self, watcher: Coroutine[object, object, None]) -> None:
        """Run what looks after the guest; it ends when the guest does."""
        task = self._supervised(watcher, "watcher")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def close(self) -> None:
        """End job, guest and watchers, and leave the record as it is."""
        if self._job is not None:
            self._job.cancel()
            await asyncio.gather(self._job, return_exceptions=True)
        if self.guest is not None:
            await self.guest.end()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self.announce()

    def _supervised(self, work: Coroutine[object, object, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work, name=f"{name} of {self.id}")
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is None:
            return
        _log.error("%s failed", task.get_name(), exc_info=task.exception())
        self.move("failed", event("start", "failed", "flyd"))


def event(kind: str, status: str, source: str, request: JsonObject | None = None) -> Event:
    """A new entry for a machine's history."""
    return Event(ids.ulid(), kind, status, source, unix_ms(), request)
