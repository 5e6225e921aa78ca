"""The parts of one emulator, put together."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from local.fly import mounts, scenario
from local.fly.autostop import Autostop, Traffic
from local.fly.checking import Checking
from local.fly.claims import Claims
from local.fly.disk import Disk
from local.fly.faults import Faults
from local.fly.fleet import Fleet
from local.fly.jobs import Jobs
from local.fly.lifecycle import Lifecycle
from local.fly.limits import Limits
from local.fly.log import ActionLog, RequestLog
from local.fly.processes import Spawner
from local.fly.settings import Settings
from local.fly.shelf import Shelf
from local.fly.snapshots import Snapshots
from local.fly.store import Store
from local.fly.volumes import Volumes


@dataclass(frozen=True)
class World:
    """What the API and the proxy act on."""

    settings: Settings
    disk: Disk
    fleet: Fleet
    lifecycle: Lifecycle
    shelf: Shelf
    volumes: Volumes
    snapshots: Snapshots
    faults: Faults
    traffic: Traffic
    autostop: Autostop
    limits: Limits
    actions: ActionLog
    requests: RequestLog

    @classmethod
    def build(
        cls,
        settings: Settings,
        store: Store,
        actions: ActionLog,
        disk: Disk,
        spawner: Spawner,
        checking: Checking,
    ) -> "World":
        """All parts over an open store and log."""
        faults = Faults()
        shelf = Shelf(settings, store)
        claims = Claims(settings, shelf)
        volumes = Volumes(settings, shelf, actions, faults)
        jobs = Jobs(settings, actions, faults, disk, spawner, claims, checking)
        lifecycle = Lifecycle(settings, actions, faults, jobs, claims)
        fleet = Fleet(settings, store, actions, faults, lifecycle, claims, volumes)
        traffic = Traffic()
        return cls(
            settings=settings,
            disk=disk,
            fleet=fleet,
            lifecycle=lifecycle,
            shelf=shelf,
            volumes=volumes,
            snapshots=Snapshots(settings, shelf, actions),
            faults=faults,
            traffic=traffic,
            autostop=Autostop(settings, fleet, lifecycle, traffic),
            limits=Limits(),
            actions=actions,
            requests=RequestLog(),
        )


@contextlib.asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[World]:
    """The world that the folder holds, until the block ends; then every guest is gone."""
    disk = Disk()
    store = Store(settings.data, disk)
    actions = ActionLog(store.data / "actions.jsonl", disk)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(disk.close)
        await disk.run(store.open)
        stack.callback(store.close)
        await disk.run(actions.open)
        stack.push_async_callback(disk.run, actions.close)
        spawner = Spawner()
        stack.push_async_callback(spawner.close)
        checking = Checking()
        stack.push_async_callback(checking.close)
        world = World.build(settings, store, actions, disk, spawner, checking)
        if settings.scenario:
            await disk.run(lambda: scenario.load(Path(settings.scenario), world.faults))
        world.fleet.load(await disk.run(store.apps), await disk.run(store.machines))
        stack.push_async_callback(world.fleet.close)
        stack.push_async_callback(world.shelf.close)
        records = [machine.record for machine in world.fleet.all()]
        # An update that left a volume out, and was cut short, gives it back here.
        claimants = {one.id for one in records if one.live and mounts.wish(one.config)}
        world.shelf.load(await disk.run(store.volumes), claimants)
        world.snapshots.resume()
        world.shelf.begin(world.snapshots.run(), "automatic snapshots")
        world.shelf.begin(world.autostop.run(), "autostop")
        yield world
