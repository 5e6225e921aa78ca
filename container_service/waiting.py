"""Watches a container until it settles: by the provider's wait, with reads in between."""

from __future__ import annotations

import asyncio
import time
from itertools import chain, repeat
from typing import TYPE_CHECKING

from container_service.container import Container, ContainerRef, ContainerState
from container_service.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    WaitTimedOut,
)
from container_service.outages import Silence

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from container_service.deadlines import Deadline
    from container_service.provider import Provider

#: Where a wait ends early to look what else may have happened. Waits are few and long: the
#: provider limits their rate, and 25 s is well below what it and proxies in between will hold.
SLICES = (5.0, 10.0, 25.0)

_RETRYABLE = (ProviderUnavailable, ProviderRateLimited)


class Waiting:
    """Waits for states. `lag_window` is how long, in seconds, a read may lag behind a change."""

    def __init__(self, provider: Provider, lag_window: float) -> None:
        self._provider = provider
        self.lag_window = lag_window

    async def until(
        self,
        ref: ContainerRef,
        states: Collection[ContainerState],
        deadline: Deadline,
    ) -> ContainerState:
        """The state of those that the container reaches. WaitTimedOut where it reaches none."""
        begun = time.monotonic()
        silence = Silence()
        lengths = slices()
        while True:
            try:
                reached = await self._provider.wait(ref, states, next(lengths), deadline)
                silence.broken()
            except ContainerNotFound:
                if ContainerState.DESTROYED in states:
                    return ContainerState.DESTROYED
                # Of a container that was created a moment ago the provider may not know yet.
                if time.monotonic() - begun >= self.lag_window:
                    raise
                await pause(0.5, deadline)
                reached = None
            except _RETRYABLE as error:
                if deadline.passed:
                    raise timed_out(states) from error
                if silence.too_long(error):
                    raise
                await pause(1.0, deadline)
                reached, lengths = None, slices(first=0)
            if reached:
                return reached
            if deadline.passed:
                raise timed_out(states)

    async def settle(
        self, ref: ContainerRef, goals: Collection[ContainerState], deadline: Deadline
    ) -> Container:
        """What became of a change that the provider accepted, or may have, just now.

        A container in one of the goals, or FAILED, or STARTED: it runs on, or came back. That it is
        STARTED counts only when the lag window has passed, for until then it may be a read from
        before the change. OutcomeUnknown where nothing of this was seen in time.
        """
        begun = time.monotonic()
        silence = Silence()
        lengths = slices(first=self.lag_window)
        last: ProviderError | None = None
        while True:
            try:
                # After silence a read comes first: it tells at once that the provider is back.
                if last is None:
                    reached = await self._provider.wait(ref, goals, next(lengths), deadline)
                    if reached:
                        return Container(ref, reached, provider_state=reached.value)
                seen = await self._provider.get(ref, deadline)
            except _RETRYABLE as error:
                last = error
                if silence.too_long(error):
                    raise OutcomeUnknown("the provider tells nothing of the container") from error
                await pause(1.0, deadline)
                lengths = slices(first=self.lag_window)
            else:
                last = None
                silence.broken()
                lagging = time.monotonic() - begun < self.lag_window
                if has_settled(seen.state, goals, lagging=lagging):
                    return seen
            if deadline.passed:
                raise OutcomeUnknown("what became of the container was not seen in time") from last


def has_settled(state: ContainerState, goals: Collection[ContainerState], *, lagging: bool) -> bool:
    """Whether a read tells what became of a change."""
    if state in goals or state is ContainerState.FAILED:
        return True
    if state is ContainerState.DESTROYED:
        return True
    return state is ContainerState.STARTED and not lagging


def slices(first: float | None = None) -> Iterator[float]:
    """Seconds to wait before each look, for ever; at the first look a read must be worth it.

    Whoever heard nothing begins anew: after an outage a long wait would be for what never began.
    """
    begin = SLICES if first is None else (max(1.0, first), *SLICES)
    return chain(begin, repeat(SLICES[-1]))


async def pause(seconds: float, deadline: Deadline) -> None:
    """Sleep, but not beyond the deadline."""
    await asyncio.sleep(min(seconds, deadline.remaining()))


def timed_out(states: Collection[ContainerState]) -> WaitTimedOut:
    """The error for states that were not reached in time."""
    wanted = " or ".join(sorted(state.value for state in states))
    return WaitTimedOut(f"the container was not seen {wanted} in time", states=wanted)
