"""GetCheckpoint, ListCheckpoints, PinCheckpoint and DeleteCheckpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain.checkpoint import CheckpointState
from session_service.domain.decision import Decision
from session_service.sessions.lookup import require
from session_service.storage.checkpoint import reads, removal
from session_service.storage.session import decisions
from session_service.transition.decision_record import earlier, raise_recorded, refusal

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.checkpoints.retention import Retention
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Request
    from session_service.domain.session import Key
    from session_service.storage.database import Database


class Keep:
    """Reads, pins, unpins and deletes checkpoints."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    async def get(self, tenant: str, checkpoint_id: UUID) -> Checkpoint:
        """The tenant's checkpoint. Raises CheckpointMissing."""
        found = await reads.get(self._database, tenant, checkpoint_id)
        if found is None:
            raise _missing()
        return found

    async def key_of(self, tenant: str, session_id: UUID) -> Key:
        """The session's key. Raises SessionNotFound."""
        return (await require(self._database, tenant, session_id)).session.key

    async def page(self, key: Key, below: int, size: int) -> list[Checkpoint]:
        """Up to `size` checkpoints of a key whose numbers are below `below`, newest first."""
        return await reads.page(self._database, key, below, size)

    async def pin(self, request: Request, checkpoint_id: UUID, *, pinned: bool) -> Checkpoint:
        """Pin or unpin the checkpoint. Raises CheckpointMissing."""
        if not await self._replayed(request):
            decision = _decision(request, "PINNED" if pinned else "UNPINNED", checkpoint_id)
            written = await reads.pin(self._database, checkpoint_id, decision, pinned=pinned)
            # If nothing was written, another call may have used the request id at the same time.
            if written is None and not await self._replayed(request):
                await self._refuse(request, _missing())
        return await self.get(request.tenant, checkpoint_id)

    async def delete(self, request: Request, checkpoint_id: UUID) -> None:
        """Delete it. A repeat of the call that deleted it succeeds.

        Raises CheckpointMissing, CheckpointPinned, CheckpointInUse, CheckpointNotReady.
        """
        if await self._replayed(request):
            return
        try:
            checkpoint = await self.get(request.tenant, checkpoint_id)
            decision = _decision(request, "DELETED", checkpoint_id)
            if await self._retention.delete(checkpoint, decision):
                return
            error = await self._deletion_error(request.tenant, checkpoint_id)
        except errors.CheckpointMissing as missing:
            # The same call may have deleted it at another replica.
            if await self._replayed(request):
                return
            error = missing
        await self._refuse(request, error)

    async def _deletion_error(self, tenant: str, checkpoint_id: UUID) -> errors.RoostError:
        """The reason why it was not deleted, as an error."""
        checkpoint = await self.get(tenant, checkpoint_id)
        if checkpoint.pinned:
            return errors.CheckpointPinned("the checkpoint is pinned; unpin it first")
        if checkpoint.state is CheckpointState.WRITING:
            return errors.CheckpointNotReady("the checkpoint is being written; try again later")
        if await removal.is_needed(self._database, checkpoint_id):
            return errors.CheckpointInUse(
                "a session needs this checkpoint: it is paused, or is being paused, with its state "
                "in this checkpoint, was forked from it and has no checkpoint of its own, or is "
                "being restored from it now; save that session's state, or end it"
            )
        return errors.ProviderUnavailable("the checkpoint changed meanwhile; try again")

    # --- request ids ---------------------------------------------------------------------------

    async def _replayed(self, request: Request) -> bool:
        """Whether an earlier call had this request id and succeeded. Raises RequestIdReused, and
        the recorded error if the earlier call was refused.
        """
        decision = await earlier(self._database, request)
        if decision is None:
            return False
        raise_recorded(decision)
        return True

    async def _refuse(self, request: Request, error: errors.RoostError) -> NoReturn:
        """Record the refusal, and raise it."""
        await decisions.append_once(self._database, refusal(request, error))
        raise error


def _missing() -> errors.CheckpointMissing:
    return errors.CheckpointMissing(
        "no such checkpoint, or it was deleted; ListCheckpoints shows the existing ones"
    )


def _decision(request: Request, rule: str, checkpoint_id: UUID) -> Decision:
    return Decision(uuids.uuid7(), request, rule, f"checkpoint {checkpoint_id}", finished=True)
