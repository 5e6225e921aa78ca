"""Making a container anew of another spec: the old one is destroyed first, its volume stays.

A volume is mounted by one container at a time, so that the new one cannot stand before the old one
is gone. What is committed of it is told by the session's row: the new spec is in it from the moment
that the old container is known to be destroyed, and not before.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_service.domain import effective
from session_service.domain import spec as specs
from session_service.domain.effective import Source
from session_service.domain.fingerprint import fingerprint
from session_service.domain.session import Continuity, Outcome
from session_service.errors import ProviderUnavailable
from session_service.lifecycle import outcomes
from session_service.lifecycle.evidence import address
from session_service.ports import ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from session_service.domain.wish import Recreate
    from session_service.lifecycle.climb import Climb, Landing
    from session_service.lifecycle.evidence import Looker
    from session_service.ports import Address, Containers

#: How long a lease at the provider lasts, in s, and beyond another's how long to wait for it.
LEASE = 15.0
LEASE_PATIENCE = 5.0


class Recreator:
    """Takes containers away that are to be made anew."""

    def __init__(self, containers: Containers, looker: Looker) -> None:
        self._containers = containers
        self._looker = looker

    async def take_away(
        self, climb: Climb, wanted: Recreate, write: Callable[[Climb, Change], Awaitable[None]]
    ) -> None:
        """Destroy the container that is to go, and `write` that it is gone and what comes in its
        place. Does nothing where that was done before. Raises ProviderUnavailable.
        """
        # What is asked of survival was held against the volume's files when it was decided.
        climb.least = None
        if climb.container.generation != wanted.generation:
            return
        if climb.container.destroy_time is None:
            try:
                await self._destroy(climb)
            except (LeaseHeld, LeaseLost) as error:
                raise ProviderUnavailable(f"{error}; try again") from error
        await write(climb, _gone(climb, wanted))
        climb.lost.add(wanted.generation)

    async def _destroy(self, climb: Climb) -> None:
        where = await self._where(climb)
        if where is None:
            return
        left = climb.held.left
        try:
            nonce = await self._containers.acquire_lease(
                where, ttl=LEASE, wait=min(LEASE + LEASE_PATIENCE, left), timeout=left
            )
            await self._containers.destroy(where, nonce, timeout=climb.held.left)
        except ContainerAbsent:
            if not await self._looker.confirm_absent(climb.container):
                raise ProviderUnavailable("the provider contradicts itself; try again") from None

    async def _where(self, climb: Climb) -> Address | None:
        """Where it is; None where the provider certainly has none."""
        if climb.container.container_id is not None:
            return address(climb.container)
        seen = await self._looker.find(climb.container)
        return None if seen is None else seen.address


def _gone(climb: Climb, wanted: Recreate) -> Change:
    session = climb.session
    row = effective.load(session.policy)
    policy = replace(row, sources={**row.sources, "spec": Source(wanted.source)})
    return Change(
        session.session_id,
        session.epoch,
        session={
            "spec": wanted.spec,
            "fingerprint": fingerprint(specs.load(wanted.spec)),
            "policy": effective.dump(policy),
        },
        container=outcomes.GONE,
        advance=False,
    )


def kept(landing: Landing, wanted: Recreate) -> Landing:
    """What a container that was made anew brought back: the files on the volume that it mounts,
    which the provider would not have created it without.
    """
    mounts = specs.load(wanted.spec).get("mounts")
    if landing.outcome is not Outcome.CREATED or not mounts:
        return landing
    return replace(landing, continuity=Continuity.FILESYSTEM)
