"""The inventory pass: lists all containers of an app once, and compares them with the rows.

The listing comes in parts. Each part is compared with the rows of its containers, and only the ids
are kept: the memory of a pass hardly grows with the app. A row is missing, and an orphan counts,
only on the evidence of the whole listing.

The verdicts are pure functions of `domain.inventory`. `drift` writes what the provider did without
us into the sessions. `orphans` destroys this installation's containers that no session has.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, TypeAlias

from session_service.domain import inventory
from session_service.domain.inventory import Listed, Tracked, Verdict
from session_service.errors import RoostError, StorageUnavailable
from session_service.ports import ContainerAbsent
from session_service.reconcile.orphans import OrphanRemoval, OrphanReport, Strangers
from session_service.storage.session import inventory as session_inventory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.inventory import Caution
    from session_service.ports import Containers, Seen
    from session_service.reconcile.drift import Drift
    from session_service.reconcile.orphans import Orphan
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation

_log = logging.getLogger(__name__)

#: Timeout of the listing of an app, in s. 100,000 containers take about ten.
LIST_TIMEOUT = 120.0
#: Rows that are read and judged at once.
ROWS_AT_ONCE = 200
#: A running container is recorded as verified at most this often.
VERIFY_AFTER = timedelta(minutes=5)
#: Sessions that one pass changes at most: so many of those that are listed, and so many of those
#: that are missing. The next pass changes others.
DRIFT_LIMIT = 100
#: Sessions that are changed concurrently.
DRIFT_CONCURRENCY = 8
#: A listing that lacks more containers than this, and more than half of all, is not trusted.
MISSING_BREAKER = 5


@dataclass(slots=True)
class InventoryCounts:
    """What one pass over an app found and did."""

    app: str
    listed: int = 0
    """Containers in the listing."""
    tracked: int = 0
    """Rows of containers that are not recorded as destroyed."""
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    """How often each verdict was given on a row."""
    orphan_report: OrphanReport = field(default_factory=OrphanReport)

    @property
    def orphans(self) -> list[Orphan]:
        """Containers that no session has; `orphan_count` has their number."""
        return self.orphan_report.orphans

    @property
    def orphan_count(self) -> int:
        """How many containers no session has, with those that `orphans` does not show."""
        return len(self.orphan_report.orphans) + self.orphan_report.more

    @property
    def destroyed(self) -> list[str]:
        """The container ids of the orphans that were destroyed."""
        return self.orphan_report.destroyed

    @property
    def stopped_because(self) -> str:
        """Why no orphan at all is destroyed, if the reason concerns them all; else empty."""
        return self.orphan_report.stopped_because


_Drifted: TypeAlias = "tuple[Tracked, Listed | None, Verdict]"


@dataclass(slots=True)
class _Drifts:
    """The rows that a pass is to change, with what the listing shows of their containers.

    Two lists: in an incomplete listing, many missing rows must not use up the limit for those that
    are listed.
    """

    found: list[_Drifted] = field(default_factory=list)
    missing: list[_Drifted] = field(default_factory=list)

    def add(self, row: Tracked, listed: Listed | None, verdict: Verdict) -> None:
        """Add the row, unless there is nothing to change or DRIFT_LIMIT is reached."""
        if verdict is Verdict.NOTHING:
            return
        rows = self.missing if verdict is Verdict.MISSING else self.found
        if len(rows) < DRIFT_LIMIT:
            rows.append((row, listed, verdict))


class InventoryPass:
    """Compares apps with the rows: every app that is due, or one at once."""

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
        self._database = database
        self._containers = containers
        self._drift = drift
        self._original = installation.original
        self._orphans = OrphanRemoval(
            database, containers, drift, installation, caution, lag, machine_lease
        )
        self._lag = lag

    async def shot(
        self, default_app: str, every: timedelta, *, act: bool, report: bool = True
    ) -> list[InventoryCounts]:
        """One pass over each app that is due. All replicas together pass over an app once in
        `every`. `act`: destroy orphans. `report`: report orphans, if not `act`.

        Raises StorageUnavailable if the database fails before the pass over an app has begun. An
        app whose pass fails is logged and skipped.
        """
        results = []
        for app in await self.apps(default_app):
            turn = await session_inventory.claim_pass(self._database, app, every)
            if turn is None:
                continue
            try:
                results.append(await self.sweep(app, turn.number, turn.now, act=act, report=report))
            except (RoostError, ContainerAbsent) as error:
                _log.warning(
                    "the sweep of %s failed: %s", app or "the default app", error,
                    extra={"action": "sweep", "app": app},
                )  # fmt: skip
        return results

    async def apps(self, default_app: str) -> list[str]:
        """The apps to sweep: those with rows of containers, and `default_app`."""
        found = await session_inventory.apps(self._database)
        return sorted({*found, default_app}) if default_app or not found else sorted(found)

    async def report(self, app: str) -> InventoryCounts:
        """A pass that changes neither rows nor containers. Raises as `sweep` does."""
        return await self.sweep(app, None, await session_inventory.now(self._database), act=False)

    async def act(self, app: str) -> InventoryCounts:
        """A full pass now, whenever the next regular one is due. Raises as `sweep` does."""
        turn = await session_inventory.begin_pass_now(self._database, app)
        return await self.sweep(app, turn.number, turn.now, act=True)

    async def sweep(
        self, app: str, number: int | None, began: datetime, *, act: bool, report: bool = True
    ) -> InventoryCounts:
        """One pass over an app.

        `number` is the number of the pass; None: change neither rows nor containers. `began` is a
        time of the database from before the listing. `act`: count and destroy orphans. `report`:
        report orphans, if not `act`. On a copy of the installation's database a pass never changes
        sessions or containers.

        Raises StorageUnavailable, and the errors of `Containers.list`.
        """
        if not self._original:
            number = None
        counts, strangers = InventoryCounts(app), Strangers()
        drifts = _Drifts()
        present: set[str] = set()
        async with aclosing(self._containers.stream(app, timeout=LIST_TIMEOUT)) as parts:
            async for part in parts:
                listed = {
                    item.address.container_id: _listed(item)
                    for item in part
                    if item.address.container_id not in present
                }
                present.update(listed)
                known = await self._compare(counts, drifts, listed, began, act=number is not None)
                unknown = [item for name, item in listed.items() if name not in known]
                await self._orphans.judge(strangers, unknown, began)
        # The listing is complete. What it lacks, and what it has too much, counts only from here.
        counts.listed = len(present)
        await self._find_missing(counts, drifts, present, began)
        if number is not None:
            trusted = drifts.missing if self._trusts(counts) else []
            await self._apply([*drifts.found, *trusted])
            await self._orphans.take_back(app, strangers)
        if number is not None and act:
            counts.orphan_report = await self._orphans.remove(app, number, strangers, began)
        elif report:
            counts.orphan_report = self._orphans.report(app, strangers)
        self._log(counts)
        return counts

    # --- containers that have rows ---------------------------------------------------------------

    async def _compare(
        self,
        counts: InventoryCounts,
        drifts: _Drifts,
        listed: Mapping[str, Listed],
        began: datetime,
        *,
        act: bool,
    ) -> set[str]:
        """Judge the rows of a part of the listing, and with `act` note when each was last verified.
        Returns the ids that have rows.
        """
        rows = await session_inventory.tracked(self._database, counts.app, list(listed))
        verified: list[Tracked] = []
        restarted: list[Tracked] = []
        for row in rows:
            item = listed[row.container_id]
            verdict = inventory.judge(row, item, began, self._lag, VERIFY_AFTER)
            counts.verdicts[verdict] += 1
            if verdict is Verdict.VERIFIED:
                verified.append(row)
            elif verdict is Verdict.RESTARTED:
                restarted.append(row)
            else:
                drifts.add(row, item, verdict)
        if act:
            # Each is true by what the listing shows of this container, whatever else it lacks.
            await self._note(verified, began)
            await self._note(restarted, None)
        return {row.container_id for row in rows}

    async def _find_missing(
        self, counts: InventoryCounts, drifts: _Drifts, present: set[str], began: datetime
    ) -> None:
        """Judge the rows of containers that the whole listing lacks."""
        async for ids in session_inventory.tracked_ids(self._database, counts.app):
            counts.tracked += len(ids)
            gone = [name for name in ids if name not in present]
            for begin in range(0, len(gone), ROWS_AT_ONCE):
                some = gone[begin : begin + ROWS_AT_ONCE]
                for row in await session_inventory.tracked(self._database, counts.app, some):
                    verdict = inventory.judge(row, None, began, self._lag, VERIFY_AFTER)
                    counts.verdicts[verdict] += 1
                    drifts.add(row, None, verdict)

    async def _note(self, rows: list[Tracked], at: datetime | None) -> None:
        if rows:
            await session_inventory.verify(self._database, rows, at)

    def _trusts(self, counts: InventoryCounts) -> bool:
        """Whether the listing is complete enough to act on what it lacks."""
        missing = counts.verdicts[Verdict.MISSING]
        if missing <= MISSING_BREAKER or missing * 2 <= counts.tracked:
            return True
        _log.error(
            "the listing lacks %d of %d containers: it is taken for incomplete",
            missing,
            counts.tracked,
            extra={"action": "sweep", "app": counts.app},
        )
        return False

    async def _apply(self, found: list[_Drifted]) -> None:
        limit = asyncio.Semaphore(DRIFT_CONCURRENCY)

        async def apply(row: Tracked, listed: Listed | None, verdict: Verdict) -> None:
            async with limit:
                try:
                    await self._drift.apply(row, listed, verdict)
                except StorageUnavailable:
                    raise
                except Exception:  # noqa: BLE001  # a bug in one verdict must not stop the others
                    _log.exception(
                        "the verdict %s could not be applied because of a bug",
                        verdict,
                        extra={"action": "drift", "session_id": str(row.session_id)},
                    )

        await asyncio.gather(*(apply(*each) for each in found))

    def _log(self, counts: InventoryCounts) -> None:
        done = {str(v): n for v, n in counts.verdicts.items() if v is not Verdict.NOTHING}
        if not done and not counts.orphans:
            return
        _log.info(
            "compared %d listed containers with the rows",
            counts.listed,
            extra={
                "action": "sweep",
                "app": counts.app,
                "followed": done,
                "orphans": counts.orphan_count,
                "destroyed": counts.destroyed,
                "stopped_because": counts.stopped_because,
            },
        )


def _listed(seen: Seen) -> Listed:
    return Listed(
        seen.address.container_id,
        seen.state,
        seen.last_start_time,
        seen.create_time,
        seen.labels,
    )
