"""Volumes and snapshots, where it takes more than one call to keep a promise."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from container_service.container import ContainerRef, ContainerState
from container_service.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    VolumeInUse,
    VolumeNotFound,
)

if TYPE_CHECKING:
    from container_service.deadlines import Deadline
    from container_service.provider import Provider, VolumeProvider
    from container_service.volume import Snapshot, VolumeRef

#: Between two tries to delete what a destroyed container still claims. Above the provider's rate.
RETRY_SECONDS = 1.1


class Storing:
    """Deletes volumes and takes snapshots of them."""

    def __init__(self, provider: Provider, volumes: VolumeProvider) -> None:
        self._provider = provider
        self._volumes = volumes

    async def delete(self, ref: VolumeRef, deadline: Deadline) -> None:
        """Delete a volume; one that is gone is as good.

        A claim outlives its container for a while: of a destroyed one it is waited out, until the
        deadline; VolumeInUse where a container that lives has the volume.
        """
        while True:
            try:
                await self._volumes.delete_volume(ref, deadline)
            except VolumeNotFound:
                return
            except VolumeInUse as refusal:
                if deadline.remaining() <= RETRY_SECONDS or await self._is_held(
                    ref, refusal, deadline
                ):
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def take_snapshot(self, ref: VolumeRef, deadline: Deadline) -> Snapshot:
        """Begin a snapshot; the provider need not tell which, then it is the newest."""
        known = {one.snapshot_id for one in await self._volumes.list_snapshots(ref, deadline)}
        begun = await self._volumes.take_snapshot(ref, deadline)
        if begun is not None:
            return begun
        fresh = [
            one
            for one in await self._volumes.list_snapshots(ref, deadline)
            if one.snapshot_id not in known
        ]
        if not fresh:
            raise OutcomeUnknown("the snapshot was begun and is not listed yet")
        return fresh[0]

    async def _is_held(self, ref: VolumeRef, refusal: VolumeInUse, deadline: Deadline) -> bool:
        """Whether the container that claims the volume still lives."""
        if not refusal.container_id:
            return True
        try:
            seen = await self._provider.get(ContainerRef(ref.app, refusal.container_id), deadline)
        except ContainerNotFound:
            return False
        return seen.state not in (ContainerState.DESTROYING, ContainerState.DESTROYED)
