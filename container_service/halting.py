"""Suspend, stop and destroy: under a lease, and answered by what was observed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from container_service.container import Container, ContainerRef, ContainerState
from container_service.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    StateConflict,
    SuspendUnsupported,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from container_service.deadlines import Deadline
    from container_service.leasing import Leasing
    from container_service.provider import Provider
    from container_service.waiting import Waiting

log = logging.getLogger(__name__)

_RESTING = frozenset({ContainerState.SUSPENDED, ContainerState.STOPPED})
_STOPPED = frozenset({ContainerState.STOPPED})
_GONE = frozenset({ContainerState.DESTROYED})


class Halting:
    """Brings containers to rest, or to their end."""

    def __init__(self, provider: Provider, leasing: Leasing, waiting: Waiting) -> None:
        self._provider = provider
        self._leasing = leasing
        self._waiting = waiting

    async def suspend(self, ref: ContainerRef, nonce: str, deadline: Deadline) -> Container:
        """Freeze a container; the reply's state is what came of it, not what was asked for."""
        async with self._leasing.under(ref, nonce, "suspend", deadline) as lease:
            try:
                await perhaps(self._provider.suspend(ref, lease.nonce, deadline))
            except StateConflict as refusal:
                seen = await self._provider.get(ref, deadline)
                if seen.state in _RESTING:
                    return seen
                if seen.state is ContainerState.STARTED:
                    raise SuspendUnsupported(
                        f"it runs and cannot be suspended: {refusal}",
                        provider_request_id=refusal.provider_request_id,
                    ) from refusal
                if seen.state is not ContainerState.SUSPENDING:
                    raise conflict(refusal, seen) from refusal
            return await self._waiting.settle(ref, _RESTING, deadline)

    async def stop(
        self,
        ref: ContainerRef,
        nonce: str,
        timeout_seconds: float | None,
        deadline: Deadline,
    ) -> Container:
        """Stop a container; the reply's state is what came of it."""
        async with self._leasing.under(ref, nonce, "stop", deadline) as lease:
            try:
                await perhaps(self._provider.stop(ref, lease.nonce, timeout_seconds, deadline))
            except StateConflict as refusal:
                seen = await self._provider.get(ref, deadline)
                if seen.state is ContainerState.STOPPED:
                    return seen
                if seen.state is not ContainerState.STOPPING:
                    raise conflict(refusal, seen) from refusal
            return await self._waiting.settle(ref, _STOPPED, deadline)

    async def destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> Container | None:
        """Destroy a container and wait until it is gone; None where the provider knows none."""
        try:
            return await self._destroy(ref, nonce, deadline, force=force)
        except ContainerNotFound:
            return None
        except StateConflict as refusal:
            # Either the lease or the destroy was refused: both are for one that is gone already.
            seen = await self._provider.get(ref, deadline)
            if seen.state is ContainerState.DESTROYED:
                return seen
            raise conflict(refusal, seen) from refusal

    async def _destroy(
        self, ref: ContainerRef, nonce: str, deadline: Deadline, *, force: bool
    ) -> Container:
        async with self._leasing.under(ref, nonce, "destroy", deadline) as lease:
            await perhaps(self._provider.destroy(ref, lease.nonce, deadline, force=force))
            seen = await self._waiting.settle(ref, _GONE, deadline)
            if seen.state is not ContainerState.DESTROYED:
                raise OutcomeUnknown(
                    f"the container was to be destroyed but is {seen.provider_state}"
                )
            lease.over = True
            return seen


async def perhaps(change: Awaitable[None]) -> None:
    """Make a change; where its answer is lost, what is observed next says what became of it."""
    try:
        await change
    except OutcomeUnknown as error:
        log.info("Looking what became of a change: %s", error, extra={"action": "outcome_unknown"})


def conflict(refusal: StateConflict, seen: Container) -> StateConflict:
    """The refusal, with the state that the container was seen in."""
    return StateConflict(
        f"the container is {seen.provider_state}: {refusal}",
        state=seen.state.value,
        provider_request_id=refusal.provider_request_id,
    )
