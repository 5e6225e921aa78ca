"""Having a climb's container run, and answer; and proving what that boot is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.domain.session import Container, ContainerState
from session_service.errors import ProviderUnavailable, RoostError
from session_service.lifecycle.climb import Climb, RungLost
from session_service.lifecycle.evidence import address
from session_service.ports import Booted, ContainerAbsent, LeaseHeld

if TYPE_CHECKING:
    from session_service.lifecycle.evidence import Looker
    from session_service.ports import Containers, Previews

#: Between tries to start a machine that somebody has leased, in s.
LEASE_PAUSE = 0.5
#: One exec for the guest's boot id, in s.
PROOF_TIMEOUT = 10.0


class Booter:
    """Brings the containers of climbs up."""

    def __init__(self, containers: Containers, previews: Previews, looker: Looker) -> None:
        self._containers = containers
        self._previews = previews
        self._looker = looker

    async def bring_up(self, climb: Climb) -> Booted:
        """Have the container that is there run, and answer, and be routed to again where it is not.

        Raises RungLost once it is proved lost; ContainerAbsent, LeaseLost, RoostError.
        """
        container = climb.container
        booted = await self.boot(climb, container.boot_id)
        if container.cordoned:
            await self._containers.uncordon(address(container), timeout=climb.held.left)
        await self.ready(climb)
        return booted

    async def boot(self, climb: Climb, expected_boot_id: str | None) -> Booted:
        """Have it run; whether it does so on the boot that is expected. Raises as `bring_up`."""
        container = climb.container
        try:
            booted = await self._resume(climb, expected_boot_id)
            climb.up = True
            return booted
        except ContainerAbsent:
            if not await self._looker.confirm_absent(container):
                raise ProviderUnavailable("the provider contradicts itself; try again") from None
            raise RungLost("CONTAINER_LOST") from None
        except RoostError:
            if await self._destroyed(climb):
                raise RungLost("CONTAINER_DESTROYED") from None
            raise

    async def come_up(self, climb: Climb) -> str | None:
        """Wait until a new one runs and answers; its boot id. Raises as `bring_up`."""
        await self._wait_started(climb, climb.container)
        climb.up = True
        await self.ready(climb)
        return await self._containers.read_boot_id(
            address(climb.container), timeout=min(PROOF_TIMEOUT, climb.held.left)
        )

    async def _wait_started(self, climb: Climb, container: Container) -> None:
        """Wait until it runs. That it is not found just after its creation is lag, not loss."""
        try:
            await self._containers.wait_started(address(container), timeout=climb.held.left)
        except ContainerAbsent:
            if await self._looker.confirm_absent(container):
                raise RungLost("CONTAINER_LOST") from None
            await self._containers.wait_started(address(container), timeout=climb.held.left)

    async def ready(self, climb: Climb) -> None:
        """Wait until its preview answers. Raises ProviderUnavailable."""
        climb.turn.step_back()
        if not await self._previews.wait_ready(climb.container, climb.held.left):
            raise ProviderUnavailable(
                "the container runs, but its preview does not answer; look at the application's "
                "log, and try again"
            )

    async def _resume(self, climb: Climb, expected_boot_id: str | None) -> Booted:
        """Resume; a lease that is in the way is waited out.

        It is that of a pause whose owner died, kept so that its late request is refused, or
        somebody's at the provider; both are short.
        """
        where = address(climb.container)
        while True:
            try:
                return await self._containers.resume(
                    where, expected_boot_id, timeout=climb.held.left
                )
            except LeaseHeld:
                await asyncio.sleep(min(LEASE_PAUSE, climb.held.left))

    async def _destroyed(self, climb: Climb) -> bool:
        """Whether the provider, which would not start it, shows it destroyed; no answer is no."""
        try:
            seen = await self._containers.get(address(climb.container), timeout=climb.held.left)
        except (RoostError, ContainerAbsent):
            return False
        return seen.state is ContainerState.DESTROYED
