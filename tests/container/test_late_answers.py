"""Reads lag behind writes, and what a read shows is as old as its request, however late the answer
arrives.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import ContainerNotFound
from container_service.containers.model import Container, ContainerRef, ContainerState
from container_service.containers.start import Starter
from container_service.containers.wait import Waiter

if TYPE_CHECKING:
    from container_service.containers.provider import Provider

REF = ContainerRef("birds", "148e21a7c57789")
#: How long reads lag, and how late the first answer is, in s.
LAG, LATE = 0.1, 0.2


class Lagging:
    """A provider whose first answer is as old as its request, and arrives after the lag window."""

    def __init__(self, stale: ContainerState | None) -> None:
        """`stale`: the state that the first answer shows; None: no such container."""
        self._stale = stale
        self._answered = False

    async def wait(self, *_: object) -> ContainerState | None:
        """STARTED, or what the first answer shows."""
        if self._stale is not None:
            return None
        return (await self.get()).state

    async def get(self, *_: object) -> Container:
        """A container that runs, or what the first answer shows."""
        state = ContainerState.STARTED
        if not self._answered:
            self._answered = True
            await asyncio.sleep(LATE)
            if self._stale is None:
                raise ContainerNotFound("no such machine")
            state = self._stale
        return Container(REF, state, provider_state=state.value)


async def test_a_container_that_a_late_answer_does_not_show_is_read_again() -> None:
    provider: Provider = Lagging(None)  # type: ignore[assignment]
    reached = await Waiter(provider, LAG).until(REF, {ContainerState.STARTED}, Deadline.after(30))
    assert reached is ContainerState.STARTED


async def test_a_start_that_a_late_answer_does_not_show_is_read_again() -> None:
    provider: Provider = Lagging(ContainerState.SUSPENDED)  # type: ignore[assignment]
    starter = Starter(provider, Waiter(provider, LAG))
    assert await starter._wait_until_started(REF, Deadline.after(30), accepted=True)


async def test_a_change_that_a_late_answer_does_not_show_is_read_again() -> None:
    """The late answer shows it STARTED, as it was before."""

    class Suspended(Lagging):
        async def wait(self, *_: object) -> ContainerState | None:
            return ContainerState.SUSPENDED if self._answered else None

    provider: Provider = Suspended(ContainerState.STARTED)  # type: ignore[assignment]
    seen = await Waiter(provider, LAG).settle(REF, {ContainerState.SUSPENDED}, Deadline.after(30))
    assert seen.state is ContainerState.SUSPENDED
