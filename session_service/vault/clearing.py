"""Deleting the volumes that restores made and that nobody needs any more. A public single shot.

A restore of a volume makes a new one each time, since a volume cannot be exchanged under a machine.
Deleted are only those that a row says a restore made, and each only where no session that may come
back mounts it, no container is still to be created with it, no snapshot that a checkpoint stands
for is kept of it, and the provider lets go of it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from session_service.errors import RoostError, VolumeAbsent
from session_service.storage import volumes as rows

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from session_service.ports import Volume, Volumes
    from session_service.storage.database import Database
    from session_service.storage.volumes import Looked

_log = logging.getLogger(__name__)

#: Looked at in a pass, and deleted in one at most.
PASS_LIMIT = 100
DELETE_LIMIT = 10
#: One call, in s.
TIMEOUT = 10.0
#: A volume that was wanted, and in so many looks not there, was never made.
ABSENT_LOOKS = 3


@dataclass(slots=True)
class Cleared:
    """What one pass looked at and deleted."""

    looked: int = 0
    deleted: list[str] = field(default_factory=list)
    """The ids of volumes that are gone."""


class Clearing:
    """Deletes volumes, one at a time, a few in a pass."""

    def __init__(
        self, database: Database, volumes: Volumes, settled: timedelta, *, deletes: bool
    ) -> None:
        """`settled` is how old a volume must be; `deletes` whether they are ours to delete: those
        that a copy of the database knows are another's.
        """
        self._database = database
        self._volumes = volumes
        self._settled = settled
        self._deletes = deletes

    async def shot(self) -> Cleared:
        """One pass over those that are due. Raises StorageUnavailable."""
        cleared = Cleared()
        if not self._deletes:
            return cleared
        free: dict[str, list[Looked]] = defaultdict(list)
        left = DELETE_LIMIT
        while left and cleared.looked < PASS_LIMIT:
            # No more than can be tried: each look at one that is not needed puts it off.
            looked = await rows.look(self._database, self._settled, left)
            cleared.looked += len(looked)
            for each in [each for each in looked if not each.needed]:
                free[each.app].append(each)
                left -= 1
            if not looked:
                break
        for app, those in free.items():
            await self._clear(app, those, cleared)
        return cleared

    async def _clear(self, app: str, those: Iterable[Looked], cleared: Cleared) -> None:
        """Those of an app, by one listing: by their names it has also what was made twice, or whose
        id was never noted.
        """
        try:
            listed = await self._volumes.listed(app, timeout=TIMEOUT)
        except RoostError as error:
            _log.warning(
                "volumes could not be listed: %s", error, extra={"action": "clear", "app": app}
            )
            return
        for each in those:
            try:
                await self._delete(each, listed, cleared)
            except RoostError as error:
                _log.info(
                    "a volume that nobody needs was not deleted yet: %s",
                    error,
                    extra={"action": "clear", "app": app, "volume": each.name},
                )

    async def _delete(self, each: Looked, listed: Iterable[Volume], cleared: Cleared) -> None:
        made = {volume.volume_id for volume in listed if volume.name == each.name}
        if each.volume_id is not None:
            made.add(each.volume_id)
        used = {each_id for each_id in made if await self._is_used(each.app, each_id)}
        for volume_id in sorted(made - used):
            await self._volumes.delete(each.app, volume_id, timeout=TIMEOUT)
            cleared.deleted.append(volume_id)
            _log.info(
                "deleted a volume that a restore made and nobody needs",
                extra={
                    "action": "clear",
                    "app": each.app,
                    "volume": each.name,
                    "volume_id": volume_id,
                    "session_id": str(each.session_id),
                },
            )
        if not used and (made or each.tries >= ABSENT_LOOKS):
            await rows.remove(self._database, each.app, each.name)

    async def _is_used(self, app: str, volume_id: str) -> bool:
        """Whether a session mounts it, or a snapshot of it can still be restored. At Fly those
        outlive their volume; that is no reason to try it with the one that a checkpoint needs.
        """
        if await rows.is_mounted(self._database, volume_id):
            return True
        saved = await rows.saved_of(self._database, app, volume_id)
        if any(writing for writing, _ in saved):
            return True
        if not saved:
            return False
        try:
            there = await self._volumes.snapshots(app, volume_id, timeout=TIMEOUT)
        except VolumeAbsent:
            return False
        kept = {snapshot.snapshot_id for snapshot in there if not snapshot.lost}
        return any(snapshot in kept for _, snapshot in saved)
