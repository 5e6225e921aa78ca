"""Destroying containers, in two cases.

Within a transition, a container is destroyed under its machine's lease. Outside of one, containers
whose rows say `wanted = false` are destroyed. A row says so until the container is known to be
gone, so a failed destruction is tried again in a later pass.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from session_service.errors import ProviderUnavailable, RoostError
from session_service.observe.probe import address
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.session import inventory
from session_service.transition.ownership import lease_machine

if TYPE_CHECKING:
    from datetime import timedelta

    from session_service.domain.session import Container
    from session_service.observe.probe import Probe
    from session_service.ports import Address, Containers
    from session_service.storage.database import Database
    from session_service.transition.ownership import Owned


_log = logging.getLogger(__name__)
#: Timeout of a destroy call outside a transition, in s.
TIMEOUT = 10.0
#: How many containers one pass destroys at most.
PASS_LIMIT = 20


class Discarder:
    """Destroys containers that no session wants."""

    def __init__(
        self, database: Database, containers: Containers, probe: Probe, machine_lease: timedelta
    ) -> None:
        """`machine_lease` is how long a lease at the provider lasts, in whole seconds."""
        self._database = database
        self._containers = containers
        self._probe = probe
        self._lease = machine_lease

    async def destroy(self, container: Container, owned: Owned) -> None:
        """Destroy the container within a transition, before another container replaces it.

        The machine's lease fences an earlier owner of the transition: its late requests fail.
        Raises ProviderUnavailable, LeaseHeld, LeaseLost.
        """
        target = await self._address(container)
        if target is None:
            return
        try:
            nonce = await lease_machine(self._containers, target, owned, self._lease)
            await self._containers.destroy(target, nonce, timeout=owned.left)
        except ContainerAbsent:
            if not await self._probe.confirm_absent(container):
                raise ProviderUnavailable.contradicting() from None

    async def discard(self, container: Container) -> bool:
        """Destroy a container whose row says that it is not wanted, and record that it is gone.

        Returns False and logs it if it was not destroyed; a later pass tries again.
        """
        try:
            target = await self._address(container)
            if target is not None:
                await self._containers.destroy(target, None, timeout=TIMEOUT)
        except (RoostError, LeaseHeld, LeaseLost, ContainerAbsent) as error:
            _log.warning(
                "a container that no session wants was not destroyed yet: %s",
                error,
                extra={"action": "discard", "container_id": container.container_id},
            )
            return False
        await inventory.note_destroyed(self._database, container.session_id, container.generation)
        return True

    async def shot(self) -> int:
        """One pass over unwanted containers; returns how many were destroyed.

        Raises StorageUnavailable.
        """
        found = await inventory.find_unwanted(self._database, PASS_LIMIT)
        return sum([await self.discard(container) for container in found])

    async def _address(self, container: Container) -> Address | None:
        """Its address, found by its labels if its id was never recorded; None if the provider
        certainly has no such container.
        """
        if container.container_id is not None:
            return address(container)
        found = await self._probe.find(container)
        return None if found is None else found.address
