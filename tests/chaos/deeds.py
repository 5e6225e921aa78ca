"""Single deeds against the stack, and the count of all that was done to it."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from time import monotonic
from typing import TYPE_CHECKING

import httpx

from local.stack import StackFailed

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

EMULATOR = "emulator"
#: How often each kind of provider fault must have fired in a run, by the emulator's own count.
FIRED_AT_LEAST = 3
#: How long an armed replica is waited for until it is killed from outside, in s.
ARMED_SECONDS = 4.0
#: How long a request that is to be struck in the middle is waited for, in s.
AMBUSH_SECONDS = 2.5


class Deeds:
    """What can be done to the parts of a rig; each deed leaves the part running again."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.done: Counter[str] = Counter()
        """How often each thing was done to the stack."""
        self.fired: Counter[str] = Counter()
        """How often each kind of provider fault fired, of those that are no longer set."""
        self.killed_at: Counter[str] = Counter()
        """At which points armed replicas died by themselves."""
        self.emulator_deaths: list[float] = []
        """When the emulator was killed, and with it every guest; unix seconds."""
        self.log: list[tuple[float, str]] = []
        """What was done and when, in unix seconds."""

    async def kill(self, name: str, away: float) -> None:
        self.note(f"kill {name}, for {away:.1f} s")
        self.done[f"{name} killed"] += 1
        if name == EMULATOR:
            self.emulator_deaths.append(time.time())
        await self._rig.stack.kill(name)
        await asyncio.sleep(away)
        await self._up(name)

    async def freeze(self, name: str, how_long: float) -> None:
        """Stop the process and let it go on: an owner that does not know it lost its lease."""
        self.note(f"freeze {name} for {how_long:.1f} s")
        self.done[f"{name} frozen"] += 1
        self._rig.stack.send(name, signal.SIGSTOP)
        await asyncio.sleep(how_long)
        self._rig.stack.send(name, signal.SIGCONT)

    async def lie_in_wait(self, kind: str, action: str) -> bool:
        """Return while the provider holds such a request, so that its owner is struck in the middle
        of it; False where none came.
        """
        self.note(f"lie in wait for {action}, {kind}")
        admin = self._rig.stack.admin
        until = monotonic() + AMBUSH_SECONDS
        with contextlib.suppress(httpx.HTTPError, StopIteration):
            fault = await admin.set_fault(kind, action=action, delay_ms=1500)
            while monotonic() < until:
                if await admin.fired(fault):
                    self.done[f"ambush of {action}"] += 1
                    return True
                await asyncio.sleep(0.03)
        return False

    async def arm(self, name: str, kill_at: str) -> None:
        """Restart the replica so that it dies by itself at a point; then start it unarmed."""
        self.note(f"arm {name} at {kill_at}")
        stack = self._rig.stack
        await stack.kill(name)
        died = False
        try:
            await self._rig.restart(name, kill_at)
            await asyncio.wait_for(stack.gone(name), ARMED_SECONDS)
            died = True
        except TimeoutError:
            await stack.kill(name)
        except StackFailed:
            # It passed the point before it served its first call.
            died = True
            await stack.kill(name)
        if died:
            self.killed_at[kill_at.partition(":")[0]] += 1
        self.done[f"{name} died at a point" if died else f"{name} killed"] += 1
        self.note(f"{name} is gone" + (", by itself" if died else ""))
        await self._up(name)

    async def _up(self, name: str) -> None:
        """Start a part; one that gives up because its database is away is started again."""
        for _ in range(20):
            try:
                await self._rig.restart(name)
            except StackFailed as failure:
                self.note(f"{name} did not come up: {failure}")
                self.done[f"{name} started again"] += 1
                await self._rig.stack.kill(name)
                await asyncio.sleep(0.3)
            else:
                return
        raise StackFailed(f"{name} does not come up again")

    async def counts(self) -> Counter[str]:
        """How often each kind of provider fault has fired so far."""
        fired = Counter(self.fired)
        for fault in await self._rig.stack.admin.faults():
            fired[fault.kind] += fault.fired
        return fired

    async def lags(self, kind: str) -> bool:
        try:
            return (await self.counts())[kind] < FIRED_AT_LEAST
        except httpx.HTTPError:
            return True

    async def count_fired(self) -> None:
        """Keep the counts of the faults that are set; whoever asks for it then takes these away."""
        self.fired = await self.counts()

    def note(self, text: str) -> None:
        self.log.append((time.time(), text))
