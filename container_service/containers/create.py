"""Create containers, idempotently: one name is never two containers, whatever answers are lost."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container_service.containers.errors import (
    ContainerNotFound,
    NameTaken,
    OutcomeUnknown,
    ProviderUnavailable,
    RequestIdReused,
    VolumeInUse,
)
from container_service.containers.model import (
    Container,
    ContainerRef,
    ContainerSpec,
    ContainerState,
    spec_hash,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from container_service.containers.deadlines import Deadline
    from container_service.containers.provider import Provider

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """A container to create."""

    app: str
    name: str
    spec: ContainerSpec
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CreateResult:
    """A container; `adopted` if an earlier or concurrent call had created it."""

    container: Container
    adopted: bool


@dataclass(frozen=True, slots=True)
class PendingCreate:
    """A create that is in progress in this process."""

    request: CreateRequest
    deadline: Deadline
    task: asyncio.Task[CreateResult]


class Creator:
    """Creates containers, idempotently by name.

    Concurrent calls for one name in this process share one task, and so cost the provider one
    create. Between processes the provider keeps names unique: the process that comes second gets
    NameTaken and adopts the container that has the name.
    """

    def __init__(self, provider: Provider, lag_window: float) -> None:
        """`lag_window`: seconds that the provider's reads may lag behind its writes."""
        self._provider = provider
        self._lag_window = lag_window
        self._pending: dict[tuple[str, str], PendingCreate] = {}

    async def create(self, request: CreateRequest, deadline: Deadline) -> CreateResult:
        """The container with that name and spec, created or adopted.

        Raises RequestIdReused if the name belongs to a container with a different spec, and
        OutcomeUnknown or ProviderUnavailable if the outcome could not be determined in time. A
        retry after either adopts the container if it was created.
        """
        while True:
            pending = self._pending.get((request.app, request.name))
            if pending is None:
                # Shielded: the cancellation of this caller must not end the create for the callers
                # that joined it.
                return await asyncio.shield(self._begin(request, deadline).task)
            try:
                async with asyncio.timeout(deadline.remaining()):
                    joined = await asyncio.shield(pending.task)
            except TimeoutError as error:
                raise ProviderUnavailable(
                    "another call is still creating this container: retry to get its result"
                ) from error
            except ProviderUnavailable:
                # Try again if only the deadline of the first caller has passed, and not ours.
                if deadline.passed or not pending.deadline.passed:
                    raise
            except RequestIdReused:
                # The first caller asked for a different spec: the conflict may not be ours.
                if pending.request.spec == request.spec:
                    raise
            else:
                return CreateResult(require_same_spec(request, joined.container), adopted=True)

    async def aclose(self) -> None:
        """Cancel the creates that outlived their callers. A later retry adopts their containers."""
        tasks = [pending.task for pending in self._pending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, request: CreateRequest, deadline: Deadline) -> PendingCreate:
        key = (request.app, request.name)
        task = asyncio.create_task(self._create(request, deadline))
        pending = self._pending[key] = PendingCreate(request, deadline, task)

        def finished(done: asyncio.Task[CreateResult]) -> None:
            del self._pending[key]
            if not done.cancelled():
                # Mark the exception as retrieved: every caller may have been cancelled by now.
                done.exception()

        task.add_done_callback(finished)
        return pending

    async def _create(self, request: CreateRequest, deadline: Deadline) -> CreateResult:
        """Post the create until the container is known to exist, or the deadline ends it.

        A create is not idempotent at the provider, except that names are unique. After a lost
        answer the container may exist and not yet show in reads, so "not listed" is believed only
        after the lag window (`_find_by_name`). Only then is the create posted again. If it did
        exist after all, this second post fails with NameTaken, and the container is adopted.
        """
        while True:
            try:
                attempt = deadline.within(self._attempt_seconds(deadline))
                container = await self._provider.create(
                    request.app, request.name, request.spec, request.labels, attempt
                )
                return CreateResult(container, adopted=False)
            except NameTaken as error:
                found = await self._holder_of_name(request, error, deadline)
            except VolumeInUse as error:
                # The claim may be that of this very container, created by an earlier call whose
                # answer was lost. Then it is adopted; any other container keeps the volume.
                found = await self._find_by_id(request, error.container_id, deadline)
                if found is None:
                    raise
            except OutcomeUnknown as error:
                log.info(
                    "Checking whether a container was created, as the answer was lost: %s",
                    error,
                    extra={"action": "create_unknown", "container_name": request.name},
                )
                found = await self._find_by_name(request, request.labels, deadline)
            if found is not None:
                return CreateResult(require_same_spec(request, found), adopted=True)

    def _attempt_seconds(self, deadline: Deadline) -> float:
        """Seconds for one post. The rest is for two listings with a lag window between them."""
        left = deadline.remaining()
        return max(left / 2, left - 2 * self._lag_window - 2.0)

    async def _holder_of_name(
        self, request: CreateRequest, error: NameTaken, deadline: Deadline
    ) -> Container | None:
        """The container that has the name: by the id in the provider's error, or by a listing."""
        found = await self._find_by_id(request, error.container_id, deadline)
        if found is not None:
            return found
        # Without labels: only the name decides, and the container may have other labels.
        return await self._find_by_name(request, {}, deadline)

    async def _find_by_id(
        self, request: CreateRequest, container_id: str, deadline: Deadline
    ) -> Container | None:
        """The container with this id, if it has the requested name and is not being destroyed."""
        if not container_id:
            return None
        try:
            found = await self._provider.get(ContainerRef(request.app, container_id), deadline)
        except ContainerNotFound:
            return None  # destroyed, or so new that reads do not show it yet
        alive = found.state not in (ContainerState.DESTROYING, ContainerState.DESTROYED)
        return found if found.name == request.name and alive else None

    async def _find_by_name(
        self, request: CreateRequest, labels: Mapping[str, str], deadline: Deadline
    ) -> Container | None:
        """The container with the requested name, or None if it certainly does not exist.

        Listings lag, so one listing without the container proves nothing: a second one follows
        after the lag window. Raises OutcomeUnknown if the deadline leaves no time for it.
        """
        for last in (False, True):
            listed = await self._provider.list(request.app, labels, deadline)
            for container in listed:
                destroyed = container.state is ContainerState.DESTROYED
                if container.name == request.name and not destroyed:
                    return container
            if not last:
                if self._lag_window >= deadline.remaining():
                    raise OutcomeUnknown(
                        "the container may have been created, and the deadline left no time to"
                        " check: retry with the same name"
                    )
                await asyncio.sleep(self._lag_window)
        return None


def require_same_spec(request: CreateRequest, found: Container) -> Container:
    """`found`, if its spec is the requested one. Raises RequestIdReused if it is not.

    Raises ProviderUnavailable if the provider cannot read the spec hash, as the host is away.
    """
    if found.spec_hash == spec_hash(request.spec):
        return found
    if not found.spec_hash and not found.host_reachable:
        raise ProviderUnavailable(
            "a container of this name exists, and its host cannot be reached to compare its spec:"
            " retry later"
        )
    raise RequestIdReused(
        f"the name {request.name} belongs to a container with a different spec: use another name,"
        " or the spec of that container",
        name=request.name,
        container_id=found.ref.container_id,
    )
