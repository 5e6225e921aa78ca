"""Asking the provider about machines that are to be adopted: seen, lost, or nothing to go by."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from session_service.domain.session import ContainerState
from session_service.errors import ProviderRateLimited, RoostError
from session_service.ports import Address, ContainerAbsent
from session_service.storage.adoption import Sight

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from session_service.ports import Containers, Seen
    from session_service.storage.adoption import Machine

#: Machines that are asked about at once; container_service keeps to the provider's rate.
AT_ONCE = 8
#: One question, in s.
TIMEOUT = 5.0
#: How often a question is put again when the provider's rate limit is used up.
TRIES = 5
#: After so many in a row without an answer nobody is asked any more.
SILENCE = 24

#: What a machine in this state is adopted as. Of one in any other nothing is assumed.
_STANDS = {
    ContainerState.STARTED: "ACTIVE",
    ContainerState.SUSPENDED: "SUSPENDED",
    ContainerState.STOPPED: "STOPPED",
    ContainerState.FAILED: "STOPPED",
    ContainerState.CREATED: "STOPPED",
    ContainerState.DESTROYED: "LOST",
}


class Sighting:
    """Looks at machines, some at a time."""

    def __init__(self, containers: Containers, lag_window: timedelta) -> None:
        self._containers = containers
        self._lag = lag_window.total_seconds()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._unanswered = 0

    async def look(self, machines: Sequence[Machine]) -> list[Sight]:
        """What the provider says of each. Raises nothing: no answer is a Sight with a reason.

        One that is not found is lost only if it is missing again when the lag window has passed,
        and from a complete listing of its app.
        """
        first = await asyncio.gather(*map(self._look, machines))
        missing = [each for each, sight in zip(machines, first, strict=True) if sight is None]
        found = [sight for sight in first if sight is not None]
        return [*found, *(await self._confirm(missing) if missing else ())]

    async def _look(self, machine: Machine) -> Sight | None:
        """What the provider says; None where it does not know the machine."""
        async with self._room:
            if self._unanswered >= SILENCE:
                return _unclear(machine, "the provider did not answer for the ones before")
            try:
                seen = await self._get(machine)
            except ContainerAbsent:
                self._unanswered = 0
                return None
            except RoostError as error:
                self._unanswered += 1
                return _unclear(machine, error.message)
            self._unanswered = 0
            return _sight(machine, seen)

    async def _get(self, machine: Machine) -> Seen:
        for _ in range(TRIES - 1):
            try:
                return await self._containers.get(_address(machine), timeout=TIMEOUT)
            except ProviderRateLimited as error:
                await asyncio.sleep(error.retry_after)
        return await self._containers.get(_address(machine), timeout=TIMEOUT)

    async def _confirm(self, missing: Sequence[Machine]) -> list[Sight]:
        """The second look at those that were not found; what is still missing is looked up in its
        app's listing, which is not by labels: a machine that is to be adopted has none.
        """
        await asyncio.sleep(self._lag)
        again = await asyncio.gather(*map(self._look, missing))
        listings: dict[str, frozenset[str] | RoostError] = {}
        for app in {each.app for each, sight in zip(missing, again, strict=True) if sight is None}:
            listings[app] = await self._listed(app)
        return [
            _absent(machine, listings[machine.app]) if sight is None else sight
            for machine, sight in zip(missing, again, strict=True)
        ]

    async def _listed(self, app: str) -> frozenset[str] | RoostError:
        try:
            listed = await self._containers.list(app, {}, timeout=TIMEOUT)
        except RoostError as error:
            return error
        return frozenset(each.address.container_id for each in listed)


def _address(machine: Machine) -> Address:
    return Address(machine.app, machine.container_id)


def _sight(machine: Machine, seen: Seen) -> Sight:
    stand = _STANDS.get(seen.state)
    if stand is None:
        return _unclear(machine, f"the machine is {seen.state}: import again when it has settled")
    return Sight(
        machine.place,
        stand,
        seen.state,
        seen.address.app,
        seen.region,
        seen.cordoned,
        seen.last_start_time,
    )


def _absent(machine: Machine, listed: frozenset[str] | RoostError) -> Sight:
    if isinstance(listed, RoostError):
        return _unclear(machine, listed.message)
    if machine.container_id in listed:
        return _unclear(machine, "the provider contradicts itself")
    return Sight(machine.place, "LOST", ContainerState.DESTROYED)


def _unclear(machine: Machine, why: str) -> Sight:
    return Sight(machine.place, reason="PROVIDER_UNCLEAR", detail=" ".join(why.split()))
