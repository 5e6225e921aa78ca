"""Destroying the container of a climb, under its lease, before another takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.errors import ProviderUnavailable
from session_service.lifecycle.evidence import address
from session_service.ports import ContainerAbsent

if TYPE_CHECKING:
    from session_service.lifecycle.climb import Climb
    from session_service.lifecycle.evidence import Looker
    from session_service.ports import Address, Containers

#: How long a lease at the provider lasts, in s, and beyond another's how long to wait for it.
LEASE = 15.0
LEASE_PATIENCE = 5.0


class Remover:
    """Destroys the containers of climbs."""

    def __init__(self, containers: Containers, looker: Looker) -> None:
        self._containers = containers
        self._looker = looker

    async def destroy(self, climb: Climb) -> None:
        """Destroy the climb's container, under its lease, wherever it is.

        Raises ProviderUnavailable, LeaseHeld, LeaseLost.
        """
        where = await self._where(climb)
        if where is None:
            return
        left = climb.held.left
        try:
            nonce = await self._containers.acquire_lease(
                where, ttl=LEASE, wait=min(LEASE + LEASE_PATIENCE, left), timeout=left
            )
            await self._containers.destroy(where, nonce, timeout=climb.held.left)
        except ContainerAbsent:
            if not await self._looker.confirm_absent(climb.container):
                raise ProviderUnavailable("the provider contradicts itself; try again") from None

    async def _where(self, climb: Climb) -> Address | None:
        """Where it is; None where the provider certainly has none."""
        if climb.container.container_id is not None:
            return address(climb.container)
        seen = await self._looker.find(climb.container)
        return None if seen is None else seen.address
