"""The nemesis: injects kills, crashes, network faults and provider faults while callers run.

"Nemesis" is Jepsen's term for the process that injects faults.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from time import monotonic
from typing import TYPE_CHECKING

import httpx

from local.fly.faults import KINDS
from session_service import failpoints
from tests.chaos.provider_faults import options_for
from tests.chaos.rig import CONTAINERS, REPLICAS
from tests.chaos.stack_faults import EMULATOR, FIRED_AT_LEAST, StackFaults

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.chaos.rig import Rig

#: Longest extension of a run, in s, for kinds of provider fault that did not fire often enough. A
#: busy machine needs most of it: some kinds fire only at rare requests, and all of these are slow.
OVERTIME = 90.0
#: Requests to the provider that are interrupted by a kill or a freeze.
INTERRUPTED_REQUESTS = ("create", "create", "start", "suspend", "suspend", "stop")
#: The failpoints that random calls are certain to reach.
POINTS = tuple(
    f"{place}.{moment}"
    for place in (
        *("intent", "note", "outcome", "create", "wait_started", "read_boot_id", "resume", "get"),
        *("acquire_lease", "suspend", "stop", "cordon", "destroy", "release_lease"),
        *("capture", "chunk", "ready", "restore"),
    )
    for moment in failpoints.MOMENTS
)


class Nemesis:
    """One task per target of faults, each with its own random generator from the seed."""

    def __init__(self, rig: Rig, seed: int, seconds: float, *, overtime: float = OVERTIME) -> None:
        self._overtime = overtime
        self._rig = rig
        self._seed = seed
        self._seconds = seconds
        self._until = 0.0
        self.stack_faults = StackFaults(rig)
        self._locks: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        """Inject faults until the time is over; then end all faults."""
        self._until = monotonic() + self._seconds
        loops: dict[str, Callable[[random.Random], Coroutine[None, None, None]]] = {
            **{name: self._replica_loop(name) for name in REPLICAS},
            "containers": self._containers,
            "emulator": self._emulator,
            "postgres": self._postgres,
            "network": self._network,
            "provider": self._provider,
        }
        async with asyncio.TaskGroup() as group:
            for name, loop in loops.items():
                dice = random.Random(f"{self._seed}:{name}")
                group.create_task(loop(dice), name=f"nemesis-{name}")
        for relay in self._rig.relays.values():
            relay.clear()
        await self._catch_up()
        await self.heal()

    async def _catch_up(self) -> None:
        """Set the provider faults that fired too rarely, without other faults, until they fire.

        Some need a request that is rare while everything fails, such as a resume or a suspend.
        """
        until = monotonic() + self._overtime
        admin = self._rig.stack.admin
        # Faults that are still waiting for a request would fire before those that are set now.
        await self.stack_faults.count_fired()
        await admin.clear_faults()
        while monotonic() < until:
            counts = await self.stack_faults.counts()
            missing = {kind for kind in KINDS if counts[kind] < FIRED_AT_LEAST}
            if not missing:
                return
            pending = {fault.kind for fault in await admin.faults() if fault.active}
            for kind in sorted(missing - pending):
                dice = random.Random(f"{self._seed}:overtime:{kind}")
                self.stack_faults.note(f"overtime: {kind}")
                await admin.set_fault(kind, **options_for(kind, dice))
            await asyncio.sleep(0.2)

    async def heal(self) -> None:
        """End all network and provider faults."""
        for relay in self._rig.relays.values():
            relay.clear()
        await self.stack_faults.count_fired()
        await self._rig.stack.admin.clear_faults()
        self.stack_faults.note("all faults ended")

    # --- loops ---------------------------------------------------------------------------------

    def _replica_loop(self, name: str) -> Callable[[random.Random], Coroutine[None, None, None]]:
        async def loop(dice: random.Random) -> None:
            while await self._pause(dice, 1.5, 5.0):
                fault = dice.choice(["kill", "arm", "arm", "interrupt", "interrupt", "freeze"])
                point, down = dice.choice(POINTS), dice.uniform(0, 1.0)
                count, stopped = dice.choice([1, 1, 1, 2, 5]), dice.uniform(0.2, 3.0)
                action = dice.choice(INTERRUPTED_REQUESTS)
                kind = dice.choice(["slow_before", "slow_after"])
                # Longer than a lease: the replica continues as an owner that was taken over.
                freezes, beyond_lease = dice.random() < 0.6, dice.uniform(1.5, 3.5)
                async with self._locks[name]:
                    if fault == "interrupt" and not await self.stack_faults.wait_for_request(
                        kind, action
                    ):
                        continue
                    if fault == "freeze":
                        await self.stack_faults.freeze(name, stopped)
                    elif fault == "interrupt" and freezes:
                        await self.stack_faults.freeze(name, beyond_lease)
                    elif fault == "arm":
                        await self.stack_faults.arm(name, f"{point}:{count}")
                    else:
                        await self.stack_faults.kill(name, down)

        return loop

    async def _containers(self, dice: random.Random) -> None:
        while await self._pause(dice, 4.0, 9.0):
            down, frozen = dice.uniform(0, 1.0), dice.uniform(0.2, 1.5)
            if dice.random() < 0.3:
                await self.stack_faults.freeze(CONTAINERS, frozen)
            else:
                await self.stack_faults.kill(CONTAINERS, down)

    async def _emulator(self, dice: random.Random) -> None:
        """Kill the emulator once, like a reboot of its host: files stay, memory does not."""
        if not await self._pause(dice, self._seconds * 0.4, self._seconds * 0.6):
            return
        down = dice.uniform(0, 0.7)
        async with self._locks[EMULATOR]:
            await self.stack_faults.count_fired()
            await self.stack_faults.kill(EMULATOR, down)

    async def _postgres(self, dice: random.Random) -> None:
        while await self._pause(dice, 6.0, 14.0):
            down = dice.uniform(0, 0.7)
            self.stack_faults.note("crash postgres")
            self.stack_faults.done["postgres crashed"] += 1
            await self._rig.stack.kill_postgres()
            await asyncio.sleep(down)
            await self._rig.stack.start_postgres()

    async def _network(self, dice: random.Random) -> None:
        names = sorted(self._rig.relays)
        while await self._pause(dice, 0.7, 2.5):
            name = dice.choice(names)
            network = dice.choice(["cut", "half-open", "slow", "throttled", "reset"])
            how_long, delay = dice.uniform(0.2, 1.5), dice.uniform(0.02, 0.2)
            relay = self._rig.relays[name]
            async with self._locks[name]:
                self.stack_faults.note(f"{name}: {network} for {how_long:.1f} s")
                self.stack_faults.done[f"network {network}"] += 1
                match network:
                    case "cut":
                        relay.cut()
                    case "half-open":
                        relay.half_open()
                    case "slow":
                        relay.slow(delay)
                    case "throttled":
                        relay.throttle(20_000)
                    case _:
                        relay.reset()
                await asyncio.sleep(how_long)
                relay.clear()

    async def _provider(self, dice: random.Random) -> None:
        """Set every kind of fault in random order, again and again, rare ones more often."""
        each = self._seconds / (len(KINDS) * (FIRED_AT_LEAST + 1))
        bag: list[str] = []
        while await self._pause(dice, each * 0.5, each * 1.5):
            if not bag:
                bag = sorted(KINDS)
                dice.shuffle(bag)
            kind = bag.pop()
            options = options_for(kind, dice)
            if not await self.stack_faults.is_behind(kind) and dice.random() < 0.5:
                continue
            self.stack_faults.note(f"provider: {kind} {options}")
            with contextlib.suppress(httpx.HTTPError):
                await self._rig.stack.admin.set_fault(kind, **options)

    async def _pause(self, dice: random.Random, low: float, high: float) -> bool:
        """Wait a random time; False when the time for faults is over."""
        await asyncio.sleep(min(dice.uniform(low, high), max(0.0, self._until - monotonic())))
        return monotonic() < self._until
