"""The fleet: find, create and delete apps and machines, and restore them after a restart."""

import asyncio
from collections.abc import Iterable

from local.fly import errors, ids, regions
from local.fly.clock import unix_ms
from local.fly.faults import FaultContext, Faults
from local.fly.go_json import JsonObject
from local.fly.logs import ActionLog
from local.fly.machines.lifecycle import Lifecycle, new_record
from local.fly.machines.machine import Machine, event
from local.fly.machines.volume_claims import VolumeClaims
from local.fly.records.machine_records import App, MachineRecord
from local.fly.settings import Settings
from local.fly.store import Store
from local.fly.volumes.volumes import Volumes

_STOPPED_STATES = frozenset({"stopped", "failed", "destroyed"})


class Fleet:
    """The apps and their machines, including destroyed ones."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        actions: ActionLog,
        faults: Faults,
        lifecycle: Lifecycle,
        claims: VolumeClaims,
        volumes: Volumes,
    ) -> None:
        self._claims = claims
        self._volumes = volumes
        self._store = store
        self._actions = actions
        self._faults = faults
        self._lifecycle = lifecycle
        self._region = settings.region
        self._volume_before_name = settings.volume_before_name
        self._foreign = {name.strip() for name in settings.foreign_apps.split(",")} - {""}
        self._apps: dict[str, App] = {}
        self._machines: dict[str, dict[str, Machine]] = {}
        self.closing = False

    def load(self, apps: list[App], records: list[MachineRecord]) -> None:
        """Restore the records of an earlier run. Running machines become `stopped`."""
        for app in apps:
            self._apps[app.name] = app
            self._machines[app.name] = {}
        for record in records:
            folder = self._store.machine_folder(record.id)
            machine = Machine(record, folder, self._store.save_machine)
            self._machines.setdefault(record.app, {})[record.id] = machine
            if record.state == "destroying":
                machine.move("destroyed", event("destroy", "destroyed", "flyd"))
            elif record.state not in _STOPPED_STATES:
                machine.move("stopped", event("exit", "stopped", "flyd"))

    async def close(self) -> None:
        """End every guest."""
        self.closing = True
        await asyncio.gather(*(machine.close() for machine in self.all()))

    def app(self, name: str) -> App:
        """The app of this name. Raises a 404, or a 403 for an app of another organisation."""
        if name in self._foreign:
            raise errors.ApiError(403, "unauthorized")
        if name not in self._apps:
            raise errors.app_not_found()
        return self._apps[name]

    def apps(self, org_slug: str) -> list[App]:
        """The apps of an organisation."""
        return [app for app in self._apps.values() if app.org_slug == org_slug]

    def create_app(self, name: str, org_slug: str, network: str) -> App:
        """Create an app. Names are unique over all organisations."""
        if name in self._apps or name in self._foreign:
            raise errors.name_taken()
        app = App(name, org_slug, network, unix_ms())
        self._apps[name] = app
        self._machines[name] = {}
        self._store.save_app(app)
        self._actions.app(name, "app_create", "user")
        return app

    def save_app(self, app: App) -> None:
        """Save a changed app."""
        self._store.save_app(app)

    async def delete_app(self, name: str) -> None:
        """Delete an app with all of its machines and volumes, running or not."""
        self.app(name)
        machines = self._machines.pop(name)
        del self._apps[name]
        self._store.remove_app(name)
        self._actions.app(name, "app_destroy", "user")
        self._volumes.remove_app(name)
        for machine in machines.values():
            await self._erase(machine)

    def machine(self, app: str, machine_id: str) -> Machine:
        """A machine, also a destroyed one. Raises a 404."""
        self.app(app)
        machine = self._machines[app].get(machine_id)
        if machine is None:
            raise errors.machine_not_found()
        return machine

    def visible_machine(self, app: str, machine_id: str) -> Machine:
        """A machine as reads see it: one that is not visible yet (`stale_read`) is a 404."""
        machine = self.machine(app, machine_id)
        if _hidden(machine):
            raise errors.machine_not_found()
        return machine

    def visible_machines(self, app: str) -> list[Machine]:
        """The machines of an app that reads see, oldest first."""
        self.app(app)
        return [machine for machine in self._machines[app].values() if not _hidden(machine)]

    def all(self) -> Iterable[Machine]:
        """Every machine of every app."""
        return [machine for machines in self._machines.values() for machine in machines.values()]

    def create_machine(
        self, app: str, name: str, region: str, config: JsonObject, *, run: bool
    ) -> Machine:
        """Create a machine. Names are unique among the live machines of an app."""
        self.app(app)
        if self._volume_before_name:
            self._claims.wanted(app, config, "")
        for other in self._machines[app].values():
            if name and other.record.name == name and other.record.live:
                raise errors.name_violation(other.id, name)
        wanted = "" if region in regions.ALIASES else regions.place(region, self._region)
        volume = self._claims.wanted(app, config, wanted)
        if self._faults.fire("capacity", FaultContext("create", app)):
            raise errors.volume_host_full(volume.id) if volume else errors.no_candidate_host()
        machine_id, name = ids.machine_id(), name or ids.machine_name()
        # A machine with a volume is placed on the volume's host.
        place = volume.region if volume else regions.place(region, self._region)
        if volume is not None:
            self._claims.take(volume, machine_id)
        record = new_record(app, machine_id, name, place, config)
        machine = Machine(record, self._store.machine_folder(machine_id), self._store.save_machine)
        stale = self._faults.fire("stale_read", FaultContext("create", app, machine_id))
        if stale is not None:
            machine.hidden_until = _now() + stale.delay_ms / 1000
            machine.hidden_by = stale
        self._machines[app][machine_id] = machine
        self._lifecycle.launch(machine, run=run, source="user")
        return machine

    async def vanish(self, machine: Machine) -> None:
        """Remove a machine without a trace, as Fly sometimes does."""
        self._machines.get(machine.record.app, {}).pop(machine.id, None)
        self._actions.machine(machine.record, "vanished", "flyd")
        await self._erase(machine)

    def find(self, machine_id: str) -> Machine | None:
        """A machine by its id alone."""
        for machines in self._machines.values():
            if machine_id in machines:
                return machines[machine_id]
        return None

    async def _erase(self, machine: Machine) -> None:
        machine.gone = True
        self._claims.release_later(machine.id)
        await machine.close()
        self._store.remove_machine(machine.id)


def _hidden(machine: Machine) -> bool:
    fault = machine.hidden_by
    return fault is not None and not fault.deleted and machine.hidden_until > _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
