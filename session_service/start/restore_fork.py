"""RestoreCheckpoint and ForkSession: both are starts whose wish names a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_service import errors
from session_service.checkpoints.vault import usable
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Reason, supports
from session_service.domain.session import Mode
from session_service.domain.wish import Wish
from session_service.sessions.lookup import require
from session_service.start.facts import Restore, Start
from session_service.storage.checkpoint import reads
from session_service.storage.session import reads as session_reads
from session_service.transition.decision_record import refusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from session_service.admission.limiter import Limiter
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Decision, Request
    from session_service.domain.session import Key, Record
    from session_service.start.service import StartService
    from session_service.storage.database import Database
    from session_service.transition.decision_record import Answer


#: The errors of a checkpoint that a start cannot use: they are recorded as refusals.
REFUSALS = (
    errors.CheckpointMissing,
    errors.CheckpointNotReady,
    errors.CheckpointCorrupt,
    errors.CheckpointUnsupported,
)


class RestoreForkService:
    """Restores sessions from checkpoints, and forks them."""

    def __init__(self, database: Database, starts: StartService, limiter: Limiter) -> None:
        self._database = database
        self._starts = starts
        self._limiter = limiter

    async def restore(self, wanted: Restore) -> tuple[Answer, Checkpoint | None]:
        """Restore a session; the answer, and the checkpoint that was saved before, if there is one.

        Raises CheckpointMissing, -NotReady, -Corrupt, -Unsupported, and as starts do.
        """
        request = wanted.request

        async def read() -> tuple[Start, Record] | Decision:
            record = await require(self._database, request.tenant, wanted.session_id)
            try:
                checkpoint = await self._of_key(record, wanted)
            except REFUSALS as error:
                return refusal(request, error, session_id=wanted.session_id)
            wish = Wish(Mode.CONTINUE, checkpoint_id=checkpoint.checkpoint_id)
            return Start(request, record.session.key, wish), record

        slot = await self._starts.slot(request.tenant, wanted.session_id)
        answer = await self._starts.run(request, read, slot)
        saved = await reads.of_decision(self._database, answer.decision.decision_id)
        return answer, saved if saved is not None and saved.reason is Reason.ROLLBACK else None

    async def _of_key(self, record: Record, wanted: Restore) -> Checkpoint:
        """The checkpoint, of the session's own key, and of a kind that its spec supports."""
        key = record.session.key
        if wanted.checkpoint_id is None:
            found = await reads.numbered(self._database, key, wanted.number)
        else:
            found = await reads.get(self._database, key.tenant, wanted.checkpoint_id)
        checkpoint = usable(found)
        if checkpoint.key != key:
            raise errors.CheckpointMissing(
                "the checkpoint is of another key; ForkSession begins a session there from it"
            )
        if not supports(specs.load(record.session.spec), checkpoint.kind):
            raise errors.CheckpointUnsupported(
                f"the session's spec does not support {checkpoint.kind} state; start FRESH with a "
                "spec that does"
            )
        return checkpoint

    async def fork(self, request: Request, key: Key, checkpoint_id: UUID) -> Answer:
        """Begin a session at another key with the state of a checkpoint.

        Raises CheckpointMissing, -NotReady, -Corrupt, -Unsupported, and as starts do.
        """

        async def read() -> tuple[Start, Record | None] | Decision:
            found = await reads.get(self._database, request.tenant, checkpoint_id)
            try:
                start = Start(request, key, *_forked(usable(found)))
            except REFUSALS as error:
                return refusal(request, error, project_id=key.project_id)
            return start, await session_reads.live_at(self._database, key)

        return await self._starts.run(request, read, self._limiter.database_slot(key))


def _forked(checkpoint: Checkpoint) -> tuple[Wish, Mapping[str, Any]]:
    """A fork's wish and spec: the checkpoint's state, in a container of its spec. Any: JSON.

    Raises CheckpointUnsupported.
    """
    spec = specs.load(checkpoint.spec)
    if checkpoint.kind is Kind.APPLICATION and spec.get("mounts"):
        raise errors.CheckpointUnsupported(
            "the container of the checkpoint mounts a volume, which only one session can have; "
            "fork a checkpoint of kind VOLUME, which gets a volume of its own"
        )
    return Wish(
        Mode.FAIL_IF_LIVE, specs.spec_hash(spec), checkpoint_id=checkpoint.checkpoint_id
    ), spec
