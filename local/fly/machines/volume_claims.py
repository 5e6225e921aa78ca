"""Claims: a machine claims a volume at its creation and releases it some time after its end."""

import asyncio

from local.fly import errors
from local.fly.config import mounts
from local.fly.config.mounts import Mount, MountRequest
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject
from local.fly.records.machine_records import MachineRecord
from local.fly.records.volume_records import VolumeRecord
from local.fly.settings import Settings
from local.fly.volumes.volume_store import VolumeStore

_MOUNTABLE = frozenset({"created", "hydrating", "extending"})


class VolumeClaims:
    """The claims of machines on volumes."""

    def __init__(self, settings: Settings, volume_store: VolumeStore) -> None:
        self._settings = settings
        self._volume_store = volume_store

    def wanted(self, app: str, config: JsonObject, region: str) -> VolumeRecord | None:
        """The free volume for the mount of a new machine's config; None without a mount.

        `region` is the requested one, or empty to use the volume's. Raises ApiError when the volume
        does not exist, is claimed, or is in another region.
        """
        request = mounts.requested_mount(config)
        if request is None:
            return None
        volume = self._named(app, request) if request.volume else self._free(app, request.name)
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
        """Record the machine's claim."""
        volume.machine = machine_id
        self._volume_store.save(volume)

    def check_update(self, record: MachineRecord, config: JsonObject) -> None:
        """Reject an update that mounts another volume. One without a mount releases the volume."""
        request = mounts.requested_mount(config)
        held = self.held(record.id)
        if request is None or (held is not None and request.volume in ("", held.id)):
            return
        raise ApiError(400, "invalid_argument: a machine's volume cannot be changed by an update")

    def settle(self, record: MachineRecord) -> None:
        """Release the volume if an update removed its mount."""
        if mounts.requested_mount(record.config) is None:
            self._release(record.id)

    def release_later(self, machine_id: str) -> None:
        """Release the volume of a destroyed machine after a delay, as Fly does."""
        if self.held(machine_id) is not None:
            self._volume_store.begin(self._release_after(machine_id), f"release by {machine_id}")

    def held(self, machine_id: str) -> VolumeRecord | None:
        """The volume that the machine claims."""
        found = (one for one in self._volume_store.all() if one.machine == machine_id)
        return next(found, None)

    async def mount(self, record: MachineRecord) -> Mount | None:
        """The mount for a boot, once the volume is filled; None without a mount."""
        request, volume = mounts.requested_mount(record.config), self.held(record.id)
        if request is None or volume is None:
            return None
        await self._volume_store.filled(volume.id)
        return Mount(request.path, self._volume_store.files(volume.id))

    def _named(self, app: str, request: MountRequest) -> VolumeRecord:
        try:
            return self._volume_store.live(app, request.volume)
        except ApiError as error:
            raise ApiError(400, f"invalid_argument: volume {request.volume} not found") from error

    def _free(self, app: str, name: str) -> VolumeRecord:
        for volume in self._volume_store.listed(app):
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
            self._volume_store.save(volume)
