"""Asks the provider for the state of machines that are to be adopted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from session_service.adoption.storage import Observation
from session_service.domain.session import ContainerState
from session_service.errors import ProviderRateLimited, RoostError
from session_service.ports import Address, ContainerAbsent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from session_service.adoption.storage import Machine
    from session_service.ports import Containers, Seen

#: Requests at once; container_service keeps to the provider's rate limits.
AT_ONCE = 8
#: Timeout of one request, in s.
TIMEOUT = 5.0
#: Attempts of one request when the provider's rate limit is used up.
TRIES = 5
#: After so many requests in a row without an answer, no further ones are sent.
MOST_UNANSWERED = 24

#: What a machine in each state becomes. A machine in another state is not adopted now.
_BECOMES = {
    ContainerState.STARTED: "ACTIVE",
    ContainerState.SUSPENDED: "SUSPENDED",
    ContainerState.STOPPED: "STOPPED",
    ContainerState.FAILED: "STOPPED",
    ContainerState.CREATED: "STOPPED",
    ContainerState.DESTROYED: "LOST",
}


class MachineProbe:
    """Observes machines, a few at a time."""

    def __init__(self, containers: Containers, lag_window: timedelta) -> None:
        self._containers = containers
        self._lag = lag_window.total_seconds()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._unanswered = 0

    async def observe(self, machines: Sequence[Machine]) -> list[Observation]:
        """Observe each machine. Raises nothing: a request without an answer gives an Observation
        with a reason.

        A machine that is not found counts as lost only if a second read, after the lag window, and
        a complete listing of its app do not find it either.
        """
        first = await asyncio.gather(*map(self._observe, machines))
        missing = [each for each, seen in zip(machines, first, strict=True) if seen is None]
        found = [seen for seen in first if seen is not None]
        return [*found, *(await self._confirm(missing) if missing else ())]

    async def _observe(self, machine: Machine) -> Observation | None:
        """The provider's answer; None if it does not know the machine."""
        async with self._room:
            if self._unanswered >= MOST_UNANSWERED:
                return _skipped(machine, "the provider did not answer the requests before")
            try:
                seen = await self._get(machine)
            except ContainerAbsent:
                self._unanswered = 0
                return None
            except RoostError as error:
                self._unanswered += 1
                return _skipped(machine, error.message)
            self._unanswered = 0
            return _observation(machine, seen)

    async def _get(self, machine: Machine) -> Seen:
        for _ in range(TRIES - 1):
            try:
                return await self._containers.get(_address(machine), timeout=TIMEOUT)
            except ProviderRateLimited as error:
                await asyncio.sleep(error.retry_after)
        return await self._containers.get(_address(machine), timeout=TIMEOUT)

    async def _confirm(self, missing: Sequence[Machine]) -> list[Observation]:
        """Read the machines that were not found again; then list the apps of those that are still
        missing. The listing is not by labels, because a machine that is to be adopted has none.
        """
        await asyncio.sleep(self._lag)
        again = await asyncio.gather(*map(self._observe, missing))
        listings: dict[str, frozenset[str] | RoostError] = {}
        for app in {each.app for each, seen in zip(missing, again, strict=True) if seen is None}:
            listings[app] = await self._listed(app)
        return [
            _absent(machine, listings[machine.app]) if seen is None else seen
            for machine, seen in zip(missing, again, strict=True)
        ]

    async def _listed(self, app: str) -> frozenset[str] | RoostError:
        try:
            async with aclosing(self._containers.stream(app, timeout=TIMEOUT)) as parts:
                return frozenset(
                    [each.address.container_id async for part in parts for each in part]
                )
        except RoostError as error:
            return error


def _address(machine: Machine) -> Address:
    return Address(machine.app, machine.container_id)


def _observation(machine: Machine, seen: Seen) -> Observation:
    becomes = _BECOMES.get(seen.state)
    if becomes is None:
        return _skipped(
            machine, f"the machine is {seen.state}: import again when it is running or stopped"
        )
    return Observation(
        machine.place,
        becomes,
        seen.state,
        seen.address.app,
        seen.region,
        seen.cordoned,
        seen.last_start_time,
    )


def _absent(machine: Machine, listed: frozenset[str] | RoostError) -> Observation:
    if isinstance(listed, RoostError):
        return _skipped(machine, listed.message)
    if machine.container_id in listed:
        return _skipped(machine, "the provider lists the machine but does not find it by its id")
    return Observation(machine.place, "LOST", ContainerState.DESTROYED)


def _skipped(machine: Machine, why: str) -> Observation:
    return Observation(machine.place, reason="PROVIDER_UNCLEAR", detail=" ".join(why.split()))
