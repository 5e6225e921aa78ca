"""Leases of containers: the provider's lock, whose nonce is the fencing token.

While a lease is held, the provider rejects every change by a caller that does not give its nonce.
Two rules keep a container from being locked for nothing. A lease that this service acquired
itself is released even if the caller is cancelled, no matter at which await. If the answer to an
acquire is lost, the service reads the lease, and recognises its own one by a random mark in the
description. It can then use or release that lease, and need not wait until the lease expires.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import LeaseHeld, OutcomeUnknown, ServiceError
from container_service.containers.outages import retry_while_circuit_open

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from container_service.containers.model import ContainerRef, Lease
    from container_service.containers.provider import Provider

log = logging.getLogger(__name__)

#: Duration of a lease that the service acquires itself, for a call that gives no nonce. If the
#: process dies within the call, the container stays locked for this long.
OWN_LEASE_SECONDS = 30
#: Seconds between two attempts to acquire a lease that another caller holds. The provider counts
#: all lease calls on a container together: more frequent attempts could use up the rate that the
#: holder needs to refresh or release the lease.
RETRY_SECONDS = 3.0
RELEASE_SECONDS = 5.0


@dataclass(slots=True)
class ScopedLease:
    """A lease for the length of a `with` block."""

    nonce: str = field(repr=False)
    #: Whether to release the lease at the end of the block. False for the caller's own lease, and
    #: for a container that was destroyed, whose lease went with it.
    release: bool = True


class Leases:
    """Acquires and releases the leases of containers."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        # The event loop itself keeps only weak references to tasks, and a task that nothing else
        # refers to can be garbage-collected before it ends.
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(
        self,
        ref: ContainerRef,
        ttl_seconds: int,
        description: str,
        wait_seconds: float,
        deadline: Deadline,
    ) -> Lease:
        """Acquire a lease. If it is held, retry for `wait_seconds`, then raise LeaseHeld."""
        patience = deadline.within(wait_seconds)
        while True:
            try:
                return await self._acquire(ref, ttl_seconds, description, deadline)
            except LeaseHeld as error:
                delay = seconds_until_retry(error.expire_time, datetime.now(UTC))
                if patience.passed:
                    raise
            # Cut short, so that the last attempt comes at the very end of the wait.
            await asyncio.sleep(min(delay, patience.remaining()))

    @asynccontextmanager
    async def hold(
        self, ref: ContainerRef, nonce: str, purpose: str, deadline: Deadline
    ) -> AsyncGenerator[ScopedLease]:
        """Run the block under the caller's lease, or under a new one if `nonce` is empty.

        A new lease is released at the end of the block. The release runs in a task of its own,
        shielded, because the block may end by the cancellation of the caller: a release that is
        cancelled with it would leave the container locked for OWN_LEASE_SECONDS.
        """
        if nonce:
            yield ScopedLease(nonce, release=False)
            return
        lease = ScopedLease((await self._acquire_own(ref, purpose, deadline)).nonce)
        try:
            yield lease
        finally:
            if lease.release:
                await asyncio.shield(self._spawn(self._release(ref, lease.nonce)))

    async def aclose(self) -> None:
        """Wait for the releases that are in progress."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _acquire(
        self, ref: ContainerRef, ttl_seconds: int, description: str, deadline: Deadline
    ) -> Lease:
        """Acquire the lease once. If the answer is lost, read the lease and compare its mark.

        The provider has no idempotency key for leases. If the first acquire succeeded, a second one
        would fail with LeaseHeld, because we hold the lease ourselves. So the acquire is not
        repeated: a random mark in the description shows whether the lease is ours.
        """
        marked = f"{description} [{uuid.uuid4().hex[:12]}]".lstrip()
        try:
            return await self._provider.acquire_lease(ref, ttl_seconds, marked, deadline)
        except OutcomeUnknown:
            held = await self._provider.read_lease(ref, deadline)
            if held is None or held.description != marked:
                raise
            return held

    async def _acquire_own(self, ref: ContainerRef, purpose: str, deadline: Deadline) -> Lease:
        """Acquire a lease for this call; release it if the caller is cancelled meanwhile.

        A cancellation can arrive after the request was sent and before its answer is here. The
        lease may then be held, and the cancelled caller never gets its nonce. So the acquisition is
        shielded from the cancellation and goes on, and a background task releases what it gets.
        """
        acquiring = asyncio.ensure_future(
            self._acquire(ref, OWN_LEASE_SECONDS, f"roost: {purpose}", deadline)
        )
        try:
            return await asyncio.shield(acquiring)
        except asyncio.CancelledError:
            self._spawn(self._release_when_acquired(ref, acquiring))
            raise

    async def _release_when_acquired(
        self, ref: ContainerRef, acquiring: asyncio.Future[Lease]
    ) -> None:
        try:
            lease = await acquiring
        except ServiceError:
            return
        await self._release(ref, lease.nonce)

    async def _release(self, ref: ContainerRef, nonce: str) -> None:
        """Release the lease within RELEASE_SECONDS, whatever is left of the caller's deadline."""
        deadline = Deadline.after(RELEASE_SECONDS)
        try:
            await retry_while_circuit_open(
                lambda: self._provider.release_lease(ref, nonce, deadline), deadline
            )
        except ServiceError as error:
            log.warning(
                "A lease could not be released; it expires within %d s: %s",
                OWN_LEASE_SECONDS,
                error,
                extra={"action": "release_failed", "container_id": ref.container_id},
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def seconds_until_retry(expire_time: datetime | None, now: datetime) -> float:
    """How many seconds to wait before the next attempt to acquire a lease that another caller
    holds: until just after it expires, but at least 0.5 and at most RETRY_SECONDS. If it is not
    known when the lease expires, RETRY_SECONDS.
    """
    if expire_time is None:
        return RETRY_SECONDS
    left = (expire_time - now).total_seconds()
    # At least half a second, because the provider's clock may be behind ours.
    return min(RETRY_SECONDS, max(0.5, left + 0.1))
