"""What goes wrong, and when: kills, crashes, bad weather and the provider's faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from time import monotonic
from typing import TYPE_CHECKING

import httpx

from local.fly.faults import KINDS
from session_service import points
from tests.chaos.deeds import EMULATOR, FIRED_AT_LEAST, Deeds
from tests.chaos.provider_faults import options_for
from tests.chaos.rig import CONTAINERS, REPLICAS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.chaos.rig import Rig

#: How much longer a run may last for kinds that did not, in s.
OVERTIME = 30.0
#: Requests that are struck in the middle.
AMBUSHED = ("create", "create", "start", "suspend", "suspend", "stop")
#: The points that a run of random calls is sure to pass.
POINTS = tuple(
    f"{place}.{moment}"
    for place in (
        *("intent", "note", "outcome", "create", "wait_started", "read_boot_id", "resume", "get"),
        *("acquire_lease", "suspend", "stop", "cordon", "destroy", "release_lease"),
        *("capture", "chunk", "ready", "restore"),
    )
    for moment in points.MOMENTS
)


class Nemesis:
    """One lane for each thing that can break, each with dice of its own from the seed."""

    def __init__(self, rig: Rig, seed: int, seconds: float, *, overtime: float = OVERTIME) -> None:
        self._overtime = overtime
        self._rig = rig
        self._seed = seed
        self._seconds = seconds
        self._until = 0.0
        self.deeds = Deeds(rig)
        self._hands: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self) -> None:
        """Break things until time is up; then everything is up and well again."""
        self._until = monotonic() + self._seconds
        lanes: dict[str, Callable[[random.Random], Coroutine[None, None, None]]] = {
            **{name: self._replica_lane(name) for name in REPLICAS},
            "containers": self._containers,
            "emulator": self._emulator,
            "postgres": self._postgres,
            "network": self._network,
            "provider": self._provider,
        }
        async with asyncio.TaskGroup() as group:
            for name, lane in lanes.items():
                dice = random.Random(f"{self._seed}:{name}")
                group.create_task(lane(dice), name=f"nemesis-{name}")
        for relay in self._rig.relays.values():
            relay.clear()
        await self._catch_up()
        await self.heal()

    async def _catch_up(self) -> None:
        """Some kinds need an occasion that a broken stack seldom gives: a resume, a suspend. Those
        that lag behind are set until they have fired, with all else well; callers go on.
        """
        until = monotonic() + self._overtime
        admin = self._rig.stack.admin
        # What still waits for its occasion is in the way of what is set now.
        await self.deeds.count_fired()
        await admin.clear_faults()
        while monotonic() < until:
            counts = await self.deeds.counts()
            lagging = {kind for kind in KINDS if counts[kind] < FIRED_AT_LEAST}
            if not lagging:
                return
            waiting = {fault.kind for fault in await admin.faults() if fault.active}
            for kind in sorted(lagging - waiting):
                dice = random.Random(f"{self._seed}:overtime:{kind}")
                self.deeds.note(f"overtime: {kind}")
                await admin.set_fault(kind, **options_for(kind, dice))
            await asyncio.sleep(0.2)

    async def heal(self) -> None:
        """Good weather, no faults, every part running."""
        for relay in self._rig.relays.values():
            relay.clear()
        await self.deeds.count_fired()
        await self._rig.stack.admin.clear_faults()
        self.deeds.note("everything is well again")

    # --- lanes ---------------------------------------------------------------------------------

    def _replica_lane(self, name: str) -> Callable[[random.Random], Coroutine[None, None, None]]:
        async def lane(dice: random.Random) -> None:
            while await self._pause(dice, 1.5, 5.0):
                deed = dice.choice(["kill", "arm", "arm", "ambush", "ambush", "freeze"])
                point, away = dice.choice(POINTS), dice.uniform(0, 1.0)
                count, frozen = dice.choice([1, 1, 1, 2, 5]), dice.uniform(0.2, 3.0)
                action, kind = dice.choice(AMBUSHED), dice.choice(["slow_before", "slow_after"])
                # Longer than a lease: it wakes up as an owner that was taken over.
                freezes, overslept = dice.random() < 0.6, dice.uniform(1.5, 3.5)
                async with self._hands[name]:
                    if deed == "ambush" and not await self.deeds.lie_in_wait(kind, action):
                        continue
                    if deed == "freeze":
                        await self.deeds.freeze(name, frozen)
                    elif deed == "ambush" and freezes:
                        await self.deeds.freeze(name, overslept)
                    elif deed == "arm":
                        await self.deeds.arm(name, f"{point}:{count}")
                    else:
                        await self.deeds.kill(name, away)

        return lane

    async def _containers(self, dice: random.Random) -> None:
        while await self._pause(dice, 4.0, 9.0):
            away, frozen = dice.uniform(0, 1.0), dice.uniform(0.2, 1.5)
            if dice.random() < 0.3:
                await self.deeds.freeze(CONTAINERS, frozen)
            else:
                await self.deeds.kill(CONTAINERS, away)

    async def _emulator(self, dice: random.Random) -> None:
        """Once in a run, as a reboot of the provider's host: files are kept, memory is not."""
        if not await self._pause(dice, self._seconds * 0.4, self._seconds * 0.6):
            return
        away = dice.uniform(0, 0.7)
        async with self._hands[EMULATOR]:
            await self.deeds.count_fired()
            await self.deeds.kill(EMULATOR, away)

    async def _postgres(self, dice: random.Random) -> None:
        while await self._pause(dice, 6.0, 14.0):
            away = dice.uniform(0, 0.7)
            self.deeds.note("crash postgres")
            self.deeds.done["postgres crashed"] += 1
            await self._rig.stack.kill_postgres()
            await asyncio.sleep(away)
            await self._rig.stack.start_postgres()

    async def _network(self, dice: random.Random) -> None:
        names = sorted(self._rig.relays)
        while await self._pause(dice, 0.7, 2.5):
            name = dice.choice(names)
            weather = dice.choice(["cut", "half-open", "slow", "throttled", "reset"])
            how_long, delay = dice.uniform(0.2, 1.5), dice.uniform(0.02, 0.2)
            relay = self._rig.relays[name]
            async with self._hands[name]:
                self.deeds.note(f"{name}: {weather} for {how_long:.1f} s")
                self.deeds.done[f"network {weather}"] += 1
                match weather:
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
        """Every kind in turn, in an order of the seed's; those that lag behind come again."""
        each = self._seconds / (len(KINDS) * (FIRED_AT_LEAST + 1))
        bag: list[str] = []
        while await self._pause(dice, each * 0.5, each * 1.5):
            if not bag:
                bag = sorted(KINDS)
                dice.shuffle(bag)
            kind = bag.pop()
            options = options_for(kind, dice)
            if not await self.deeds.lags(kind) and dice.random() < 0.5:
                continue
            self.deeds.note(f"provider: {kind} {options}")
            with contextlib.suppress(httpx.HTTPError):
                await self._rig.stack.admin.set_fault(kind, **options)

    async def _pause(self, dice: random.Random, low: float, high: float) -> bool:
        """Wait; False where the time for breaking things is over."""
        await asyncio.sleep(min(dice.uniform(low, high), max(0.0, self._until - monotonic())))
        return monotonic() < self._until
