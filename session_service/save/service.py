"""CreateCheckpoint: saves the state of a session now; the session stays as it is."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service import errors
from session_service.checkpoints.vault import required_kind, usable
from session_service.dispatch.call import NO_SLOT, Driver
from session_service.dispatch.dispatcher import to_the_end
from session_service.dispatch.wait import POLL, Settle
from session_service.domain.checkpoint import Checkpoint, Kind, Reason
from session_service.domain.decision import Decision
from session_service.domain.states import State
from session_service.observe.probe import address
from session_service.sessions.lookup import require
from session_service.storage.checkpoint import reads
from session_service.storage.checkpoint import write as checkpoint_write
from session_service.storage.session.commit import Commit, Committed, Conflict, commit
from session_service.transition import changes as transition_changes
from session_service.transition.decision_record import refusal

if TYPE_CHECKING:
    from datetime import timedelta
    from uuid import UUID

    from session_service.checkpoints.vault import Vault
    from session_service.dispatch.wait import Observation, Waiter
    from session_service.domain.decision import Request
    from session_service.domain.session import Record
    from session_service.ports import Address
    from session_service.storage.checkpoint.write import NewCheckpoint
    from session_service.storage.database import Connection, Database
    from session_service.storage.notifications import Notices

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Save:
    """A requested checkpoint; `kind` None: the kind that the spec supports."""

    request: Request
    session_id: UUID
    kind: Kind | None
    label: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that is READY, and the decision of the call."""

    checkpoint: Checkpoint
    decision_id: UUID


class SaveService:
    """Saves checkpoints on demand."""

    def __init__(
        self,
        database: Database,
        vault: Vault,
        notices: Notices,
        waiter: Waiter,
        budget: timedelta,
    ) -> None:
        """`budget` is how long one checkpoint may take."""
        self._database = database
        self._vault = vault
        self._writers = writers = Writers(database, vault, notices, budget)
        self._driver = Driver(database, writers.commit, waiter, writers.recover)

    async def create(self, wanted: Save) -> Saved:
        """Save a session's state; the checkpoint is READY when this returns. The saving goes on if
        the caller is cancelled.
        """
        return await self._driver.run(SaveCall(self._database, self._vault, wanted))

    async def drain(self) -> None:
        """Cancel the saving in flight: its checkpoints become FAILED, its callers get an error."""
        await self._writers.drain()


class SaveCall:
    """One call: reads the session, and commits the row of a new checkpoint."""

    slot = NO_SLOT

    def __init__(self, database: Database, vault: Vault, wanted: Save) -> None:
        self.request = wanted.request
        self._database = database
        self._vault = vault
        self._wanted = wanted

    async def step(self, wait_result: Decision | Observation | None) -> Settle | Commit:
        """Read the session; then wait for a transition in flight, or commit."""
        wanted = self._wanted
        record = await require(self._database, self.request.tenant, wanted.session_id)
        session = record.session
        if session.transition is not None:
            return Settle(record)
        try:
            kind = required_kind(session, wanted.kind)
            where = _source(record, kind)
        except (errors.CheckpointUnsupported, errors.SessionStateConflict) as error:
            return Commit(decision=refusal(self.request, error, session_id=session.session_id))
        decision = Decision(
            uuids.uuid7(),
            self.request,
            "CHECKPOINT",
            f"{kind} state was asked to be saved",
            session_id=session.session_id,
        )
        new = self._vault.new(session, kind, Reason.REQUESTED, wanted.label, decision.decision_id)
        return Commit((Begun(new, record, where),), decision, new.checkpoint_id)

    async def answer(self, decision: Decision, record: Record | None, *, replayed: bool) -> Saved:
        """The checkpoint. Raises CheckpointMissing, -NotReady, -Corrupt."""
        found = await reads.of_decision(self._database, decision.decision_id)
        return Saved(usable(found), decision.decision_id)


@dataclass(frozen=True, slots=True)
class Begun:
    """A checkpoint's row to be inserted, with the session and address that its writer uses: the
    writer does not read them again.
    """

    new: NewCheckpoint
    record: Record
    where: Address

    async def apply(self, connection: Connection) -> Checkpoint | None:
        """Insert the row; None if the session has changed."""
        return await self.new.apply(connection)


class Writers:
    """Commits requested checkpoints, and writes them in tasks that outlive the calls.

    A checkpoint is not a transition of its session. It has its own lease, in its own row, which the
    vault renews while it writes. Therefore it does not pass through the dispatcher, which runs
    transitions.
    """

    def __init__(
        self, database: Database, vault: Vault, notices: Notices, budget: timedelta
    ) -> None:
        self._database = database
        self._vault = vault
        self._notices = notices
        self._budget = budget.total_seconds()
        self._committing: set[asyncio.Task[Committed | Conflict]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def commit(
        self, wanted: Commit
    ) -> tuple[Committed | Conflict, asyncio.Task[None] | None]:
        """Commit, and start to write: both or neither, also if the caller is cancelled.

        If another checkpoint of the session is being written, this waits until that one may have
        ended, and returns Conflict.WRITING. The caller then reads the session again.
        """
        (write,) = wanted.writes
        assert isinstance(write, Begun), "nothing else is committed here"
        tasks: list[asyncio.Task[None]] = []

        async def commit_and_begin() -> Committed | Conflict:
            done = await commit(self._database, wanted, "intent")
            if isinstance(done, Committed):
                tasks.append(self._begin(done, write))
            return done

        committing = asyncio.create_task(commit_and_begin())
        self._committing.add(committing)
        committing.add_done_callback(self._committing.discard)
        done = await to_the_end(committing)
        if done is Conflict.WRITING:
            await self._wait_for_other(write.record.session.session_id)
        return done, tasks[0] if tasks else None

    async def recover(self, decision: Decision) -> bool:
        """Mark the decision's checkpoint FAILED if its writer is gone.

        If the checkpoint is not being written any more and the decision is still unfinished, no
        writer will finish it. Then the decision is finished with an error, its request id is freed,
        and this returns False.
        """
        begun = await reads.of_decision(self._database, decision.decision_id)
        if begun is None or checkpoint_write.is_over(begun):
            gone = errors.ProviderUnavailable("the replica that was saving it is gone; try again")
            await checkpoint_write.answer(
                self._database, decision.decision_id, transition_changes.dump_error(gone), free=True
            )
            return False
        await checkpoint_write.fail_expired(self._database, begun.session_id)
        return True

    async def drain(self) -> None:
        """Cancel the writing in flight: its checkpoints become FAILED, its callers get an error."""
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)

    async def _wait_for_other(self, session_id: UUID) -> None:
        """Wait until the session's other checkpoint may have ended. If its owner is gone, mark it
        FAILED.
        """
        with self._notices.watch(session_id) as notice:
            if await checkpoint_write.fail_expired(self._database, session_id):
                # The retention pass deletes the bytes: the call neither waits for the bucket nor
                # fails with it.
                return
            try:
                async with asyncio.timeout(POLL):
                    await notice.wait()
            except TimeoutError:
                return

    def _begin(self, done: Committed, write: Begun) -> asyncio.Task[None]:
        begun = done.rows[write.new.checkpoint_id]
        assert isinstance(begun, Checkpoint), "the row of a checkpoint has the checkpoint's id"
        task = asyncio.create_task(self._save(begun, write), name="checkpoint")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _save(self, begun: Checkpoint, write: Begun) -> None:
        """Save, and finish the decision, also after an error. Raises nothing but CancelledError."""
        try:
            await self._vault.write(
                begun, write.where, write.record.session, timeout=self._budget, answers=True
            )
        except errors.RoostError as error:
            await self._refuse(begun, error)
        except asyncio.CancelledError:
            stopping = errors.ServiceStopping("this replica is shutting down; try again")
            await asyncio.shield(self._refuse(begun, stopping))
            raise
        except Exception:  # noqa: BLE001  # the waiting caller must get an error
            _log.exception(
                "a checkpoint failed by an internal error",
                extra={"action": "save", "checkpoint_id": str(begun.checkpoint_id)},
            )
            await self._refuse(
                begun, errors.ProviderUnavailable("an internal error ended this; try again")
            )

    async def _refuse(self, begun: Checkpoint, error: errors.RoostError) -> None:
        if begun.decision_id is None:
            return
        try:
            await checkpoint_write.answer(
                self._database,
                begun.decision_id,
                transition_changes.dump_error(error),
                free=isinstance(error, errors.Retryable),
            )
        except errors.StorageUnavailable:
            # A call that waits for the decision, or repeats the request, finds the checkpoint
            # FAILED, or its lease run out, and finishes the decision: see `recover`.
            return


def _source(record: Record, kind: Kind) -> Address:
    """The container to save. Raises SessionStateConflict if no container can be saved."""
    session, container = record.session, record.container
    states = (State.ACTIVE,) if kind is Kind.APPLICATION else (State.ACTIVE, State.PAUSED)
    if session.state not in states:
        raise errors.SessionStateConflict(
            f"the session is {session.state}; start it, so that its application can export its "
            "state"
        )
    here = container is not None and container.destroy_time is None and container.start_time
    if container is None or not here:
        raise errors.SessionStateConflict(
            "the session has no container now: its newest checkpoint has its state"
        )
    return address(container)
