"""Creates the container of a bring-up: first its row, then, idempotently by name, the container.

At Fly a destroyed container can keep its claim on a volume for minutes. A create on such a volume
waits until the claim is gone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.domain.session import ContainerState
from session_service.errors import ProviderRefused, ProviderUnavailable, RoostError, VolumeInUse
from session_service.observe.probe import PROBE_TIMEOUT, labels
from session_service.ports import Address, ContainerAbsent
from session_service.storage.session.change import Change
from session_service.storage.session.commit import Commit, Conflict, NextGeneration, commit
from session_service.transition import changes as transition_changes
from session_service.transition.changes import new_container
from session_service.transition.ownership import OwnershipLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from session_service.bring_up.attempt import BringUp, Notes
    from session_service.bring_up.boot import Booter
    from session_service.observe.discard import Discarder
    from session_service.ports import Containers
    from session_service.storage.database import Database
    from session_service.transition.ownership import Owned

#: The pause between tries to create on a volume that is not free yet, in s: the first one, which
#: doubles with each try, and the longest one.
FIRST_PAUSE = 0.1
LAST_PAUSE = 5.0
_GOING = (ContainerState.DESTROYING, ContainerState.DESTROYED)


class Creator:
    """Creates the containers of bring-ups."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        installation_id: UUID,
        notes: Notes,
        booter: Booter,
        discarder: Discarder,
    ) -> None:
        self._database = database
        self._containers = containers
        self._installation_id = installation_id
        self._notes = notes
        self._booter = booter
        self._discarder = discarder

    async def new(self, bring_up: BringUp) -> tuple[str | None, str]:
        """Create a container, or adopt the one that an earlier owner created. Returns its boot id,
        and CREATED or ADOPTED. Raises as `Booter.run` does.
        """
        if bring_up.left_by_earlier_owner:
            # An earlier owner created it, and no user has used it: it is as good as a new one.
            booted = await self._booter.boot(bring_up, None)
            await self._booter.ready(bring_up)
            return booted.boot_id, "ADOPTED"
        await self.ensure_row(bring_up)
        await when_free(
            self._containers,
            bring_up.owned,
            bring_up.container.app,
            lambda: self._created(bring_up),
        )
        return await self._booter.wait_running(bring_up), "CREATED"

    async def _created(self, bring_up: BringUp) -> None:
        """Create the container of the row, and note its id."""
        session, container = bring_up.session, bring_up.container
        async with bring_up.permit.creating(container.app):
            seen = await self._containers.create(
                container.app,
                container.name,
                specs.load(session.spec),
                labels(self._installation_id, session.session_id, session.generation),
                timeout=bring_up.owned.left,
            )
            found = {
                "container_id": seen.address.container_id,
                "app": seen.address.app,
                "region": seen.region,
                "state": seen.state,
            }
            await self._notes.write(
                bring_up, Change(session.session_id, session.epoch, container=found)
            )

    async def destroy_last(self, bring_up: BringUp) -> None:
        """Destroy the last container, whose state is saved. Raises as `Discarder.destroy` does."""
        await self._discarder.destroy(bring_up.container, bring_up.owned)

    async def ensure_row(self, bring_up: BringUp) -> None:
        """Commit the row of a new container before it is created; nothing if the last row's
        container is still to be created. Destroys a last container whose state is saved.
        """
        session, container = bring_up.session, bring_up.container
        if container.container_id is None and container.destroy_time is None:
            return
        if not container.wanted and container.destroy_time is None:
            # The state of the last container is saved. Destroy it before the next one is created,
            # so that two containers of a session never run at once.
            await self.destroy_last(bring_up)
        # In a rollback the state was saved before. `wanted` stays true for a container that was
        # lost, whose state was not saved.
        saved = bring_up.wish.saved_id is not None
        columns = {**transition_changes.GONE, "wanted": False} if saved else transition_changes.GONE
        gone = Change(session.session_id, session.epoch, container=columns, advance=False)
        wanted = new_container(session.session_id, session.generation + 1, container.app)
        generation = NextGeneration(session.session_id, session.epoch, wanted)
        done = await commit(self._database, Commit((gone, generation)), "note")
        if isinstance(done, Conflict):
            raise OwnershipLost
        await self._notes.reread(bring_up)


async def when_free(
    containers: Containers, owned: Owned, app: str, create: Callable[[], Awaitable[None]]
) -> None:
    """Call `create`, and repeat it while a container that is gone still claims the volume.

    Raises ProviderUnavailable if that takes longer than the transition may (the next start then
    continues), ProviderRefused if an existing container has the volume, and the errors of `create`.
    """
    pause = FIRST_PAUSE
    while True:
        try:
            await create()
            return
        except VolumeInUse as error:
            claimant = error.metadata.get("container_id", "")
            if claimant and not await _gone(containers, Address(app, claimant)):
                raise ProviderRefused(
                    f"the volume to mount is in use by the existing container {claimant}; end its "
                    "session, or start on another volume",
                    error.metadata,
                ) from error
            if owned.left < 2 * pause:
                raise ProviderUnavailable(
                    "the provider has not released the volume of a container that is gone yet; "
                    "try again",
                    error.metadata,
                    LAST_PAUSE,
                ) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)


async def _gone(containers: Containers, claimant: Address) -> bool:
    """Whether the container that claims the volume is destroyed or being destroyed. True also if
    the provider does not answer: the next try asks again.
    """
    try:
        seen = await containers.get(claimant, timeout=PROBE_TIMEOUT)
    except (ContainerAbsent, RoostError):
        return True
    return seen.state in _GOING
