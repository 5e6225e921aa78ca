"""Leases: the provider's own fence around a container, whose nonce is the fencing token."""

from __future__ import annotations

import asyncio
import logging
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from container_service.deadlines import Deadline
from container_service.errors import LeaseHeld, OutcomeUnknown, ServiceError
from container_service.outages import past_circuit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine

    from container_service.container import ContainerRef, Lease
    from container_service.provider import Provider

log = logging.getLogger(__name__)

#: How long a lease lasts that the service takes for a call of its own; if the process dies within
#: the call, so long is the container closed to others.
OWN_LEASE_SECONDS = 30
#: How often a lease that is held is asked for again. The provider counts every asking, the
#: holder's own refresh and release too: asking faster could keep the holder from letting go.
ASK_AGAIN_SECONDS = 3.0
RELEASE_SECONDS = 5.0


@dataclass(slots=True)
class Tenure:
    """A lease in use. `over` says that there is nothing left to give back."""

    nonce: str = field(repr=False)
    over: bool = False


class Leasing:
    """Takes leases and gives them back."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        # The loop keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    async def acquire(
        self,
        ref: ContainerRef,
        ttl_seconds: int,
        description: str,
        wait_seconds: float,
        deadline: Deadline,
    ) -> Lease:
        """Take the lease, waiting that long for another's to end. LeaseHeld where it does not."""
        patience = deadline.within(wait_seconds)
        while True:
            try:
                return await self._take(ref, ttl_seconds, description, deadline)
            except LeaseHeld as held:
                delay = until_next_try(held.expire_time, datetime.now(UTC))
                if patience.passed:
                    raise
            # The last try comes at the very end of the patience.
            await asyncio.sleep(min(delay, patience.remaining()))

    @asynccontextmanager
    async def under(
        self, ref: ContainerRef, nonce: str, purpose: str, deadline: Deadline
    ) -> AsyncGenerator[Tenure]:
        """Act under the caller's lease, or without one under a lease of our own."""
        if nonce:
            yield Tenure(nonce, over=True)
            return
        tenure = Tenure((await self._take_own(ref, purpose, deadline)).nonce)
        try:
            yield tenure
        finally:
            # Also when the caller went away: the release goes on in a task of its own.
            if not tenure.over:
                await asyncio.shield(self._spawn(self._give_back(ref, tenure.nonce)))

    async def aclose(self) -> None:
        """Wait for the releases that are under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(
        self, ref: ContainerRef, ttl_seconds: int, description: str, deadline: Deadline
    ) -> Lease:
        """Take the lease; where the answer was lost, see by a mark of ours whether we hold it."""
        marked = f"{description} [{uuid.uuid4().hex[:12]}]".lstrip()
        try:
            return await self._provider.acquire_lease(ref, ttl_seconds, marked, deadline)
        except OutcomeUnknown:
            held = await self._provider.read_lease(ref, deadline)
            if held is None or held.description != marked:
                raise
            return held

    async def _take_own(self, ref: ContainerRef, purpose: str, deadline: Deadline) -> Lease:
        taking = asyncio.ensure_future(
            self._take(ref, OWN_LEASE_SECONDS, f"roost: {purpose}", deadline)
        )
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The caller went away while the lease was being granted: nobody else knows its nonce.
            self._spawn(self._undo(ref, taking))
            raise

    async def _undo(self, ref: ContainerRef, taking: asyncio.Future[Lease]) -> None:
        try:
            lease = await taking
        except ServiceError:
            return
        await self._give_back(ref, lease.nonce)

    async def _give_back(self, ref: ContainerRef, nonce: str) -> None:
        soon = Deadline.after(RELEASE_SECONDS)
        try:
            await past_circuit(lambda: self._provider.release_lease(ref, nonce, soon), soon)
        except ServiceError as error:
            log.warning(
                "A lease was not given back; it runs out by itself: %s",
                error,
                extra={"action": "release_failed", "container_id": ref.container_id},
            )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def until_next_try(expire_time: datetime | None, now: datetime) -> float:
    """Seconds until a held lease is asked for again: at its end where that is known and near."""
    if expire_time is None:
        return ASK_AGAIN_SECONDS
    left = (expire_time - now).total_seconds()
    # At least half a second: the provider's clock may be behind ours.
    return min(ASK_AGAIN_SECONDS, max(0.5, left + 0.1))
