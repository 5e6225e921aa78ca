"""A machine in memory: its record, its guest, and its job in progress."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from local.fly import ids
from local.fly.clock import rfc3339_now, unix_ms
from local.fly.go_json import JsonObject
from local.fly.records.machine_records import Event, Lease, MachineRecord, State

if TYPE_CHECKING:
    from local.fly.config.checks import Result
    from local.fly.faults import Fault
    from local.fly.guests.guest import Guest

_log = logging.getLogger(__name__)

EVENTS_KEPT = 50


class Machine:
    """One machine. It is changed only in the event loop, and every change is saved at once.

    At most one job is in progress: the background half of start, stop, suspend, update or destroy.
    To begin another job cancels it.
    """

    def __init__(
        self, record: MachineRecord, folder: Path, save: Callable[[MachineRecord], None]
    ) -> None:
        self.record = record
        self.folder = folder
        self.guest: Guest | None = None
        self.gone = False
        """Whether it vanished or its app was deleted. No request finds it."""
        self.hidden_until = 0.0
        """Event loop time before which reads do not see it (fault `stale_read`)."""
        self.hidden_by: Fault | None = None
        """That fault. Reads see the machine as soon as the fault is deleted by its id."""
        self.active_until = 0.0
        """Event loop time before which a start answers 412 `machine still active`."""
        self.memory_limit_mb = 0
        """The limit of the memory balloon; 0 is no limit."""
        self.checks: dict[str, Result] = {}
        """The results of the health checks of the current or last boot, by name."""
        self.crashes: list[float] = []
        """Event loop times of the crashes that the restart policy counts."""
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
        """Its state, in Fly's words."""
        return self.record.state

    def move(self, state: State, event: Event | None = None) -> None:
        """Enter a state, add its event, save, and wake the waiters."""
        self.record.state = state
        if event is not None:
            self.record.events = [*self.record.events[1 - EVENTS_KEPT :], event]
            self.record.state_event_id = event.id
        self.touch()

    def touch(self) -> None:
        """Save a change and wake the waiters."""
        self.record.updated_at = rfc3339_now()
        if not self.gone:
            self._save(self.record)
        self.announce()

    def announce(self) -> None:
        """Wake the waiters."""
        self._changed.set()
        self._changed = asyncio.Event()

    def set_lease(self, lease: Lease | None) -> None:
        """Set or remove the lease."""
        self.record.lease = lease
        self.touch()

    async def change(self, timeout_s: float) -> None:
        """Wait for the next change. Raises TimeoutError."""
        await asyncio.wait_for(self._changed.wait(), timeout_s)

    def begin(self, job: Coroutine[object, object, None]) -> None:
        """Run a job, and cancel the one in progress."""
        # A job may begin the next one itself; it then ends by itself and must not be cancelled.
        if self._job is not None and self._job is not asyncio.current_task():
            self._job.cancel()
        self._job = self._supervised(job, "job")

    def watch(self, watcher: Coroutine[object, object, None]) -> None:
        """Run a task that accompanies the guest and ends with it."""
        task = self._supervised(watcher, "watcher")
        self._watchers.add(task)
        task.add_done_callback(self._watchers.discard)

    async def close(self) -> None:
        """End the job, the guest and its watchers. The record stays as it is."""
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
    """Create an event for a machine's history."""
    return Event(ids.ulid(), kind, status, source, unix_ms(), request)
