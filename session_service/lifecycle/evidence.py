"""Looking at a session's container: what the provider says, and whether memory is the same.

Loss needs evidence: a container that the provider shows destroyed is lost at once; one that it does
not find must be missing twice, apart by the lag window, and from a complete listing. Everything
else is UNKNOWN, which changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from session_service.domain.adopted import adopted
from session_service.domain.evidence import Boot, Evidence, Presence
from session_service.domain.session import ContainerState
from session_service.errors import ProviderUnavailable, RoostError, StorageUnavailable
from session_service.ports import Address, ContainerAbsent
from session_service.storage import transitions
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Container, Record, Session
    from session_service.ports import Containers, Previews, Seen
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: A look while a caller waits, in s: an outage must not lock the caller out for longer.
LOOK_TIMEOUT = 3.0
#: States in which the provider has the container in hand; they say nothing of loss.
ODD = frozenset(
    {
        ContainerState.UNKNOWN,
        ContainerState.UNSPECIFIED,
        ContainerState.STARTING,
        ContainerState.STOPPING,
        ContainerState.SUSPENDING,
        ContainerState.UPDATING,
        ContainerState.DESTROYING,
    }
)


def address(container: Container) -> Address:
    """Which container to ask the provider about. Raises ProviderUnavailable before it has an id."""
    if container.container_id is None:
        raise ProviderUnavailable("the container has no id yet; try again")
    return Address(container.app, container.container_id)


def labels(installation_id: UUID, session_id: UUID, generation: int) -> dict[str, str]:
    """What every machine carries, so that it can be found again and told from others'."""
    return {
        "roost_installation": str(installation_id),
        "roost_session": str(session_id),
        "roost_generation": str(generation),
    }


def untold_loss(session: Session) -> dict[str, object]:
    """The columns that say that memory was lost; what was untold before stays so."""
    before = session.untold_continuity if session.loss_untold else None
    return {"loss_untold": True, "untold_continuity": before}


class Looker:
    """Looks at containers, once at a time for each session however many ask."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        previews: Previews,
        installation_id: UUID,
        lag_window: timedelta,
    ) -> None:
        self._database = database
        self._containers = containers
        self._previews = previews
        self._installation_id = installation_id
        self._lag = lag_window.total_seconds()
        self._looks: dict[tuple[UUID, int], asyncio.Task[Evidence]] = {}

    async def look(self, record: Record) -> Evidence:
        """What is true of an ACTIVE session's container now; proof goes into its row."""
        # By epoch: a look at an earlier container says nothing of the one there now.
        about = (record.session.session_id, record.session.epoch)
        task = self._looks.get(about)
        if task is None:
            task = asyncio.create_task(self._look(record, keep=True), name="look")
            self._looks[about] = task
            task.add_done_callback(lambda done: self._over(about, done))
        return await asyncio.shield(task)

    def _over(self, about: tuple[UUID, int], task: asyncio.Task[Evidence]) -> None:
        self._looks.pop(about, None)
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def glance(self, record: Record) -> Evidence:
        """The same, keeping nothing of it."""
        return await self._look(record, keep=False)

    async def find(self, container: Container) -> Seen | None:
        """The container of this name whose id was never recorded; None once it is certain that
        there is none: listings lag, so that the second comes when the lag window has passed.

        Raises ProviderUnavailable and the like where the provider does not say.
        """
        wanted = labels(self._installation_id, container.session_id, container.generation)
        for last in (False, True):
            listed = await self._containers.list(container.app, wanted, timeout=LOOK_TIMEOUT)
            ours = [seen for seen in listed if wanted.items() <= seen.labels.items()]
            if ours:
                return ours[0]
            if listed:
                # Machines whose labels cannot be read now: whose they are is anybody's guess.
                raise ProviderUnavailable(
                    "the provider does not tell the labels of all containers; try again"
                )
            if not last:
                await asyncio.sleep(self._lag)
        return None

    async def prove_absent(self, container: Container) -> bool:
        """Whether a container that a listing did not have is lost: the whole of rule 7.

        Raises ProviderUnavailable and the like where the provider does not say.
        """
        try:
            seen = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
        except ContainerAbsent:
            return await self.confirm_absent(container)
        return seen.state is ContainerState.DESTROYED

    async def confirm_absent(self, container: Container) -> bool:
        """Whether a container that was just not found is lost: rule 7 of the design.

        Raises ProviderUnavailable and the like where the provider does not say.
        """
        await asyncio.sleep(self._lag)
        try:
            seen = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
        except ContainerAbsent:
            wanted = labels(self._installation_id, container.session_id, container.generation)
            if adopted(container):
                # It is in no listing by labels, there or not: the whole app is listed.
                wanted = {}
            listed = await self._containers.list(container.app, wanted, timeout=LOOK_TIMEOUT)
            return all(item.address.container_id != container.container_id for item in listed)
        return seen.state is ContainerState.DESTROYED

    async def _look(self, record: Record, *, keep: bool) -> Evidence:
        container = record.container
        if container is None or container.container_id is None:
            return Evidence(Presence.UNKNOWN, preview_answered=False)
        try:
            return await self._at_provider(record, container, keep=keep)
        except StorageUnavailable:
            raise
        except RoostError as error:
            _log.warning(
                "the provider does not say how a container is: %s",
                error,
                extra={"action": "look", "session_id": str(record.session.session_id)},
            )
        except ContainerAbsent as error:
            _log.warning("the provider contradicts itself: %s", error, extra={"action": "look"})
        answered = await self._previews.answers(container)
        return Evidence(Presence.UNKNOWN, preview_answered=answered)

    async def _at_provider(self, record: Record, container: Container, *, keep: bool) -> Evidence:
        try:
            seen = await self._containers.get(address(container), timeout=LOOK_TIMEOUT)
        except ContainerAbsent:
            if await self.confirm_absent(container):
                return Evidence(Presence.ABSENT)
            raise ProviderUnavailable("the provider contradicts itself; try again") from None
        if seen.state is ContainerState.DESTROYED:
            return Evidence(Presence.ABSENT)
        if seen.state in ODD:
            raise ProviderUnavailable(f"the container is {seen.state}; try again")
        if seen.state is not ContainerState.STARTED:
            return Evidence(Presence.PRESENT, seen.state)
        return await self._running(record, container, seen, keep=keep)

    async def _running(
        self, record: Record, container: Container, seen: Seen, *, keep: bool
    ) -> Evidence:
        """It runs: is it the boot that was proved last? Only a newer start event costs an exec."""
        boot_id: str | None = container.boot_id
        same_boot = container.boot_time is not None and seen.last_start_time == container.boot_time
        if not same_boot:
            boot_id = await self._containers.read_boot_id(seen.address, timeout=LOOK_TIMEOUT)
        if boot_id is None:
            return Evidence(Presence.PRESENT, seen.state)
        if container.boot_id is None:
            # Nothing was proved before: that says nothing of what was lost since.
            first = Boot(boot_id, seen.last_start_time)
            return Evidence(Presence.PRESENT, seen.state, first_boot=first)
        intact = boot_id == container.boot_id
        if keep:
            await self._note(record, seen, boot_id, intact=intact)
        return Evidence(Presence.PRESENT, seen.state, intact)

    async def _note(self, record: Record, seen: Seen, boot_id: str, *, intact: bool) -> None:
        """Keep the proof. Memory found lost is kept as untold, until an answer has told it."""
        # As of before the look: what was seen is no newer than that.
        found: dict[str, object] = {"verified_at": record.now}
        if not intact:
            found |= untold_loss(record.session)
        change = Change(
            record.session.session_id,
            record.session.epoch,
            session=found,
            container={
                "boot_id": boot_id,
                "boot_time": seen.last_start_time,
                "state": seen.state,
            },
            advance=not intact,
        )
        await transitions.write(self._database, change)
