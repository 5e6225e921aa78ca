"""The sweeper: compares the provider's listing with the rows, and can do no harm.

What the provider did by itself is followed (`following`); a container that carries this
installation's labels and that no session has is destroyed, under every guard (`reaping`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain import survey
from session_service.domain.survey import Listed, Tracked, Verdict
from session_service.errors import RoostError, StorageUnavailable
from session_service.lifecycle.reaping import Reaped, Reaper
from session_service.ports import ContainerAbsent
from session_service.storage import surveying

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from session_service.domain.survey import Caution
    from session_service.lifecycle.following import Follower
    from session_service.lifecycle.reaping import Orphan
    from session_service.ports import Containers, Seen
    from session_service.storage.database import Database
    from session_service.storage.installation import Installation

_log = logging.getLogger(__name__)

#: A whole listing, in s.
LIST_TIMEOUT = 30.0
#: A running container is noted as verified again once in so long.
VERIFY_AFTER = timedelta(minutes=5)
#: Followed at once, so that a pass is bounded: the rest comes with the next.
FOLLOW_LIMIT = 100
FOLLOW_AT_ONCE = 8
#: More missing ones than this, and more than half of all, are the listing's fault, not theirs.
MISSING_BREAKER = 5


@dataclass(slots=True)
class Swept:
    """What one pass over an app saw and did."""

    app: str
    listed: int = 0
    tracked: int = 0
    followed: Counter[Verdict] = field(default_factory=Counter)
    """What the listing said of the rows, how often each."""
    reaped: Reaped = field(default_factory=Reaped)

    @property
    def orphans(self) -> list[Orphan]:
        """Containers that no session has."""
        return self.reaped.orphans

    @property
    def destroyed(self) -> list[str]:
        """The ids of those that were destroyed."""
        return self.reaped.destroyed

    @property
    def stopped_because(self) -> str:
        """Why nothing was destroyed although there were orphans; empty where that was not so."""
        return self.reaped.stopped_because


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
        self._original = installation.original
        self._reaper = Reaper(database, containers, follower, installation, caution, lag)
        self._lag = lag

    async def shot(
        self, default_app: str, every: timedelta, *, act: bool, look: bool = True
    ) -> list[Swept]:
        """Every app whose turn it is, once in `every` by all replicas together; `act` says whether
        orphans are destroyed, `look` whether they are looked for at all.

        Raises StorageUnavailable; an app whose provider does not answer is passed over.
        """
        swept = []
        for app in await self.apps(default_app):
            turn = await surveying.take_turn(self._database, app, every)
            if turn is None:
                continue
            try:
                swept.append(await self.sweep(app, turn.number, turn.now, act=act, look=look))
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

    async def act(self, app: str) -> Swept:
        """One pass that does all that a pass does, at once, whoever's turn it is."""
        turn = await surveying.take_turn_now(self._database, app)
        return await self.sweep(app, turn.number, turn.now, act=True)

    async def sweep(
        self, app: str, number: int | None, began: datetime, *, act: bool, look: bool = True
    ) -> Swept:
        """One pass. `number` is that of the pass, None to change nothing at all; `began` is the
        database's time from before it; `act` says whether orphans are counted and destroyed, `look`
        whether they are looked for at all.

        A copy of the installation's database changes nothing, whatever is asked.
        """
        if not self._original:
            number = None
        seen = await self._containers.list(app, {}, timeout=LIST_TIMEOUT)
        listed = {item.address.container_id: _listed(item) for item in seen}
        swept = Swept(app, listed=len(listed))
        unknown = await self._compare(swept, listed, began, act=number is not None)
        if number is not None:
            await self._reaper.take_back(app, unknown, began)
        if number is not None and act:
            swept.reaped = await self._reaper.reap(app, number, unknown, began)
        elif look:
            swept.reaped = await self._reaper.report(app, unknown, began)
        self._log(swept)
        return swept

    # --- containers that have rows ---------------------------------------------------------------

    async def _compare(
        self, swept: Swept, listed: Mapping[str, Listed], began: datetime, *, act: bool
    ) -> dict[str, Listed]:
        """Judge every row; what the rows do not know of is given back."""
        unknown = dict(listed)
        found: list[tuple[Tracked, Verdict]] = []
        missing: list[tuple[Tracked, Verdict]] = []
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
                elif verdict is not Verdict.NOTHING:
                    # Apart: a listing that has too little must not crowd out what it has.
                    rows = missing if verdict is Verdict.MISSING else found
                    if len(rows) < FOLLOW_LIMIT:
                        rows.append((row, verdict))
            if act:
                await self._note(verified, began)
                await self._note(restarted, None)
        if act:
            believed = missing if self._believed(swept) else []
            await self._follow([*found, *believed], listed)
        return unknown

    async def _note(self, rows: list[Tracked], at: datetime | None) -> None:
        if rows:
            await surveying.verify(self._database, rows, at)

    def _believed(self, swept: Swept) -> bool:
        """Whether the listing may be right about what it does not have."""
        missing = swept.followed[Verdict.MISSING]
        if missing <= MISSING_BREAKER or missing * 2 <= swept.tracked:
            return True
        _log.error(
            "%d of %d containers are in no listing: the listing is not believed",
            missing,
            swept.tracked,
            extra={"action": "sweep", "app": swept.app},
        )
        return False

    async def _follow(
        self, found: list[tuple[Tracked, Verdict]], listed: Mapping[str, Listed]
    ) -> None:
        room = asyncio.Semaphore(FOLLOW_AT_ONCE)

        async def follow(row: Tracked, verdict: Verdict) -> None:
            async with room:
                try:
                    await self._follower.follow(row, listed.get(row.container_id), verdict)
                except StorageUnavailable:
                    raise
                except Exception:  # noqa: BLE001  # one fault must not end all others' following
                    _log.exception(
                        "%s was not followed, by a fault",
                        verdict,
                        extra={"action": "follow", "session_id": str(row.session_id)},
                    )

        await asyncio.gather(*(follow(row, verdict) for row, verdict in found))

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


def _listed(seen: Seen) -> Listed:
    return Listed(
        seen.address.container_id,
        seen.state,
        seen.last_start_time,
        seen.create_time,
        seen.labels,
    )
