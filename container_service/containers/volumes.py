"""Delete volumes and take snapshots, where one call to the provider is not enough."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from container_service.containers.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    VolumeInUse,
    VolumeNotFound,
)
from container_service.containers.model import ContainerRef, ContainerState

if TYPE_CHECKING:
    from container_service.containers.deadlines import Deadline
    from container_service.containers.model import Snapshot, VolumeRef
    from container_service.containers.provider import Provider, VolumeProvider

#: Seconds between attempts to delete a volume that a destroyed container still claims. A little
#: more than the second that the provider's rate limit allows one delete in.
RETRY_SECONDS = 1.1


class VolumeOperations:
    """Deletes volumes and takes snapshots of them."""

    def __init__(self, provider: Provider, volumes: VolumeProvider) -> None:
        self._provider = provider
        self._volumes = volumes

    async def delete(self, ref: VolumeRef, deadline: Deadline) -> None:
        """Delete a volume; succeeds if it does not exist.

        The claim of a container lasts some seconds longer than the container. So while a destroyed
        container has the claim, the delete is retried until the deadline. Raises VolumeInUse if the
        claim is that of a live container.
        """
        while True:
            try:
                await self._volumes.delete_volume(ref, deadline)
            except VolumeNotFound:
                return
            except VolumeInUse as error:
                if deadline.remaining() <= RETRY_SECONDS or await self._claimed_by_live_container(
                    ref, error, deadline
                ):
                    raise
                await asyncio.sleep(RETRY_SECONDS)
            else:
                return

    async def take_snapshot(self, ref: VolumeRef, deadline: Deadline) -> Snapshot:
        """Begin a snapshot and return it.

        If the provider's answer does not identify it, it is the newest snapshot that was not listed
        before. Raises OutcomeUnknown if none is listed yet.
        """
        known = {one.snapshot_id for one in await self._volumes.list_snapshots(ref, deadline)}
        begun = await self._volumes.take_snapshot(ref, deadline)
        if begun is not None:
            return begun
        new = [
            one
            for one in await self._volumes.list_snapshots(ref, deadline)
            if one.snapshot_id not in known
        ]
        if not new:
            raise OutcomeUnknown(
                "the snapshot was begun but is not listed yet: list the volume's snapshots later"
            )
        return new[0]

    async def _claimed_by_live_container(
        self, ref: VolumeRef, error: VolumeInUse, deadline: Deadline
    ) -> bool:
        if not error.container_id:
            return True
        try:
            seen = await self._provider.get(ContainerRef(ref.app, error.container_id), deadline)
        except ContainerNotFound:
            return False
        return seen.state not in (ContainerState.DESTROYING, ContainerState.DESTROYED)
