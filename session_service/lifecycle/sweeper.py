"""The sweeper: compares the provider's listing with the rows, and can do no harm.

What the provider did by itself is followed. A container that carries this installation's labels
and that no session has is destroyed, but only under every guard: the database is the installation's
own, the listing complete, the container old enough, an orphan in so many passes running, proved so
again under its own lease, few at a time, and none at all where they are too many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from session_service.domain import survey
from session_service.domain.survey import Caution, Listed, Standing, Tracked, Verdict
from session_service.errors import RoostError
from session_service.ports import Address, ContainerAbsent, LeaseHeld, LeaseLost
from session_service.storage import surveying

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from session_service.domain.survey import Labelled
    from session_service.lifecycle.following import Follower
    from session_service.ports import Containers
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation

_log = logging.getLogger(__name__)

#: A whole listing, in s.
LIST_TIMEOUT = 30.0
#: One step of a destruction, in s, and how long its machine lease lasts.
STEP_TIMEOUT = 10.0
LEASE_TTL = 30.0
#: A running container is noted as verified again once in so long.
VERIFY_AFTER = timedelta(minutes=5)
#: Followed at once, so that a pass is bounded: the rest comes with the next.
FOLLOW_LIMIT = 100
FOLLOW_AT_ONCE = 8
#: More missing ones than this, and more than half of all, are the listing's fault, not theirs.
MISSING_BREAKER = 5


@dataclass(frozen=True, slots=True)
class Orphan:
    """A container that no session has."""

    app: str
    container_id: str
    session_id: str
    generation: str
    state: str
    create_time: datetime | None
    pass_count: int
    """In how many passes running it was seen; 0 where passes are not counted."""


@dataclass(slots=True)
class Swept:
    """What one pass over an app saw and did."""

    app: str
    listed: int = 0
    tracked: int = 0
    followed: Counter[Verdict] = field(default_factory=Counter)
    orphans: list[Orphan] = field(default_factory=list)
    destroyed: list[str] = field(default_factory=list)
    stopped_because: str = ""
    """Why nothing was destroyed although there were orphans; empty where that was not so."""


class Sweeper:
    """One pass over an app, and one over all whose turn has come."""

    def __init__(
        self,
        database: Database,
        containers: Containers,
        follower: Follower,
        installation: Installation,
        caution: Caution,
        lag: timedelta,
    ) -> None:
        self._database = database
        self._containers = containers
        self._follower = follower
        self._installation = installation
        self._caution = caution
        self._lag = lag

    async def shot(self, default_app: str, every: timedelta, *, act: bool) -> list[Swept]:
        """Every app whose turn it is, once in `every` by all replicas together; `act` says whether
        orphans are destroyed.

        Raises StorageUnavailable; an app whose provider does not answer is passed over.
        """
        swept = []
        for app in await self.apps(default_app):
            turn = await surveying.take_turn(self._database, app, every)
            if turn is None:
                continue
            try:
                swept.append(await self.sweep(app, turn.number, turn.now, act=act))
            except (RoostError, ContainerAbsent) as error:
                _log.warning(
                    "%s was not swept: %s", app or "the default app", error,
                    extra={"action": "sweep", "app": app},
                )  # fmt: skip
        return swept

    async def apps(self, default_app: str) -> list[str]:
        """The apps to sweep: those that have containers, and the configured one."""
        found = await surveying.apps(self._database)
        return sorted({*found, default_app}) if default_app or not found else sorted(found)

    async def report(self, app: str) -> Swept:
        """One pass that changes nothing, neither rows nor containers."""
        return await self.sweep(app, None, await surveying.now(self._database), act=False)

    async def sweep(self, app: str, number: int | None, began: datetime, *, act: bool) -> Swept:
        """One pass. `number` is that of the pass, None to change nothing at all; `began` is the
        database's time from before it; `act` says whether orphans are counted and destroyed.
        """
        if not self._installation.original:
            number, act = None, False
        seen = await self._containers.list(app, {}, timeout=LIST_TIMEOUT)
        listed = {
            item.address.container_id: Listed(
                item.address.container_id, item.state, item.last_start_time, item.create_time,
                item.labels,
            )
            for item in seen
        }  # fmt: skip
        swept = Swept(app, listed=len(listed))
        unknown = await self._compare(swept, listed, began, act=number is not None)
        ours = self._ours(unknown)
        orphans = await self._orphans(ours, began, take_back=number is not None)
        counts: Mapping[str, int] = {}
        if act and number is not None:
            names = list(orphans)
            counts = await surveying.count_orphans(self._database, app, number, names)
        swept.orphans = [_orphan(app, item, counts) for item in orphans.values()]
        if act:
            await self._destroy_all(swept, counts, orphans)
        elif not self._installation.original and orphans:
            swept.stopped_because = "this database is a copy: the machines are another's"
        self._log(swept)
        return swept

    # --- containers that have rows ---------------------------------------------------------------

    async def _compare(
        self, swept: Swept, listed: Mapping[str, Listed], began: datetime, *, act: bool
    ) -> dict[str, Listed]:
        """Judge every row; what the rows do not know of is given back."""
        unknown = dict(listed)
        found: list[tuple[Tracked, Verdict]] = []
        async for page in surveying.tracked(self._database, swept.app):
            swept.tracked += len(page)
            verified: list[Tracked] = []
            restarted: list[Tracked] = []
            for row in page:
                unknown.pop(row.container_id, None)
                verdict = survey.judge(
                    row, listed.get(row.container_id), began, self._lag, VERIFY_AFTER
                )
                swept.followed[verdict] += 1
                if verdict is Verdict.VERIFIED:
                    verified.append(row)
                elif verdict is Verdict.RESTARTED:
                    restarted.append(row)
                elif verdict is not Verdict.NOTHING and len(found) < FOLLOW_LIMIT:
                    found.append((row, verdict))
            if act:
                await self._note(verified, began)
                await self._note(restarted, None)
        if act:
            await self._follow(swept, found, listed)
        return unknown

    async def _note(self, rows: list[Tracked], at: datetime | None) -> None:
        if rows:
            await surveying.verify(self._database, rows, at)

    async def _follow(
        self, swept: Swept, found: list[tuple[Tracked, Verdict]], listed: Mapping[str, Listed]
    ) -> None:
        missing = swept.followed[Verdict.MISSING]
        if missing > MISSING_BREAKER and missing * 2 > swept.tracked:
            _log.error(
                "%d of %d containers are in no listing: the listing is not believed",
                missing,
                swept.tracked,
                extra={"action": "sweep", "app": swept.app},
            )
            found = [(row, verdict) for row, verdict in found if verdict is not Verdict.MISSING]
        room = asyncio.Semaphore(FOLLOW_AT_ONCE)

        async def follow(row: Tracked, verdict: Verdict) -> None:
            async with room:
                await self._follower.follow(row, listed.get(row.container_id), verdict)

        await asyncio.gather(*(follow(row, verdict) for row, verdict in found))

    # --- containers that have none ---------------------------------------------------------------

    def _ours(self, unknown: Mapping[str, Listed]) -> dict[str, Listed]:
        own = str(self._installation.installation_id)
        return {
            name: item
            for name, item in unknown.items()
            if item.labels.get("roost_installation") == own
        }

    async def _orphans(
        self, ours: Mapping[str, Listed], now: datetime, *, take_back: bool
    ) -> dict[str, Listed]:
        """Those that no session has. What was taken for lost and is there is given back to its."""
        rows = await self._rows(ours.values())
        orphans: dict[str, Listed] = {}
        for name, item in ours.items():
            row = _row(rows, item)
            stands = survey.standing(item, row)
            if stands is Standing.FOUND and row is not None and take_back:
                await self._follower.found(row, item)
            elif stands is Standing.ORPHAN and survey.old_enough(item, now, self._caution):
                orphans[name] = item
        return orphans

    async def _rows(self, items: Iterable[Listed]) -> dict[tuple[UUID, int], Labelled]:
        ids = {name[0] for item in items if (name := _named(item)) is not None}
        return await surveying.labelled(self._database, ids) if ids else {}

    async def _destroy_all(
        self, swept: Swept, counts: Mapping[str, int], orphans: Mapping[str, Listed]
    ) -> None:
        if len(counts) > self._caution.breaker:
            swept.stopped_because = f"{len(counts)} orphans at once are too many to be true"
            return
        for name in survey.doomed(counts, self._caution):
            if await self._destroy(swept.app, orphans[name]):
                swept.destroyed.append(name)

    async def _destroy(self, app: str, item: Listed) -> bool:
        """Under its own lease, and after a last look at the rows: a start that adopts it meanwhile
        has it leased, or written down.
        """
        where = Address(app, item.container_id)
        try:
            nonce = await self._containers.acquire_lease(
                where, ttl=LEASE_TTL, wait=0.0, timeout=STEP_TIMEOUT
            )
            rows = await self._rows([item])
            if survey.standing(item, _row(rows, item)) is not Standing.ORPHAN:
                await self._containers.release_lease(where, nonce, timeout=STEP_TIMEOUT)
                return False
            await self._containers.destroy(where, nonce, timeout=STEP_TIMEOUT)
        except (RoostError, LeaseHeld, LeaseLost, ContainerAbsent) as error:
            _log.warning(
                "an orphan was not destroyed yet: %s",
                error,
                extra={"action": "sweep", "container_id": item.container_id},
            )
            return False
        _log.warning(
            "destroyed a container that no session has",
            extra={"action": "sweep", "container_id": item.container_id, **dict(item.labels)},
        )
        return True

    def _log(self, swept: Swept) -> None:
        done = {str(v): n for v, n in swept.followed.items() if v is not Verdict.NOTHING}
        if not done and not swept.orphans:
            return
        _log.info(
            "swept %d containers",
            swept.listed,
            extra={
                "action": "sweep",
                "app": swept.app,
                "followed": done,
                "orphans": len(swept.orphans),
                "destroyed": swept.destroyed,
                "stopped_because": swept.stopped_because,
            },
        )


def _named(item: Listed) -> tuple[UUID, int] | None:
    """The session and generation that its labels name; None where they name none."""
    try:
        return UUID(item.labels["roost_session"]), int(item.labels["roost_generation"])
    except (KeyError, ValueError):
        return None


def _row(rows: Mapping[tuple[UUID, int], Labelled], item: Listed) -> Labelled | None:
    name = _named(item)
    return None if name is None else rows.get(name)


def _orphan(app: str, item: Listed, counts: Mapping[str, int]) -> Orphan:
    return Orphan(
        app,
        item.container_id,
        item.labels.get("roost_session", ""),
        item.labels.get("roost_generation", ""),
        item.state,
        item.create_time,
        counts.get(item.container_id, 0),
    )
