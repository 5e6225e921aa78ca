"""GetCheckpoint, ListCheckpoints, PinCheckpoint and DeleteCheckpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uuid_utils.compat as uuids

from session_service import errors
from session_service.domain.checkpoint import CheckpointState
from session_service.lifecycle import outcomes
from session_service.lifecycle.joining import raise_recorded
from session_service.lifecycle.reading import require
from session_service.storage import checkpoint_ends, checkpoint_lists, decisions
from session_service.storage.decisions import NewDecision

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Request
    from session_service.domain.session import Key
    from session_service.storage.database import Database
    from session_service.vault.retention import Retention


class Keeping:
    """Reads checkpoints, pins them and lets them go."""

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    async def get(self, tenant: str, checkpoint_id: UUID) -> Checkpoint:
        """The tenant's checkpoint. Raises CheckpointMissing."""
        found = await checkpoint_lists.get(self._database, tenant, checkpoint_id)
        if found is None:
            raise errors.CheckpointMissing(
                "no such checkpoint, or it was deleted; ListCheckpoints shows those that are there"
            )
        return found

    async def key_of(self, tenant: str, session_id: UUID) -> Key:
        """The session's key. Raises SessionNotFound."""
        return (await require(self._database, tenant, session_id)).session.key

    async def page(self, key: Key, below: int, size: int) -> list[Checkpoint]:
        """Up to `size` of a key's checkpoints, newest first, with numbers below this."""
        return await checkpoint_lists.page(self._database, key, below, size)

    async def pin(self, request: Request, checkpoint_id: UUID, *, pinned: bool) -> Checkpoint:
        """Pin it, or let it go again. Raises CheckpointMissing."""
        if not await self._replayed(request):
            await self.get(request.tenant, checkpoint_id)
            await checkpoint_lists.pin(self._database, request.tenant, checkpoint_id, pinned=pinned)
            rule = "PINNED" if pinned else "UNPINNED"
            await self._record(request, rule, f"checkpoint {checkpoint_id}")
        return await self.get(request.tenant, checkpoint_id)

    async def delete(self, request: Request, checkpoint_id: UUID) -> None:
        """Delete it; one that was deleted is a success where the same call is repeated.

        Raises CheckpointMissing, CheckpointPinned, CheckpointInUse, CheckpointNotReady.
        """
        if await self._replayed(request):
            return
        try:
            checkpoint = await self.get(request.tenant, checkpoint_id)
            decision = self._decision(request, "DELETED", f"checkpoint {checkpoint_id}")
            if await self._retention.delete(checkpoint, decision):
                return
            error = await self._why(request.tenant, checkpoint_id)
        except errors.CheckpointMissing:
            # By the same call, meanwhile?
            if await self._replayed(request):
                return
            raise
        await self._record(request, error.reason, error.message, error)
        raise error

    async def _why(self, tenant: str, checkpoint_id: UUID) -> errors.RoostError:
        """Why it was not deleted."""
        checkpoint = await self.get(tenant, checkpoint_id)
        if checkpoint.pinned:
            return errors.CheckpointPinned("the checkpoint is pinned; unpin it first")
        if checkpoint.state is CheckpointState.WRITING:
            return errors.CheckpointNotReady("the checkpoint is being written; try again later")
        if await checkpoint_ends.is_needed(self._database, checkpoint_id):
            return errors.CheckpointInUse(
                "a session could not come back without this checkpoint: it rests on it, was forked "
                "from it and has none of its own, or is just being put back to it; save that "
                "session's state, or end it"
            )
        return errors.ProviderUnavailable("the checkpoint changed meanwhile; try again")

    # --- request ids ---------------------------------------------------------------------------

    async def _replayed(self, request: Request) -> bool:
        """Whether this request id was answered before. Raises RequestIdReused, and the refusal that
        was recorded.
        """
        decision = await decisions.of_request(self._database, request)
        if decision is None:
            return False
        if decision.request_hash != request.request_hash:
            raise errors.RequestIdReused(
                "this request_id came before with another body; use a new one for a new request"
            )
        raise_recorded(decision)
        return True

    async def _record(
        self, request: Request, rule: str, because: str, error: errors.RoostError | None = None
    ) -> None:
        """Write down what was done or refused: what it did is done by target state, so that a crash
        before this does no harm.
        """
        if not isinstance(error, errors.Retryable):
            decision = self._decision(request, rule, because, error)
            await decisions.append_once(self._database, decision)

    def _decision(
        self, request: Request, rule: str, because: str, error: errors.RoostError | None = None
    ) -> NewDecision:
        told = None if error is None else outcomes.dump(error)
        return NewDecision(uuids.uuid7(), request, rule, because, error=told, finished=True)
