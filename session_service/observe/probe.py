"""Probing a session's container: its state at the provider, and whether its memory survived.

Loss needs evidence. A container that the provider shows as destroyed is lost. A container that the
provider does not find is lost only if it is not found a second time, after the lag window, and is
missing from a complete listing as well. An error, a timeout, an intermediate state or reads that
contradict each other prove nothing: the result is UNKNOWN, and no row is changed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from session_service.domain.evidence import Boot, Evidence, Presence
from session_service.domain.session import ContainerState, adopted
from session_service.errors import ProviderUnavailable, RoostError, StorageUnavailable
from session_service.ports import Address, ContainerAbsent
from session_service.storage.session import change as changes
from session_service.storage.session.change import Change

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.session import Container, Record, Session
    from session_service.ports import Containers, Previews, Seen
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)

#: Timeout of one read of the provider, in s. It is short because a caller may be waiting.
PROBE_TIMEOUT = 3.0
#: States in which a container is paused: its machine exists and does not run.
PAUSED = frozenset({ContainerState.SUSPENDED, ContainerState.STOPPED})
#: States of a container that the provider is changing, or whose state the provider does not report.
#: They do not prove a loss.
UNSETTLED = frozenset(
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
    """The container's address at the provider. Raises ProviderUnavailable before it has an id."""
    if container.container_id is None:
        raise ProviderUnavailable("the container has no id yet; try again")
    return Address(container.app, container.container_id)


def labels(installation_id: UUID, session_id: UUID, generation: int) -> dict[str, str]:
    """The labels that Roost gives to each machine that it creates. Roost finds the machine by them,
    and they name the installation that it belongs to.
    """
    return {
        "roost_installation": str(installation_id),
        "roost_session": str(session_id),
        "roost_generation": str(generation),
    }


def unreported_loss(session: Session) -> dict[str, object]:
    """The columns that record a loss of memory. While an earlier loss is unreported,
    `untold_continuity` keeps the value that the earlier loss has set.
    """
    before = session.untold_continuity if session.loss_untold else None
    return {"loss_untold": True, "untold_continuity": before}


class Probe:
    """Probes containers: one probe at a time for each session, shared by all callers."""

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
        self._probes: dict[tuple[UUID, int], asyncio.Task[Evidence]] = {}

    async def observe(self, record: Record) -> Evidence:
        """Probe an ACTIVE session's container. If its boot could be compared with the recorded one,
        the result is written to the rows of the session and of the container.

        Callers that ask at the same time share one probe. It is a task of its own behind `shield`:
        a caller that is cancelled does not cancel the probe of the others.
        """
        # By epoch: a probe of an earlier container says nothing about the present one.
        key = (record.session.session_id, record.session.epoch)
        task = self._probes.get(key)
        if task is None:
            task = asyncio.create_task(self._probe(record, note=True), name="probe")
            self._probes[key] = task
            task.add_done_callback(lambda done: self._finished(key, done))
        return await asyncio.shield(task)

    def _finished(self, key: tuple[UUID, int], task: asyncio.Task[Evidence]) -> None:
        self._probes.pop(key, None)
        if not task.cancelled():
            # Retrieved, so that asyncio does not log it if every caller was cancelled.
            task.exception()

    async def observe_only(self, record: Record) -> Evidence:
        """Probe as `observe` does, but write nothing. Other callers do not share this probe."""
        return await self._probe(record, note=False)

    async def find(self, container: Container) -> Seen | None:
        """Find a container whose id was never recorded, by its labels; None if it is proved absent.

        Listings lag behind, so a second listing is read when the lag window has passed.
        Raises ProviderUnavailable or another provider error if the provider does not answer.
        """
        wanted = labels(self._installation_id, container.session_id, container.generation)
        for last in (False, True):
            listed = await self._containers.list(container.app, wanted, timeout=PROBE_TIMEOUT)
            ours = [seen for seen in listed if wanted.items() <= seen.labels.items()]
            if ours:
                return ours[0]
            if listed:
                # Machines whose labels could not be read: one of them may be this container.
                raise ProviderUnavailable(
                    "the provider does not return the labels of all containers; try again"
                )
            if not last:
                await asyncio.sleep(self._lag)
        return None

    async def prove_absent(self, container: Container) -> bool:
        """Whether a container that is missing from a listing is lost. It is if the provider shows
        it as destroyed, or if two reads, a lag window apart, do not find it and a new listing does
        not have it.

        Raises ProviderUnavailable or another provider error if the provider does not answer.
        """
        try:
            seen = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
        except ContainerAbsent:
            return await self.confirm_absent(container)
        return seen.state is ContainerState.DESTROYED

    async def confirm_absent(self, container: Container) -> bool:
        """Whether a container that one read did not find is lost. After the lag window it is read
        again. It is lost if that read shows it as destroyed, or if neither that read nor a new
        listing finds it.

        Raises ProviderUnavailable or another provider error if the provider does not answer.
        """
        await asyncio.sleep(self._lag)
        try:
            seen = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
        except ContainerAbsent:
            wanted = labels(self._installation_id, container.session_id, container.generation)
            if adopted(container):
                # An adopted container has no labels, so that the whole app is listed.
                wanted = {}
            listed = await self._containers.list(container.app, wanted, timeout=PROBE_TIMEOUT)
            return all(item.address.container_id != container.container_id for item in listed)
        return seen.state is ContainerState.DESTROYED

    async def _probe(self, record: Record, *, note: bool) -> Evidence:
        container = record.container
        if container is None or container.container_id is None:
            return Evidence(Presence.UNKNOWN, preview_answered=False)
        try:
            return await self._at_provider(record, container, note=note)
        except StorageUnavailable:
            raise
        except RoostError as error:
            _log.warning(
                "the provider does not report a container's state: %s",
                error,
                extra={"action": "probe", "session_id": str(record.session.session_id)},
            )
        except ContainerAbsent as error:
            _log.warning(
                "a call of the provider answered that the container does not exist: %s",
                error,
                extra={"action": "probe", "session_id": str(record.session.session_id)},
            )
        answered = await self._previews.answers(container)
        return Evidence(Presence.UNKNOWN, preview_answered=answered)

    async def _at_provider(self, record: Record, container: Container, *, note: bool) -> Evidence:
        try:
            seen = await self._containers.get(address(container), timeout=PROBE_TIMEOUT)
        except ContainerAbsent:
            if await self.confirm_absent(container):
                return Evidence(Presence.ABSENT)
            raise ProviderUnavailable.contradicting() from None
        if seen.state is ContainerState.DESTROYED:
            return Evidence(Presence.ABSENT)
        if seen.state in UNSETTLED:
            raise ProviderUnavailable(f"the container is {seen.state}; try again")
        if seen.state is not ContainerState.STARTED:
            return Evidence(Presence.PRESENT, seen.state)
        return await self._running(record, container, seen, note=note)

    async def _running(
        self, record: Record, container: Container, seen: Seen, *, note: bool
    ) -> Evidence:
        """The evidence about a running container: whether it still runs the recorded boot.

        The boot id is read by an exec in the guest. If the last start time that the provider
        reports equals the recorded boot time, the boot is the same, and there is no exec.
        """
        boot_id: str | None = container.boot_id
        same_boot = container.boot_time is not None and seen.last_start_time == container.boot_time
        if not same_boot:
            boot_id = await self._containers.read_boot_id(seen.address, timeout=PROBE_TIMEOUT)
        if boot_id is None:
            return Evidence(Presence.PRESENT, seen.state)
        if container.boot_id is None:
            # No boot was proved before, so there is nothing to compare this one with.
            first = Boot(boot_id, seen.last_start_time)
            return Evidence(Presence.PRESENT, seen.state, first_boot=first)
        intact = boot_id == container.boot_id
        if note:
            await self._note(record, seen, boot_id, intact=intact)
        return Evidence(Presence.PRESENT, seen.state, intact)

    async def _note(self, record: Record, seen: Seen, boot_id: str, *, intact: bool) -> None:
        """Record the proof. Lost memory stays marked as unreported until an answer reports it."""
        # `record.now` is the time of the database's read before the probe. The provider was read
        # after it, and so the evidence is at least as new.
        columns: dict[str, object] = {"verified_at": record.now}
        if not intact:
            columns |= unreported_loss(record.session)
        change = Change(
            record.session.session_id,
            record.session.epoch,
            session=columns,
            container={
                "boot_id": boot_id,
                "boot_time": seen.last_start_time,
                "state": seen.state,
            },
            advance=not intact,
        )
        await changes.write(self._database, change)
