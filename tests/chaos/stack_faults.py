"""Single faults injected into the stack's processes, and the count of all faults."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

import httpx

from local.stack.stack import StackFailed

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

EMULATOR = "emulator"
#: How often each kind of provider fault must fire in a run, by the emulator's count.
FIRED_AT_LEAST = 3
#: Longest wait for an armed replica to die, in s; then it is killed.
ARMED_SECONDS = 4.0
#: Longest wait for a request to interrupt, in s.
REQUEST_SECONDS = 2.5


class StackFaults:
    """The faults; after each one the program is running again."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.done: Counter[str] = Counter()
        """How often each fault was injected."""
        self.fired: Counter[str] = Counter()
        """How often each kind of provider fault fired, for faults that were removed."""
        self.killed_at: Counter[str] = Counter()
        """The failpoints at which armed replicas died."""
        self.emulator_deaths: list[float] = []
        """When the emulator, and with it every guest, was killed; unix seconds."""
        self.log: list[tuple[float, str]] = []
        """All faults with their times, in unix seconds."""

    async def kill(self, name: str, down: float) -> None:
        self.note(f"kill {name}, for {down:.1f} s")
        self.done[f"{name} killed"] += 1
        if name == EMULATOR:
            self.emulator_deaths.append(time.time())
        await self._rig.stack.kill(name)
        await asyncio.sleep(down)
        await self._start(name)

    async def freeze(self, name: str, how_long: float) -> None:
        """SIGSTOP the process, later SIGCONT: then its leases may have expired unnoticed."""
        self.note(f"freeze {name} for {how_long:.1f} s")
        self.done[f"{name} frozen"] += 1
        self._rig.stack.send(name, signal.SIGSTOP)
        await asyncio.sleep(how_long)
        self._rig.stack.send(name, signal.SIGCONT)

    async def wait_for_request(self, kind: str, action: str) -> bool:
        """Wait until the provider is delaying such a request, so that its owner can be interrupted.

        False if no such request came in time.
        """
        self.note(f"wait for a request: {action}, {kind}")
        admin = self._rig.stack.admin
        until = monotonic() + REQUEST_SECONDS
        with contextlib.suppress(httpx.HTTPError, StopIteration):
            fault = await admin.set_fault(kind, action=action, delay_ms=1500)
            while monotonic() < until:
                if await admin.fired(fault):
                    self.done[f"{action} interrupted"] += 1
                    return True
                await asyncio.sleep(0.03)
        return False

    async def arm(self, name: str, kill_at: str) -> None:
        """Restart the replica with an armed failpoint, wait for its death, and start it unarmed."""
        self.note(f"arm {name} at {kill_at}")
        stack = self._rig.stack
        await stack.kill(name)
        died = False
        try:
            await self._rig.restart(name, kill_at)
            await asyncio.wait_for(stack.wait_for_end(name), ARMED_SECONDS)
            died = True
        except TimeoutError:
            await stack.kill(name)
        except StackFailed:
            # It reached the failpoint before it served its first call.
            died = True
            await stack.kill(name)
        if died:
            self.killed_at[kill_at.partition(":")[0]] += 1
        self.done[f"{name} died at a failpoint" if died else f"{name} killed"] += 1
        self.note(f"{name} is gone" + (", by itself" if died else ""))
        await self._start(name)

    async def _start(self, name: str) -> None:
        """Start a program, again if it ends because its database is down."""
        for _ in range(20):
            try:
                await self._rig.restart(name)
            except StackFailed as failure:
                self.note(f"{name} did not start: {failure}")
                self.done[f"{name} started again"] += 1
                await self._rig.stack.kill(name)
                await asyncio.sleep(0.3)
            else:
                return
        raise StackFailed(f"{name} does not start again")

    async def counts(self) -> Counter[str]:
        """How often each kind of provider fault has fired so far."""
        fired = Counter(self.fired)
        for fault in await self._rig.stack.admin.faults():
            fired[fault.kind] += fault.fired
        return fired

    async def is_behind(self, kind: str) -> bool:
        try:
            return (await self.counts())[kind] < FIRED_AT_LEAST
        except httpx.HTTPError:
            return True

    async def count_fired(self) -> None:
        """Store the counts of the current faults. Call it before they are removed."""
        self.fired = await self.counts()

    def note(self, text: str) -> None:
        self.log.append((time.time(), text))
