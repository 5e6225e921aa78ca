"""Forgets ended sessions whose rows were kept for long enough, in batches.

No user waits for it, and after a change of `ROOST_SESSION_RETENTION` a million sessions may be due
for it at once. So it works beside the due pass's slots, on batches and not on single sessions.
`domain.next_action` decides for each session, as everywhere.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING

from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.errors import RoostError
from session_service.storage.session import forgetting as rows

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from session_service.storage.database import Database
    from session_service.storage.session.forgetting import DueEnded

_log = logging.getLogger(__name__)
_KEYS = {"action": "reconcile", "step": Action.FORGET}

#: The delay until rows that could not be deleted are tried again.
FORGET_PAUSE = timedelta(days=1)
#: A pass ends after so many seconds, so that its counts are reported.
PASS_SECONDS = 10.0


class Forgetting:
    """Deletes or defers the ended sessions that are due, and knows those that are to be purged."""

    def __init__(self, database: Database, timings: Timings) -> None:
        self._database = database
        self._timings = timings
        self.to_purge: list[UUID] = []
        """Sessions that the last batch found due for a purge, which takes a slot each."""
        self.forgotten = 0
        """How many sessions were forgotten."""

    async def batch(self) -> bool:
        """Forget or defer a batch. Returns whether there may be more. Raises StorageUnavailable."""
        found = await rows.find(self._database)
        forget: list[DueEnded] = []
        later: list[tuple[DueEnded, datetime]] = []
        to_purge: list[UUID] = []
        for each in found:
            step = next_action.ended_step(each.facts, self._timings)
            if step.action is Action.FORGET and step.due(each.now):
                forget.append(each)
            elif step.action is Action.FORGET and step.time is not None:
                later.append((each, step.time))
            else:
                to_purge.append(each.session_id)
        self.to_purge = to_purge
        epochs = {each.session_id: each.epoch for each in forget}
        gone = await rows.forget(self._database, epochs) if forget else set()
        self.forgotten += len(gone)
        # Of the others a container may still exist, or another replica was first.
        left = [each for each in forget if each.session_id not in gone]
        kept = await rows.kept(self._database, left) if left else set()
        later += [(each, each.now + FORGET_PAUSE) for each in left if each.session_id in kept]
        deferred = 0
        if later:
            deferred = await rows.defer(
                self._database, [each for each, _ in later], [time for _, time in later]
            )
        # A batch of which little could be written is another replica's work too.
        return len(gone) + deferred >= rows.BATCH // 2

    async def go_on(self) -> None:
        """Batches until there are no more, or for PASS_SECONDS.

        An error is logged and ends it until the next pass: what only deletes rows must not hold up
        the actions that users wait for.
        """
        until = monotonic() + PASS_SECONDS
        try:
            while await self.batch():
                if monotonic() > until:
                    return
        except RoostError as error:
            _log.warning("ended sessions could not be forgotten: %s", error, extra=_KEYS)
        except Exception:  # noqa: BLE001  # a bug in this action must not end the pass over others
            _log.exception("ended sessions could not be forgotten because of a bug", extra=_KEYS)

    def take_count(self) -> int:
        """How many sessions were forgotten since the last call."""
        count, self.forgotten = self.forgotten, 0
        return count
