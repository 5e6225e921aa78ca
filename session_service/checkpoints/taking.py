"""CreateCheckpoint: the state of a session is saved now, while it goes on."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain.checkpoint import Kind, Reason
from session_service.domain.states import State
from session_service.lifecycle import outcomes
from session_service.lifecycle.evidence import address
from session_service.lifecycle.joining import POLL, raise_recorded
from session_service.lifecycle.reading import require
from session_service.storage import checkpoint_lists, checkpoint_outcomes, decisions, sessions
from session_service.storage.checkpoints import AlreadyWriting
from session_service.storage.decisions import NewDecision
from session_service.vault.vault import required_kind, usable

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Decision, Request
    from session_service.domain.session import Record
    from session_service.lifecycle.joining import Joining
    from session_service.lifecycle.takeover import Work
    from session_service.ports import Address
    from session_service.storage.database import Database
    from session_service.storage.notifications import Notices
    from session_service.vault.vault import Vault

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint that is asked for; `kind` None: whatever the spec allows."""

    request: Request
    session_id: UUID
    kind: Kind | None
    label: str


@dataclass(frozen=True, slots=True)
class Taken:
    """A checkpoint that is READY, and the decision of the call."""

    checkpoint: Checkpoint
    decision_id: UUID


class Taking:
    """Takes checkpoints on demand."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        notices: Notices,
        joining: Joining,
        work: Work,
        budget: timedelta,
    ) -> None:
        """`budget` is how long one may take."""
        self._database = database
        self._vault = vault
        self._notices = notices
        self._joining = joining
        self._work = work
        self._budget = budget.total_seconds()
        self._tasks: set[asyncio.Task[None]] = set()

    async def create(self, wanted: Wanted) -> Taken:
        """Save a session's state; READY when this returns, also where its caller went away."""
        while True:
            taken = await self._replayed(wanted.request)
            if taken is not None:
                return taken
            record = await require(self._database, wanted.request.tenant, wanted.session_id)
            if record.session.transition is not None:
                await self._turn(record)
                continue
            kind = required_kind(record.session, wanted.kind)
            where = _source(record, kind)
            decision = _decision(wanted, kind)
            try:
                begun = await self._vault.begin(
                    record.session, kind, Reason.REQUESTED, wanted.label, decision
                )
            except AlreadyWriting:
                await self._another(record)
                continue
            if begun is not None:
                await self._see_through(begun, where, record)
                return await self._answer(decision.decision_id)

    async def drain(self) -> None:
        """Break off what is being saved here; it is FAILED, and its callers are told."""
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)

    # --- one's turn ----------------------------------------------------------------------------

    async def _turn(self, record: Record) -> None:
        """Until the transition in flight has settled; that of an owner who is gone is taken over.

        Raises ProviderUnavailable where it could not be finished.
        """
        task = await self._work.take_over(record)
        if task is None:
            await self._joining.settled(record.session.session_id, record.session.epoch)
            return
        await asyncio.wait({task})
        again = await sessions.find(self._database, record.session.session_id)
        if again is not None and again.lapsed:
            raise errors.ProviderUnavailable(
                "an earlier transition of this session could not be finished yet; try again"
            )

    async def _another(self, record: Record) -> None:
        """Until another checkpoint of the session may be over; one whose owner is gone is."""
        session_id = record.session.session_id
        with self._notices.watch(session_id) as notice:
            for left in await checkpoint_outcomes.lapse(self._database, session_id):
                await self._vault.retention.clean(left)
                return
            try:
                async with asyncio.timeout(POLL):
                    await notice.wait()
            except TimeoutError:
                return

    # --- work ----------------------------------------------------------------------------------

    async def _see_through(self, begun: Checkpoint, where: Address, record: Record) -> None:
        """Save in a task that outlives the call, and wait for it."""
        task = asyncio.create_task(self._save(begun, where, record), name="checkpoint")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task})

    async def _save(self, begun: Checkpoint, where: Address, record: Record) -> None:
        """Save, and finish the decision whichever way it ends. Raises nothing but cancellation."""
        try:
            await self._vault.write(
                begun, where, record.session, timeout=self._budget, answers=True
            )
        except errors.RoostError as error:
            await self._refuse(begun, error)
        except asyncio.CancelledError:
            stopping = errors.ServiceStopping("this replica goes away; try again")
            await asyncio.shield(self._refuse(begun, stopping))
            raise
        except Exception:  # noqa: BLE001  # whoever waits must hear of it
            _log.exception(
                "a checkpoint broke off by a fault",
                extra={"action": "save", "checkpoint_id": str(begun.checkpoint_id)},
            )
            await self._refuse(
                begun, errors.ProviderUnavailable("an internal fault broke this off; try again")
            )

    async def _refuse(self, begun: Checkpoint, error: errors.RoostError) -> None:
        if begun.decision_id is None:
            return
        try:
            await checkpoint_outcomes.answer(
                self._database,
                begun.decision_id,
                outcomes.dump(error),
                free=isinstance(error, errors.Retryable),
            )
        except errors.StorageUnavailable:
            # Whoever repeats the call finds the checkpoint FAILED, or its lease run out.
            return

    # --- answers -------------------------------------------------------------------------------

    async def _answer(self, decision_id: UUID) -> Taken:
        decision = await decisions.get(self._database, decision_id)
        if decision is None or decision.finish_time is None:
            raise errors.StorageUnavailable("it is not known yet what came of it; try again")
        return await self._told(decision)

    async def _told(self, decision: Decision) -> Taken:
        raise_recorded(decision)
        found = await checkpoint_lists.of_decision(self._database, decision.decision_id)
        return Taken(usable(found), decision.decision_id)

    async def _replayed(self, request: Request) -> Taken | None:
        """The answer of an earlier call with this request id; waits for one that is at work."""
        while True:
            decision = await decisions.of_request(self._database, request)
            if decision is None:
                return None
            if decision.request_hash != request.request_hash:
                raise errors.RequestIdReused(
                    "this request_id came before with another body; use a new one for a new request"
                )
            if decision.finish_time is not None:
                return await self._told(decision)
            await self._unfinished(decision)

    async def _unfinished(self, decision: Decision) -> None:
        """Wait for whoever is at work; where that one is gone its request id is free again."""
        begun = await checkpoint_lists.of_decision(self._database, decision.decision_id)
        if begun is None or checkpoint_outcomes.is_over(begun):
            gone = errors.ProviderUnavailable("whoever was saving it is gone; try again")
            await checkpoint_outcomes.answer(
                self._database, decision.decision_id, outcomes.dump(gone), free=True
            )
            return
        with self._notices.watch(begun.session_id) as notice:
            await checkpoint_outcomes.lapse(self._database, begun.session_id)
            try:
                async with asyncio.timeout(POLL):
                    await notice.wait()
            except TimeoutError:
                return


def _source(record: Record, kind: Kind) -> Address:
    """The container to save. Raises SessionStateConflict where there is none that can be."""
    session, container = record.session, record.container
    states = (State.ACTIVE,) if kind is Kind.APPLICATION else (State.ACTIVE, State.PAUSED)
    if session.state not in states:
        raise errors.SessionStateConflict(
            f"the session is {session.state}; start it, so that its application can hand its state "
            "out"
        )
    here = container is not None and container.destroy_time is None and container.start_time
    if container is None or not here:
        raise errors.SessionStateConflict(
            "the session has no container now: its newest checkpoint is what it is"
        )
    return address(container)


def _decision(wanted: Wanted, kind: Kind) -> NewDecision:
    return NewDecision(
        uuids.uuid7(),
        wanted.request,
        "CHECKPOINT",
        f"{kind} state was asked to be saved",
        session_id=wanted.session_id,
    )
