"""Composition of one emulator: create its parts and connect them."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from local.fly.config import mounts
from local.fly.disk import Disk
from local.fly.faults import Faults, load_scenario
from local.fly.guests.guest_processes import Spawner
from local.fly.logs import ActionLog, RequestLog
from local.fly.machines.autostop import Autostop, Traffic
from local.fly.machines.fleet import Fleet
from local.fly.machines.health_checks import HealthChecks
from local.fly.machines.jobs import Jobs
from local.fly.machines.lifecycle import Lifecycle
from local.fly.machines.volume_claims import VolumeClaims
from local.fly.rate_limits import RateLimits
from local.fly.settings import Settings
from local.fly.store import Store
from local.fly.volumes.snapshots import Snapshots
from local.fly.volumes.volume_store import VolumeStore
from local.fly.volumes.volumes import Volumes


@dataclass(frozen=True)
class Backend:
    """The parts on which the API and the proxy act."""

    settings: Settings
    disk: Disk
    fleet: Fleet
    lifecycle: Lifecycle
    volume_store: VolumeStore
    volumes: Volumes
    snapshots: Snapshots
    faults: Faults
    traffic: Traffic
    autostop: Autostop
    limits: RateLimits
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
        health_checks: HealthChecks,
    ) -> "Backend":
        """Create the parts on top of an open store and log."""
        faults = Faults()
        volume_store = VolumeStore(settings, store)
        claims = VolumeClaims(settings, volume_store)
        volumes = Volumes(settings, volume_store, actions, faults)
        jobs = Jobs(settings, actions, faults, disk, spawner, claims, health_checks)
        lifecycle = Lifecycle(settings, actions, faults, jobs, claims)
        fleet = Fleet(settings, store, actions, faults, lifecycle, claims, volumes)
        traffic = Traffic()
        return cls(
            settings=settings,
            disk=disk,
            fleet=fleet,
            lifecycle=lifecycle,
            volume_store=volume_store,
            volumes=volumes,
            snapshots=Snapshots(settings, volume_store, actions),
            faults=faults,
            traffic=traffic,
            autostop=Autostop(settings, fleet, lifecycle, traffic),
            limits=RateLimits(),
            actions=actions,
            requests=RequestLog(),
        )


@contextlib.asynccontextmanager
async def open_backend(settings: Settings) -> AsyncIterator[Backend]:
    """Open the backend of a data folder until the block ends; every guest has ended by then."""
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
        health_checks = HealthChecks()
        stack.push_async_callback(health_checks.close)
        backend = Backend.build(settings, store, actions, disk, spawner, health_checks)
        if settings.scenario:
            await disk.run(lambda: load_scenario(Path(settings.scenario), backend.faults))
        backend.fleet.load(await disk.run(store.apps), await disk.run(store.machines))
        stack.push_async_callback(backend.fleet.close)
        stack.push_async_callback(backend.volume_store.close)
        records = [machine.record for machine in backend.fleet.all()]
        # Releases the volume of a machine whose update dropped the mount and was interrupted.
        claimants = {one.id for one in records if one.live and mounts.requested_mount(one.config)}
        backend.volume_store.load(await disk.run(store.volumes), claimants)
        backend.snapshots.resume()
        backend.volume_store.begin(backend.snapshots.run(), "automatic snapshots")
        backend.volume_store.begin(backend.autostop.run(), "autostop")
        yield backend
