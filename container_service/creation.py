"""Creates containers so that one name is never two of them, whatever answers are lost."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container_service.container import (
    Container,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    spec_hash,
)
from container_service.errors import (
    ContainerNotFound,
    NameTaken,
    OutcomeUnknown,
    ProviderUnavailable,
    RequestIdReused,
    VolumeInUse,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from container_service.deadlines import Deadline
    from container_service.provider import Provider

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Creation:
    """A container, and whether an earlier attempt had created it."""

    container: Container
    adopted: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """The container that is wanted."""

    app: str
    name: str
    spec: ContainerSpec
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Flight:
    """A create that is under way."""

    wish: Wish
    deadline: Deadline
    task: asyncio.Task[Creation]


class Creating:
    """Creates containers, by name.

    Calls of one name join within this process: together they cost the provider one create. Between
    processes the name itself does it, which the provider keeps unique.
    """

    def __init__(self, provider: Provider, lag_window: float) -> None:
        self._provider = provider
        self._lag_window = lag_window
        self._flights: dict[tuple[str, str], Flight] = {}

    async def create(self, wish: Wish, deadline: Deadline) -> Creation:
        """The container of that name and spec, created or found."""
        while True:
            flight = self._flights.get((wish.app, wish.name))
            if flight is None:
                # Shielded: that one caller goes away must not end it for those who joined.
                return await asyncio.shield(self._take_off(wish, deadline).task)
            try:
                async with asyncio.timeout(deadline.remaining()):
                    joined = await asyncio.shield(flight.task)
            except TimeoutError as error:
                raise ProviderUnavailable("the create that was joined took too long") from error
            except ProviderUnavailable:
                # The other's time was over, ours is not.
                if deadline.passed or not flight.deadline.passed:
                    raise
            except RequestIdReused:
                if flight.wish.spec == wish.spec:
                    raise
            else:
                return Creation(same_spec(wish, joined.container), adopted=True)

    async def aclose(self) -> None:
        """End the creates that nobody waits for any more; the next try adopts what they made."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _take_off(self, wish: Wish, deadline: Deadline) -> Flight:
        task = asyncio.create_task(self._create(wish, deadline))
        flight = self._flights[wish.app, wish.name] = Flight(wish, deadline, task)

        def land(done: asyncio.Task[Creation]) -> None:
            del self._flights[wish.app, wish.name]
            if not done.cancelled():
                done.exception()  # seen, also where nobody waits for it any more

        task.add_done_callback(land)
        return flight

    async def _create(self, wish: Wish, deadline: Deadline) -> Creation:
        while True:
            try:
                # Time is kept back for looking what became of it, should the answer not come.
                attempt = deadline.within(self._attempt_seconds(deadline))
                container = await self._provider.create(
                    wish.app, wish.name, wish.spec, wish.labels, attempt
                )
                return Creation(container, adopted=False)
            except NameTaken as taken:
                found = await self._named(wish, taken, deadline)
            except VolumeInUse as refusal:
                # It may be the very container, by a create whose answer was lost.
                found = await self._by_id(wish, refusal.container_id, deadline)
                if found is None:
                    raise
            except OutcomeUnknown as error:
                log.info(
                    "Looking whether a create was done: %s",
                    error,
                    extra={"action": "create_unknown", "container_name": wish.name},
                )
                found = await self._look_up(wish, wish.labels, deadline)
            if found is not None:
                return Creation(same_spec(wish, found), adopted=True)

    def _attempt_seconds(self, deadline: Deadline) -> float:
        left = deadline.remaining()
        return max(left / 2, left - 2 * self._lag_window - 2.0)

    async def _named(self, wish: Wish, taken: NameTaken, deadline: Deadline) -> Container | None:
        """The container that has the name: by the id that the refusal told, else by look-up."""
        found = await self._by_id(wish, taken.container_id, deadline)
        if found is not None:
            return found
        # Whatever its labels: the name is what counts.
        return await self._look_up(wish, {}, deadline)

    async def _by_id(self, wish: Wish, container_id: str, deadline: Deadline) -> Container | None:
        """The container that a refusal named, if it is there and has the name that is wanted."""
        if not container_id:
            return None
        try:
            found = await self._provider.get(ContainerRef(wish.app, container_id), deadline)
        except ContainerNotFound:
            return None  # gone, or created so lately that reads do not know it yet
        alive = found.state not in (ContainerState.DESTROYING, ContainerState.DESTROYED)
        return found if found.name == wish.name and alive else None

    async def _look_up(
        self, wish: Wish, labels: Mapping[str, str], deadline: Deadline
    ) -> Container | None:
        """The container of that name, or None once its absence is certain.

        One listing without it is not enough, for listings lag: the second comes when the lag window
        has passed. Not knowing in time is an error, never "not created".
        """
        for last in (False, True):
            listed = await self._provider.list(wish.app, labels, deadline)
            for container in listed:
                if container.name == wish.name and container.state is not ContainerState.DESTROYED:
                    return container
            if not last:
                if self._lag_window >= deadline.remaining():
                    raise OutcomeUnknown("no time was left to find out whether it was created")
                await asyncio.sleep(self._lag_window)
        return None


def same_spec(wish: Wish, found: Container) -> Container:
    """The container found, if it is made of what was asked for."""
    if found.spec_hash == spec_hash(wish.spec):
        return found
    if not found.spec_hash and not found.host_reachable:
        raise ProviderUnavailable("the container's host cannot be reached to compare its spec")
    raise RequestIdReused(
        f"the name {wish.name} belongs to a container of another spec",
        name=wish.name,
        container_id=found.ref.container_id,
    )
