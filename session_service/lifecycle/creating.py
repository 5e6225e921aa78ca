"""Creating a climb's container: wanted in the rows first, once, whoever asks for it how often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from session_service.domain import spec as specs
from session_service.lifecycle import claims, outcomes
from session_service.lifecycle.evidence import labels
from session_service.lifecycle.intents import new_container
from session_service.lifecycle.ownership import OwnershipLost
from session_service.storage import commits, transitions
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.lifecycle.booting import Booter
    from session_service.lifecycle.climb import Climb
    from session_service.lifecycle.notes import Notes
    from session_service.lifecycle.removing import Remover
    from session_service.ports import Containers
    from session_service.storage.database import Database


class Creator:
    """Creates the containers of climbs."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        installation_id: UUID,
        notes: Notes,
        booter: Booter,
        remover: Remover,
    ) -> None:
        self._database = database
        self._containers = containers
        self._installation_id = installation_id
        self._notes = notes
        self._booter = booter
        self._remover = remover

    async def new(self, climb: Climb) -> tuple[str | None, str]:
        """Create a container, or adopt the one that an earlier owner created: its boot id, and
        which of the two, as a machine-readable word. Raises as `Booter.bring_up` does.
        """
        if climb.unborn:
            # By an owner that is gone: bring it up, it is still new.
            booted = await self._booter.boot(climb, None)
            await self._booter.ready(climb)
            return booted.boot_id, "ADOPTED"
        await self.want(climb)
        await claims.when_free(
            self._containers, climb.held, climb.container.app, lambda: self._created(climb)
        )
        return await self._booter.come_up(climb), "CREATED"

    async def _created(self, climb: Climb) -> None:
        """Ask for the container that the row wants, and write down which it is."""
        session, container = climb.session, climb.container
        async with climb.turn.creating(container.app):
            seen = await self._containers.create(
                container.app,
                container.name,
                specs.load(session.spec),
                labels(self._installation_id, session.session_id, session.generation),
                timeout=climb.held.left,
            )
            found = {
                "container_id": seen.address.container_id,
                "app": seen.address.app,
                "region": seen.region,
                "state": seen.state,
            }
            await self._notes.write(
                climb, Change(session.session_id, session.epoch, container=found)
            )

    async def want(self, climb: Climb) -> None:
        """Where the last container is gone, commit the want of a new one before asking for it."""
        session, container = climb.session, climb.container
        if container.container_id is None and container.destroy_time is None:
            return
        if not container.wanted and container.destroy_time is None:
            # Its state was saved so that it could go: never two that run.
            await self._remover.destroy(climb)
        # What gives way to an older state was saved so that it could; what was lost was not.
        saved = climb.wish.saved_id is not None
        columns = {**outcomes.GONE, "wanted": False} if saved else outcomes.GONE
        gone = Change(session.session_id, session.epoch, container=columns, advance=False)
        if await transitions.write(self._database, gone) is None:
            raise OwnershipLost
        wanted = new_container(session.session_id, session.generation + 1, container.app)
        if (
            await commits.next_generation(self._database, session.session_id, session.epoch, wanted)
            is None
        ):
            raise OwnershipLost
        await self._notes.reread(climb)
