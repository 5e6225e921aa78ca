"""RestoreCheckpoint and ForkSession: both are starts that know which checkpoint they want."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain import spec as specs
from session_service.domain.checkpoint import Kind, Reason, supports
from session_service.domain.session import Mode
from session_service.domain.wish import Wish
from session_service.lifecycle.intents import Start
from session_service.lifecycle.reading import require
from session_service.storage import checkpoint_lists
from session_service.vault.vault import usable

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.decision import Request
    from session_service.domain.session import Key, Record
    from session_service.lifecycle.joining import Answer, Joining
    from session_service.lifecycle.starts import Starts
    from session_service.storage.database import Database


@dataclass(frozen=True, slots=True)
class Wanted:
    """A session to put back, and which of its key's checkpoints: by id, or else by number."""

    request: Request
    session_id: UUID
    checkpoint_id: UUID | None
    number: int


class GoingBack:
    """Puts sessions back, and forks them."""

    def __init__(self, database: Database, starts: Starts, joining: Joining) -> None:
        self._database = database
        self._starts = starts
        self._joining = joining

    async def restore(self, wanted: Wanted) -> tuple[Answer, Checkpoint | None]:
        """Put a session back; the answer, and what was saved first.

        Raises CheckpointMissing, -NotReady, -Corrupt, -Unsupported, and as starts do.
        """
        answer = await self._joining.replayed(wanted.request)
        if answer is None:
            record = await require(self._database, wanted.request.tenant, wanted.session_id)
            checkpoint = await self._of_key(record, wanted)
            answer = await self._starts.resume(
                wanted.session_id,
                wanted.request,
                Wish(Mode.CONTINUE, checkpoint_id=checkpoint.checkpoint_id),
                None,
            )
        saved = await checkpoint_lists.of_decision(self._database, answer.decision.decision_id)
        return answer, saved if saved is not None and saved.reason is Reason.ROLLBACK else None

    async def _of_key(self, record: Record, wanted: Wanted) -> Checkpoint:
        """The checkpoint, one of the session's own key, and of a kind that its spec can take."""
        key = record.session.key
        if wanted.checkpoint_id is None:
            found = await checkpoint_lists.numbered(self._database, key, wanted.number)
        else:
            found = await checkpoint_lists.get(self._database, key.tenant, wanted.checkpoint_id)
        checkpoint = usable(found)
        if checkpoint.key != key:
            raise errors.CheckpointMissing(
                "the checkpoint is of another key; ForkSession begins a session there from it"
            )
        if not supports(specs.load(record.session.spec), checkpoint.kind):
            raise errors.CheckpointUnsupported(
                f"the session's spec says no way for {checkpoint.kind} state; a FRESH start with "
                "another spec has one"
            )
        return checkpoint

    async def fork(self, request: Request, key: Key, checkpoint_id: UUID) -> Answer:
        """Begin a session at another key with the state of a checkpoint.

        Raises CheckpointMissing, -NotReady, -Corrupt, -Unsupported, and as starts do.
        """
        answer = await self._joining.replayed(request)
        if answer is not None:
            return answer
        found = await checkpoint_lists.get(self._database, request.tenant, checkpoint_id)
        checkpoint = usable(found)
        spec = specs.load(checkpoint.spec)
        if checkpoint.kind is Kind.APPLICATION and spec.get("mounts"):
            raise errors.CheckpointUnsupported(
                "the container that it was taken of mounts a volume, which only one session can "
                "have; fork a checkpoint of kind VOLUME, which brings a volume of its own"
            )
        wish = Wish(
            Mode.FAIL_IF_LIVE, specs.spec_hash(spec), checkpoint_id=checkpoint.checkpoint_id
        )
        return await self._starts.start(Start(request, key, wish, spec))
