"""Boots the container of a bring-up, waits until it answers, and proves on which boot it runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.bring_up.attempt import BringUp, RungLost
from session_service.domain.session import Container, ContainerState
from session_service.errors import ProviderUnavailable, RoostError
from session_service.observe.probe import address
from session_service.ports import Booted, ContainerAbsent, LeaseHeld

if TYPE_CHECKING:
    from session_service.observe.probe import Probe
    from session_service.ports import Containers, Previews

#: The pause between tries to start a machine that another party has leased, in s.
LEASE_PAUSE = 0.5
#: The most time of the exec that reads the guest's boot id, in s.
PROOF_TIMEOUT = 10.0


class Booter:
    """Boots the containers of bring-ups."""

    def __init__(self, containers: Containers, previews: Previews, probe: Probe) -> None:
        self._containers = containers
        self._previews = previews
        self._probe = probe

    async def run(self, bring_up: BringUp) -> Booted:
        """Boot the existing container, put it back into routing, and wait until it answers.

        Raises RungLost if it is proved lost; ContainerAbsent, LeaseLost, RoostError.
        """
        container = bring_up.container
        booted = await self.boot(bring_up, container.boot_id)
        if container.cordoned:
            await self._containers.uncordon(address(container), timeout=bring_up.owned.left)
        await self.ready(bring_up)
        return booted

    async def boot(self, bring_up: BringUp, expected_boot_id: str | None) -> Booted:
        """Boot it; the result says whether it runs on the expected boot. Raises as `run`."""
        container = bring_up.container
        try:
            booted = await self._resume(bring_up, expected_boot_id)
            bring_up.running = True
            return booted
        except ContainerAbsent:
            if not await self._probe.confirm_absent(container):
                raise ProviderUnavailable.contradicting() from None
            raise RungLost("CONTAINER_LOST") from None
        except RoostError:
            if await self._destroyed(bring_up):
                raise RungLost("CONTAINER_DESTROYED") from None
            raise

    async def wait_running(self, bring_up: BringUp) -> str | None:
        """Wait until a new container runs and answers; its boot id. Raises as `run`."""
        await self._wait_started(bring_up, bring_up.container)
        bring_up.running = True
        await self.ready(bring_up)
        return await self._containers.read_boot_id(
            address(bring_up.container), timeout=min(PROOF_TIMEOUT, bring_up.owned.left)
        )

    async def _wait_started(self, bring_up: BringUp, container: Container) -> None:
        """Wait until it runs. A 404 just after the creation is lag, not loss, unless confirmed."""
        try:
            await self._containers.wait_started(address(container), timeout=bring_up.owned.left)
        except ContainerAbsent:
            if await self._probe.confirm_absent(container):
                raise RungLost("CONTAINER_LOST") from None
            await self._containers.wait_started(address(container), timeout=bring_up.owned.left)

    async def ready(self, bring_up: BringUp) -> None:
        """Wait until its preview answers. Raises ProviderUnavailable."""
        bring_up.permit.step_back()
        if not await self._previews.wait_ready(bring_up.container, bring_up.owned.left):
            raise ProviderUnavailable(
                "the container runs, but its preview does not answer; look at the application's "
                "log, and try again"
            )

    async def _resume(self, bring_up: BringUp, expected_boot_id: str | None) -> Booted:
        """Resume it; if another party has leased the machine, wait until that lease has run out.

        It is the lease of a pause whose owner died, which fences that owner's late request, or one
        that an operator took at the provider. Both are short.
        """
        where = address(bring_up.container)
        while True:
            try:
                return await self._containers.resume(
                    where, expected_boot_id, timeout=bring_up.owned.left
                )
            except LeaseHeld:
                await asyncio.sleep(min(LEASE_PAUSE, bring_up.owned.left))

    async def _destroyed(self, bring_up: BringUp) -> bool:
        """Whether the provider, which refused to start it, says that it is destroyed. Without an
        answer: no.
        """
        try:
            seen = await self._containers.get(
                address(bring_up.container), timeout=bring_up.owned.left
            )
        except (RoostError, ContainerAbsent):
            return False
        return seen.state is ContainerState.DESTROYED
