"""Which machine has which volume: claimed at its creation, given back some time after its end."""

import asyncio

from local.fly import errors, mounts
from local.fly.errors import ApiError
from local.fly.mounts import Mount, MountWish
from local.fly.records import MachineRecord
from local.fly.settings import Settings
from local.fly.shelf import Shelf
from local.fly.volume_records import VolumeRecord
from local.fly.wire import JsonObject

_MOUNTABLE = frozenset({"created", "hydrating", "extending"})


class Claims:
    """The claims of machines on volumes."""

    def __init__(self, settings: Settings, shelf: Shelf) -> None:
        self._settings = settings
        self._shelf = shelf

    def wanted(self, app: str, config: JsonObject, region: str) -> VolumeRecord | None:
        """The free volume that a new machine's config mounts; refuses what cannot be had.

        `region` is what the machine asked for, empty if it leaves that to its volume.
        """
        wish = mounts.wish(config)
        if wish is None:
            return None
        volume = self._named(app, wish) if wish.volume else self._free(app, wish.name)
        if volume.machine:
            raise errors.volume_claimed(volume.machine)
        if volume.state not in _MOUNTABLE:
            raise ApiError(412, f"failed_precondition: volume {volume.id} is {volume.state}")
        if region and region != volume.region:
            raise ApiError(
                400, f"invalid_argument: volume {volume.id} is in {volume.region}, not {region}"
            )
        return volume

    def take(self, volume: VolumeRecord, machine_id: str) -> None:
        """Give the volume to the machine."""
        volume.machine = machine_id
        self._shelf.save(volume)

    def check_update(self, record: MachineRecord, config: JsonObject) -> None:
        """Refuse an update that would bring another volume; leaving it out gives it back."""
        wish = mounts.wish(config)
        held = self.held(record.id)
        if wish is None or (held is not None and wish.volume in ("", held.id)):
            return
        raise ApiError(400, "invalid_argument: a machine's volume cannot be changed by an update")

    def settle(self, record: MachineRecord) -> None:
        """Give back what an update left out of the config."""
        if mounts.wish(record.config) is None:
            self._release(record.id)

    def release_later(self, machine_id: str) -> None:
        """Give back what a machine that is gone still claims, as late as Fly does."""
        if self.held(machine_id) is not None:
            self._shelf.begin(self._release_after(machine_id), f"release by {machine_id}")

    def held(self, machine_id: str) -> VolumeRecord | None:
        """The volume that the machine claims."""
        found = (one for one in self._shelf.all() if one.machine == machine_id)
        return next(found, None)

    async def mount(self, record: MachineRecord) -> Mount | None:
        """The mount for a boot, once the volume's files are all there."""
        wish, volume = mounts.wish(record.config), self.held(record.id)
        if wish is None or volume is None:
            return None
        await self._shelf.filled(volume.id)
        return Mount(wish.path, self._shelf.files(volume.id))

    def _named(self, app: str, wish: MountWish) -> VolumeRecord:
        try:
            return self._shelf.live(app, wish.volume)
        except ApiError as error:
            raise ApiError(400, f"invalid_argument: volume {wish.volume} not found") from error

    def _free(self, app: str, name: str) -> VolumeRecord:
        for volume in self._shelf.listed(app):
            if volume.name == name and not volume.machine and volume.state in _MOUNTABLE:
                return volume
        raise ApiError(400, f"invalid_argument: no free volume named {name}")

    async def _release_after(self, machine_id: str) -> None:
        await asyncio.sleep(self._settings.volume_release_ms / 1000)
        self._release(machine_id)

    def _release(self, machine_id: str) -> None:
        volume = self.held(machine_id)
        if volume is not None:
            volume.machine = ""
            self._shelf.save(volume)
