"""Orphans: destroys containers that no session has. All guards must agree.

An orphan is destroyed if it carries this installation's labels, is old enough, was an orphan in
several passes in a row, and is still one when it is judged again under its own machine lease. A
pass destroys a few at most, and none if there are suspiciously many. The guards are pure functions
in `domain.inventory`; docs/reconcile.md lists them, with what each guards against.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from session_service.domain import inventory
from session_service.domain.inventory import Caution, LabelVerdict, Listed
from session_service.domain.session import ContainerState
from session_service.errors import RoostError
from session_service.ports import Address, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage.session import inventory as session_inventory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime, timedelta

    from session_service.domain.inventory import Labelled
    from session_service.ports import Containers, Seen
    from session_service.reconcile.drift import Drift
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation

_log = logging.getLogger(__name__)

#: Timeout of one provider call, in s.
STEP_TIMEOUT = 10.0
#: Containers recorded as lost that one pass reads at most. The next pass reads others.
FOUND_LIMIT = 20
#: Orphans that one pass keeps in memory, counts and shows at most, unless the breaker is higher.
ORPHANS_SHOWN = 10_000
#: Orphans that are handled at once, before other tasks run.
AT_ONCE = 500
#: The provider destroys these, or has: they are not given back, and need no destroying.
GOING = frozenset({ContainerState.DESTROYING, ContainerState.DESTROYED})


COPY = "this database is a copy: the machines belong to the original"


@dataclass(frozen=True, slots=True)
class Orphan:
    """A container that no session has."""

    app: str
    container_id: str
    session_id: str
    """From its label. The session may no longer exist."""
    generation: str
    state: str
    create_time: datetime | None
    why: str
    """Why it is an orphan."""
    pass_count: int = 0
    """In how many passes in a row it was an orphan; 0 if it is not counted."""
    destroyed: bool = False
    spared_because: str = ""
    """Why it was not destroyed; empty if it was."""


@dataclass(slots=True)
class Strangers:
    """What a pass knows so far of the listed containers whose id is in no row.

    `OrphanRemoval.judge` adds to it, part by part of the listing.
    """

    orphans: list[tuple[Listed, str]] = field(default_factory=list)
    """The orphans of this installation, each with the reason; not more than a pass can act on."""
    more: int = 0
    """Orphans beyond these. There are so many then that none is destroyed."""
    lost: list[tuple[Listed, Labelled]] = field(default_factory=list)
    """Containers that were recorded as lost, each with its row; FOUND_LIMIT at most."""


@dataclass(slots=True)
class OrphanReport:
    """The orphans that a pass found, and what it did about them."""

    orphans: list[Orphan] = field(default_factory=list)
    """ORPHANS_SHOWN at most, or as many as the breaker allows if that is more."""
    more: int = 0
    """Orphans beyond these: they are not shown and not counted, and none is destroyed."""
    stopped_because: str = ""
    """Why no orphan at all is destroyed, if the reason concerns them all; else empty."""

    @property
    def destroyed(self) -> list[str]:
        """The container ids of the orphans that were destroyed."""
        return [orphan.container_id for orphan in self.orphans if orphan.destroyed]


class OrphanRemoval:
    """Judges listed containers whose id is in no row, and destroys orphans."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        drift: Drift,
        installation: Installation,
        caution: Caution,
        lag: timedelta,
        machine_lease: timedelta,
    ) -> None:
        """`lag` is how old the provider's answers may be. `machine_lease` is the duration of a
        lease at the provider, in whole seconds.
        """
        self._database = database
        self._containers = containers
        self._drift = drift
        self._installation = installation
        self._caution = caution
        self._lag = lag
        self._lease = machine_lease.total_seconds()
        self._most = max(ORPHANS_SHOWN, caution.breaker + 1)

    async def judge(self, strangers: Strangers, items: Iterable[Listed], began: datetime) -> None:
        """Judge listed containers whose id is in no row, and add to `strangers` the orphans of this
        installation, and its containers that were recorded as lost.

        Changes nothing else. Raises StorageUnavailable.
        """
        own = str(self._installation.installation_id)
        ours = [
            item
            for item in items
            if item.labels.get("roost_installation") == own and item.state not in GOING
        ]
        rows = await self._rows(ours)
        for item in ours:
            row = _row(rows, item)
            verdict, why = inventory.judge_labelled(item, row, began, self._lag)
            if verdict is LabelVerdict.ORPHAN:
                if len(strangers.orphans) < self._most:
                    strangers.orphans.append((item, why))
                else:
                    strangers.more += 1
            elif row is not None and verdict is LabelVerdict.FOUND:
                strangers.lost.append((item, row))
        del strangers.lost[FOUND_LIMIT:]

    def report(self, app: str, strangers: Strangers) -> OrphanReport:
        """The orphans. Changes nothing."""
        why = "" if self._installation.original else COPY
        orphans = [_orphan(app, *item, why or "it is only reported") for item in strangers.orphans]
        return OrphanReport(orphans, strangers.more, why)

    async def take_back(self, app: str, strangers: Strangers) -> None:
        """Give containers that were recorded as lost, and still exist, back to their sessions.

        Call it only after the whole listing. Raises StorageUnavailable.
        """
        for item, row in strangers.lost:
            seen = await self._read(Address(app, item.container_id))
            if seen is not None:
                await self._drift.take_back(row, seen)

    async def remove(
        self, app: str, number: int, strangers: Strangers, began: datetime
    ) -> OrphanReport:
        """Count the orphans of pass `number`, and destroy those that no guard spares.

        Call it only after the whole listing. Raises StorageUnavailable.
        """
        old = {
            item.container_id
            for item, _ in strangers.orphans
            if inventory.old_enough(item, began, self._caution)
        }
        counts = await session_inventory.count_orphans(self._database, app, number, sorted(old))
        spared = inventory.spared_because(counts, self._caution)
        report = OrphanReport(more=strangers.more)
        if len(counts) > self._caution.breaker:
            report.stopped_because = next(iter(spared.values()))
        for place, (item, why) in enumerate(strangers.orphans):
            if place % AT_ONCE == 0:
                await asyncio.sleep(0)
            name = item.container_id
            spared_because = spared.get(name, "") if name in old else self._too_young()
            if strangers.more and not spared_because:
                spared_because = f"there are {strangers.more} more orphans"
            count = counts.get(name, 0)
            if not spared_because:
                spared_because = await self._destroy(app, item, began)
            destroyed = not spared_because
            orphan = _orphan(app, item, why, spared_because, count, destroyed=destroyed)
            report.orphans.append(orphan)
        return report

    def _too_young(self) -> str:
        return f"younger than {self._caution.min_age.total_seconds():.0f} s, or of unknown age"

    # --- reading -------------------------------------------------------------------------------

    async def _rows(self, items: Iterable[Listed]) -> dict[tuple[UUID, int], Labelled]:
        ids = {name[0] for item in items if (name := _labelled_session(item)) is not None}
        return await session_inventory.labelled(self._database, ids) if ids else {}

    async def _read(self, where: Address) -> Seen | None:
        """The container as a read of it alone shows it; None if it is gone or going, or the read
        fails. The listing may be older than the loss.
        """
        try:
            seen = await self._containers.get(where, timeout=STEP_TIMEOUT)
        except (RoostError, ContainerAbsent):
            return None
        return None if seen.state in GOING else seen

    # --- destroying ----------------------------------------------------------------------------

    async def _destroy(self, app: str, item: Listed, began: datetime) -> str:
        """Destroy an orphan. Returns "", or the reason why it was not destroyed.

        The order matters: first the machine lease, then the rows once more, then the destruction.
        A start that adopts the container meanwhile either holds its machine lease, and this
        acquisition fails, or has written to the rows, and the second read shows that. If the rows
        were read before the lease, a start could adopt the container in between, and the container
        of a live session would be destroyed.
        """
        where = Address(app, item.container_id)
        try:
            nonce = await self._containers.acquire_lease(
                where, ttl=self._lease, wait=0.0, timeout=STEP_TIMEOUT
            )
            rows = await self._rows([item])
            verdict, why = inventory.judge_labelled(item, _row(rows, item), began, self._lag)
            if verdict is not LabelVerdict.ORPHAN:
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
                # Only this label: others may have the names of attributes of a log record.
                "session_id": item.labels.get("roost_session", ""),
            },
        )
        return ""


def _labelled_session(item: Listed) -> tuple[UUID, int] | None:
    """The session and generation that its labels name; None if they name none."""
    try:
        return UUID(item.labels["roost_session"]), int(item.labels["roost_generation"])
    except (KeyError, ValueError):
        return None


def _row(rows: Mapping[tuple[UUID, int], Labelled], item: Listed) -> Labelled | None:
    name = _labelled_session(item)
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
