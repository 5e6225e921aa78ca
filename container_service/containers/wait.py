"""Wait for a state of a container: the provider's long poll, with reads in between.

A long poll alone is not enough. It ends only at the states that it was asked for, and a change that
failed leads to another state. So each poll is short at first and a read follows it.
"""

from __future__ import annotations

import asyncio
import time
from itertools import chain, repeat
from typing import TYPE_CHECKING

from container_service.containers.errors import (
    ContainerNotFound,
    OutcomeUnknown,
    ProviderError,
    ProviderRateLimited,
    ProviderUnavailable,
    WaitTimedOut,
)
from container_service.containers.model import Container, ContainerRef, ContainerState
from container_service.containers.outages import OutageTimer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from container_service.containers.deadlines import Deadline
    from container_service.containers.provider import Provider

#: Seconds of the first, second and all further polls. Few and long, because the provider limits
#: their rate; 25 s is well below the time for which it, and the proxies on the way, hold a request.
POLL_SECONDS = (5.0, 10.0, 25.0)

_RETRYABLE = (ProviderUnavailable, ProviderRateLimited)


class Waiter:
    """Waits for states. `lag_window`: seconds that a read may lag behind a change."""

    def __init__(self, provider: Provider, lag_window: float) -> None:
        self._provider = provider
        self.lag_window = lag_window

    async def until(
        self,
        ref: ContainerRef,
        states: Collection[ContainerState],
        deadline: Deadline,
    ) -> ContainerState:
        """The first of `states` that the container reaches.

        Raises WaitTimedOut at the deadline, and ProviderUnavailable in an outage of OUTAGE_SECONDS.
        """
        began = time.monotonic()
        outage = OutageTimer()
        polls = poll_lengths()
        while True:
            asked = time.monotonic()
            try:
                reached = await self._provider.wait(ref, states, next(polls), deadline)
                outage.reset()
            except ContainerNotFound:
                if ContainerState.DESTROYED in states:
                    return ContainerState.DESTROYED
                # Reads may not show a container yet that was created within the lag window. An
                # answer may arrive late: what it shows is as old as its request.
                if asked - began >= self.lag_window:
                    raise
                await sleep_within(0.5, deadline)
                reached = None
            except _RETRYABLE as error:
                if deadline.passed:
                    raise timed_out(states) from error
                if outage.expired(error):
                    raise
                await sleep_within(1.0, deadline)
                reached, polls = None, poll_lengths(first=0)
            if reached:
                return reached
            if deadline.passed:
                raise timed_out(states)

    async def settle(
        self, ref: ContainerRef, goals: Collection[ContainerState], deadline: Deadline
    ) -> Container:
        """The result of a change that the provider accepted, or may have accepted, just now.

        Returns the container in one of `goals`, or FAILED or DESTROYED, or STARTED (the change
        failed or was undone). STARTED counts only after the lag window, because until then the read
        may be older than the change. Raises OutcomeUnknown if none of these was observed in time.
        """
        began = time.monotonic()
        outage = OutageTimer()
        polls = poll_lengths(first=self.lag_window)
        last_error: ProviderError | None = None
        while True:
            try:
                # After an error, read before polling: the read shows at once that the provider is
                # back, where a poll would answer only at its end.
                if last_error is None:
                    reached = await self._provider.wait(ref, goals, next(polls), deadline)
                    if reached:
                        return Container(ref, reached, provider_state=reached.value)
                asked = time.monotonic()
                seen = await self._provider.get(ref, deadline)
            except _RETRYABLE as error:
                last_error = error
                if outage.expired(error):
                    raise OutcomeUnknown(
                        "the change was requested, but the provider does not answer: read the"
                        " container before you retry"
                    ) from error
                await sleep_within(1.0, deadline)
                polls = poll_lengths(first=self.lag_window)
            else:
                last_error = None
                outage.reset()
                lagging = asked - began < self.lag_window
                if has_settled(seen.state, goals, lagging=lagging):
                    return seen
            if deadline.passed:
                raise OutcomeUnknown(
                    "the change was requested, but its result was not observed before the deadline:"
                    " read the container before you retry"
                ) from last_error


def has_settled(state: ContainerState, goals: Collection[ContainerState], *, lagging: bool) -> bool:
    """Whether a read in this state shows the result of a change; see `Waiter.settle`."""
    if state in goals or state is ContainerState.FAILED:
        return True
    if state is ContainerState.DESTROYED:
        return True
    return state is ContainerState.STARTED and not lagging


def poll_lengths(first: float | None = None) -> Iterator[float]:
    """Seconds of each poll, endlessly; a read follows each.

    `first` adds a shorter poll at the beginning. After an outage a caller starts again with short
    polls: the change that it waits for may never have begun, and a long poll would only delay the
    read that shows it.
    """
    lengths = POLL_SECONDS if first is None else (max(1.0, first), *POLL_SECONDS)
    return chain(lengths, repeat(POLL_SECONDS[-1]))


async def sleep_within(seconds: float, deadline: Deadline) -> None:
    """Sleep, but not beyond the deadline."""
    await asyncio.sleep(min(seconds, deadline.remaining()))


def timed_out(states: Collection[ContainerState]) -> WaitTimedOut:
    """The error for states that were not reached before the deadline."""
    names = " or ".join(sorted(state.value for state in states))
    return WaitTimedOut(
        f"the container was not observed {names} in time: read its state, or wait longer",
        states=names,
    )
