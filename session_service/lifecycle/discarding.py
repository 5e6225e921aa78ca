"""Destroying containers that nobody wants; where that fails, their rows say so until it is done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_service.errors import RoostError
from session_service.lifecycle.evidence import address
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import unwanted

if TYPE_CHECKING:
    from session_service.domain.session import Container
    from session_service.lifecycle.evidence import Looker
    from session_service.ports import Containers
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: One destruction, in s.
TIMEOUT = 10.0
#: So many are looked at in one pass.
PASS_LIMIT = 20


class Discarder:
    """Destroys what is not wanted."""

    def __init__(self, database: Database, containers: Containers, looker: Looker) -> None:
        self._database = database
        self._containers = containers
        self._looker = looker

    async def discard(self, container: Container) -> bool:
        """Destroy it, looking for it by its labels where its id was never recorded, and note that
        it is gone. False where the provider does not answer; then it stays to be done.
        """
        try:
            where = None
            if container.container_id is not None:
                where = address(container)
            elif (seen := await self._looker.find(container)) is not None:
                where = seen.address
            if where is not None:
                await self._containers.destroy(where, None, timeout=TIMEOUT)
        except (RoostError, LeaseHeld, LeaseLost, ContainerAbsent) as error:
            _log.warning(
                "a container that nobody wants was not destroyed yet: %s",
                error,
                extra={"action": "discard", "container_id": container.container_id},
            )
            return False
        await unwanted.destroyed(self._database, container.session_id, container.generation)
        return True

    async def shot(self) -> int:
        """One pass over what nobody wants; how many were destroyed. Raises StorageUnavailable."""
        found = await unwanted.find(self._database, PASS_LIMIT)
        return sum([await self.discard(container) for container in found])
