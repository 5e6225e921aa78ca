"""Letting checkpoints go: beyond a key's newest few, deleted, or never come to be."""

from __future__ import annotations

import logging
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from session_service.domain.checkpoint import CheckpointState, Place, beyond
from session_service.errors import StorageUnavailable
from session_service.storage import checkpoint_ends, checkpoint_lists, checkpoint_outcomes, chunks

if TYPE_CHECKING:
    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Key
    from session_service.ports import Bucket
    from session_service.storage.database import Database
    from session_service.storage.decisions import NewDecision

_log = logging.getLogger(__name__)

#: Looked at in one pass of the janitor.
PASS_LIMIT = 200
#: How long the row of one that FAILED is shown.
FAILURES_KEPT = timedelta(days=7)


class Retention:
    """Deletes rows and bytes, in an order that a crash between two steps does no harm to."""

    def __init__(self, database: Database, bucket: Bucket | None) -> None:
        self._database = database
        self._bucket = bucket

    async def prune(self, key: Key, keep: int) -> None:
        """Let go of a key's oldest beyond `keep`; what cannot be done now, a later one does."""
        with suppress(StorageUnavailable):
            kept = await checkpoint_lists.kept(self._database, key)
            # Which are needed, the statement that withdraws each decides.
            for checkpoint in beyond(kept, keep, frozenset()):
                await self.delete(checkpoint)

    async def delete(self, checkpoint: Checkpoint, decision: NewDecision | None = None) -> bool:
        """Delete a checkpoint, with the decision of the call that asks for it; False where it is
        pinned or needed, or the decision's request id is taken.
        """
        withdrawn = await checkpoint_ends.withdraw(
            self._database, checkpoint.checkpoint_id, decision
        )
        if withdrawn is None:
            return False
        with suppress(StorageUnavailable):
            await self.clean(withdrawn)
        return True

    async def clean(self, checkpoint: Checkpoint) -> None:
        """Take away the bytes of one that was withdrawn or FAILED. Raises StorageUnavailable.

        A snapshot at the provider goes when the provider's own time for it is over.
        """
        await chunks.delete(self._database, checkpoint.checkpoint_id)
        if checkpoint.place is Place.BUCKET and checkpoint.object is not None:
            await self._clean_bucket(checkpoint.object, checkpoint.upload)
        if checkpoint.state is CheckpointState.DELETING:
            await checkpoint_ends.remove(self._database, checkpoint.checkpoint_id)
        else:
            await checkpoint_ends.cleaned(self._database, checkpoint.checkpoint_id)

    async def _clean_bucket(self, name: str, upload: str | None) -> None:
        if self._bucket is None:
            raise StorageUnavailable("no bucket is configured here to delete an object from")
        if upload is not None:
            await self._bucket.abort(name, upload)
        await self._bucket.delete(name)

    async def shot(self) -> int:
        """One pass over what owners who are gone left, and over what is old; how many went.

        Raises StorageUnavailable.
        """
        await checkpoint_outcomes.lapse(self._database)
        for checkpoint_id in await checkpoint_ends.old_failures(
            self._database, FAILURES_KEPT, PASS_LIMIT
        ):
            await checkpoint_ends.withdraw(self._database, checkpoint_id)
        gone = 0
        for checkpoint in await checkpoint_ends.untidy(self._database, PASS_LIMIT):
            try:
                await self.clean(checkpoint)
                gone += 1
            except StorageUnavailable as error:
                _log.warning(
                    "the bytes of a checkpoint could not be deleted yet: %s",
                    error,
                    extra={"action": "tidy", "checkpoint_id": str(checkpoint.checkpoint_id)},
                )
        return gone
