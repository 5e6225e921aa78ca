"""Destroying containers that no session has, under every guard that there is.

Only those that carry this installation's labels, that are old enough, that were orphans in so many
passes running, proved so again under their own lease, few at a time, and none where they are too
many. The guards themselves are pure: `domain.survey`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from session_service.domain import survey
from session_service.domain.session import ContainerState
from session_service.domain.survey import Caution, Listed, Standing
from session_service.errors import RoostError
from session_service.ports import Address, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import surveying

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from session_service.domain.survey import Labelled
    from session_service.lifecycle.following import Follower
    from session_service.ports import Containers, Seen
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation

_log = logging.getLogger(__name__)

#: One step of a destruction, in s, and how long its machine lease lasts.
STEP_TIMEOUT = 10.0
LEASE_TTL = 30.0
#: So many that were taken for lost are looked at in a pass; the rest come with the next.
FOUND_LIMIT = 20
#: On their way out: neither found again, nor an orphan that there is anything to do about.
GOING = frozenset({ContainerState.DESTROYING, ContainerState.DESTROYED})


@dataclass(frozen=True, slots=True)
class Orphan:
    """A container that no session has."""

    app: str
    container_id: str
    session_id: str
    """As its label says; such a session need not exist any more."""
    generation: str
    state: str
    create_time: datetime | None
    why: str
    """Why it is an orphan."""
    pass_count: int = 0
    """In how many passes running it was seen; 0 where it is not counted."""
    destroyed: bool = False
    spared_because: str = ""
    """Why it was not destroyed; empty where it was."""


@dataclass(slots=True)
class Reaped:
    """What a pass saw of orphans, and did about them."""

    orphans: list[Orphan] = field(default_factory=list)
    stopped_because: str = ""
    """Why none is destroyed, for a reason that is not of one orphan; empty where there is none."""

    @property
    def destroyed(self) -> list[str]:
        """The ids of those that were destroyed."""
        return [orphan.container_id for orphan in self.orphans if orphan.destroyed]


class Reaper:
    """Judges containers that no row knows, and destroys orphans."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        follower: Follower,
        installation: Installation,
        caution: Caution,
        lag: timedelta,
    ) -> None:
        """`lag` is how far the provider's reads may be behind."""
        self._database = database
        self._containers = containers
        self._follower = follower
        self._installation = installation
        self._caution = caution
        self._lag = lag

    async def report(self, app: str, unknown: Mapping[str, Listed], began: datetime) -> Reaped:
        """What there is, with nothing changed."""
        found, _ = await self._judge(unknown, began)
        if self._installation.original:
            return Reaped([_orphan(app, *item, "it is only reported") for item in found])
        why = "this database is a copy: the machines are another's"
        orphans = [_orphan(app, *item, why) for item in found]
        return Reaped(orphans, why)

    async def take_back(self, app: str, unknown: Mapping[str, Listed], began: datetime) -> None:
        """Give what was taken for lost, and is there after all, back to its session."""
        _, found = await self._judge(unknown, began)
        for item, row in found[:FOUND_LIMIT]:
            seen = await self._there(Address(app, item.container_id))
            if seen is not None:
                await self._follower.found(row, seen)

    async def reap(
        self, app: str, number: int, unknown: Mapping[str, Listed], began: datetime
    ) -> Reaped:
        """Count the orphans of this pass, and destroy those that are sure."""
        found, _ = await self._judge(unknown, began)
        old = {
            item.container_id: (item, why)
            for item, why in found
            if survey.old_enough(item, began, self._caution)
        }
        counts = await surveying.count_orphans(self._database, app, number, list(old))
        spared = survey.spared_because(counts, self._caution)
        reaped = Reaped()
        if len(counts) > self._caution.breaker:
            reaped.stopped_because = next(iter(spared.values()))
        for item, why in found:
            name = item.container_id
            told = spared.get(name, "") if name in old else self._too_young()
            count = counts.get(name, 0)
            if not told:
                told = await self._destroy(app, item, began)
            reaped.orphans.append(_orphan(app, item, why, told, count, destroyed=not told))
        return reaped

    def _too_young(self) -> str:
        return f"younger than {self._caution.min_age.total_seconds():.0f} s, or of unknown age"

    # --- judging -------------------------------------------------------------------------------

    async def _judge(
        self, unknown: Mapping[str, Listed], began: datetime
    ) -> tuple[list[tuple[Listed, str]], list[tuple[Listed, Labelled]]]:
        """Those of ours that no session has, and why; and those that were taken for lost."""
        own = str(self._installation.installation_id)
        ours = [
            item
            for item in unknown.values()
            if item.labels.get("roost_installation") == own and item.state not in GOING
        ]
        rows = await self._rows(ours)
        orphans: list[tuple[Listed, str]] = []
        found: list[tuple[Listed, Labelled]] = []
        for item in ours:
            row = _row(rows, item)
            stands, why = survey.standing(item, row, began, self._lag)
            if stands is Standing.ORPHAN:
                orphans.append((item, why))
            elif stands is Standing.FOUND and row is not None:
                found.append((item, row))
        return orphans, found

    async def _rows(self, items: Iterable[Listed]) -> dict[tuple[UUID, int], Labelled]:
        ids = {name[0] for item in items if (name := _named(item)) is not None}
        return await surveying.labelled(self._database, ids) if ids else {}

    async def _there(self, where: Address) -> Seen | None:
        """The container as a read of its own shows it: a listing may be of before it was lost."""
        try:
            seen = await self._containers.get(where, timeout=STEP_TIMEOUT)
        except (RoostError, ContainerAbsent):
            return None
        return None if seen.state in GOING else seen

    # --- destroying ----------------------------------------------------------------------------

    async def _destroy(self, app: str, item: Listed, began: datetime) -> str:
        """Destroy it under its own lease, after a last look at the rows: a start that adopts it
        meanwhile has it leased, or written down. What was in the way is said, "" where nothing was.
        """
        where = Address(app, item.container_id)
        try:
            nonce = await self._containers.acquire_lease(
                where, ttl=LEASE_TTL, wait=0.0, timeout=STEP_TIMEOUT
            )
            rows = await self._rows([item])
            stands, why = survey.standing(item, _row(rows, item), began, self._lag)
            if stands is not Standing.ORPHAN:
                await self._containers.release_lease(where, nonce, timeout=STEP_TIMEOUT)
                return why
            await self._containers.destroy(where, nonce, timeout=STEP_TIMEOUT)
        except (RoostError, LeaseHeld, LeaseLost, ContainerAbsent) as error:
            _log.warning(
                "an orphan was not destroyed yet: %s",
                error,
                extra={"action": "sweep", "app": app, "container_id": item.container_id},
            )
            return f"not destroyed yet: {error}"
        _log.warning(
            "destroyed a container that no session has: %s",
            why,
            extra={
                "action": "sweep",
                "app": app,
                "container_id": item.container_id,
                # Not the labels whole: they may hold any key, also one that a log record has.
                "session_id": item.labels.get("roost_session", ""),
            },
        )
        return ""


def _named(item: Listed) -> tuple[UUID, int] | None:
    """The session and generation that its labels name; None where they name none."""
    try:
        return UUID(item.labels["roost_session"]), int(item.labels["roost_generation"])
    except (KeyError, ValueError):
        return None


def _row(rows: Mapping[tuple[UUID, int], Labelled], item: Listed) -> Labelled | None:
    name = _named(item)
    return None if name is None else rows.get(name)


def _orphan(
    app: str, item: Listed, why: str, spared: str, count: int = 0, *, destroyed: bool = False
) -> Orphan:
    return Orphan(
        app,
        item.container_id,
        item.labels.get("roost_session", ""),
        item.labels.get("roost_generation", ""),
        item.state,
        item.create_time,
        why,
        count,
        destroyed,
        spared,
    )
