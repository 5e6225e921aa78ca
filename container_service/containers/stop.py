"""Suspend, stop and destroy containers under a lease, and return the observed result."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from container_service.containers.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    StateConflict,
    SuspendUnsupported,
)
from container_service.containers.model import Container, ContainerRef, ContainerState

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from container_service.containers.deadlines import Deadline
    from container_service.containers.lease import Leases
    from container_service.containers.provider import Provider
    from container_service.containers.wait import Waiter

log = logging.getLogger(__name__)

_SUSPENDED_OR_STOPPED = frozenset({ContainerState.SUSPENDED, ContainerState.STOPPED})
_STOPPED = frozenset({ContainerState.STOPPED})
_DESTROYED = frozenset({ContainerState.DESTROYED})


class Stopper:
    """Suspends, stops and destroys containers.

    Each method acts under the caller's lease if `nonce` is given, otherwise under a lease of its
    own. Each raises OutcomeUnknown if the result was not observed in time, and LeaseHeld or
    LeaseLost if the lease does not allow the change.
    """

    def __init__(self, provider: Provider, leases: Leases, waiter: Waiter) -> None:
        self._provider = provider
        self._leases = leases
        self._waiter = waiter

    async def suspend(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> Container:
        """Suspend a container and return its observed state, which need not be SUSPENDED."""
        async with self._leases.hold(ref, nonce, "suspend", deadline) as lease:
            try:
                await tolerate_lost_answer(self._provider.suspend(ref, lease.nonce, deadline))
            except StateConflict as error:
                seen = await self._provider.get(ref, deadline)
                if seen.state in _SUSPENDED_OR_STOPPED:
                    return seen
                if seen.state is ContainerState.STARTED:
                    raise SuspendUnsupported(
                        f"the container runs, and the provider does not suspend it: {error}",
                        provider_request_id=error.provider_request_id,
                    ) from error
                if seen.state is not ContainerState.SUSPENDING:
                    raise with_observed_state(error, seen) from error
            return await self._waiter.settle(ref, _SUSPENDED_OR_STOPPED, deadline)

    async def stop(
        self,
        ref: ContainerRef,
        nonce: str,
        timeout_seconds: float | None,
        deadline: Deadline,
    ) -> Container:
        """Stop a container and return its observed state."""
        async with self._leases.hold(ref, nonce, "stop", deadline) as lease:
            try:
                await tolerate_lost_answer(
                    self._provider.stop(ref, lease.nonce, timeout_seconds, deadline)
                )
            except StateConflict as error:
                seen = await self._provider.get(ref, deadline)
                if seen.state is ContainerState.STOPPED:
                    return seen
                if seen.state is not ContainerState.STOPPING:
                    raise with_observed_state(error, seen) from error
            return await self._waiter.settle(ref, _STOPPED, deadline)

    async def destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> Container | None:
        """Destroy a container and wait for it; None if the provider has no such container.

        Raises StateConflict if the container runs and `force` is not set.
        """
        try:
            return await self._destroy(ref, nonce, deadline, force=force)
        except ContainerNotFound:
            return None
        except StateConflict as error:
            # For a container that is destroyed already, the provider rejects both requests: the
            # lease and the destroy. The same rejection can have another cause, so read the state:
            # for a destroyed container this method succeeds, because it is idempotent.
            seen = await self._provider.get(ref, deadline)
            if seen.state is ContainerState.DESTROYED:
                return seen
            raise with_observed_state(error, seen) from error

    async def _destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> Container:
        async with self._leases.hold(ref, nonce, "destroy", deadline) as lease:
            await tolerate_lost_answer(
                self._provider.destroy(ref, lease.nonce, deadline, force=force)
            )
            seen = await self._waiter.settle(ref, _DESTROYED, deadline)
            if seen.state is not ContainerState.DESTROYED:
                raise OutcomeUnknown(
                    f"the destroy was requested, but the container is {seen.provider_state}: retry"
                )
            lease.release = False
            return seen


async def tolerate_lost_answer(change: Awaitable[None]) -> None:
    """Make a change and ignore a lost answer: the caller observes the container next anyway."""
    try:
        await change
    except OutcomeUnknown as error:
        log.info(
            "Checking whether a change was made, as the answer was lost: %s",
            error,
            extra={"action": "outcome_unknown"},
        )


def with_observed_state(error: StateConflict, seen: Container) -> StateConflict:
    """The provider's error, with the state that the container was observed in."""
    return StateConflict(
        f"the container is {seen.provider_state}: {error}",
        state=seen.state.value,
        provider_request_id=error.provider_request_id,
    )
