"""Reading a checkpoint back: proved before it is relied on, wherever its bytes are."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.checkpoint import Place
from session_service.ports import ObjectMissing, Whole
from session_service.storage import checkpoint_ends, chunks
from session_service.vault.packing import Damaged, Unpacker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from session_service.domain.checkpoint import Checkpoint
    from session_service.ports import Bucket
    from session_service.storage.database import Database

_log = logging.getLogger(__name__)


class Reader:
    """Reads what was stored."""

    def __init__(self, database: Database, bucket: Bucket | None) -> None:
        self._database = database
        self._bucket = bucket

    async def state(self, checkpoint: Checkpoint, whole: Whole) -> AsyncGenerator[bytes]:
        """The state in pieces, the last only once all are proved to be `whole`.

        Raises Damaged, StorageUnavailable.
        """
        async with (
            aclosing(self._stored(checkpoint)) as stored,
            aclosing(Unpacker(whole).states(stored)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def prove(self, checkpoint: Checkpoint, whole: Whole) -> None:
        """Read it all. Raises as `state` does."""
        async with aclosing(self.state(checkpoint, whole)) as pieces:
            async for _ in pieces:
                pass

    async def check(self, checkpoint: Checkpoint) -> None:
        """Make sure that a READY checkpoint is what was saved; one that is not is FAILED from now
        on. Raises CheckpointCorrupt, StorageUnavailable.

        Read twice before it is given up: what was wrong once may have been the reading.
        """
        if checkpoint.place is Place.PROVIDER:
            return
        whole = whole_of(checkpoint)
        try:
            await self.prove(checkpoint, whole)
        except Damaged:
            try:
                await self.prove(checkpoint, whole)
            except Damaged as error:
                raise await self.condemned(checkpoint, error) from error

    async def condemned(self, checkpoint: Checkpoint, error: Damaged) -> errors.CheckpointCorrupt:
        """Say FAILED of a checkpoint that was found damaged; the error to raise."""
        _log.error(
            "checkpoint %d is damaged: %s",
            checkpoint.number,
            error,
            extra={"action": "condemn", "checkpoint_id": str(checkpoint.checkpoint_id)},
        )
        await checkpoint_ends.condemn(self._database, checkpoint.checkpoint_id)
        return corrupt(checkpoint)

    async def _stored(self, checkpoint: Checkpoint) -> AsyncGenerator[bytes]:
        if checkpoint.place is Place.BUCKET:
            async with aclosing(self._in_bucket(checkpoint)) as parts:
                async for part in parts:
                    yield part
            return
        number = 0
        # The end is where no piece follows; whether it was the end, the hash tells.
        while piece := await chunks.get(self._database, checkpoint.checkpoint_id, number):
            yield piece
            number += 1

    async def _in_bucket(self, checkpoint: Checkpoint) -> AsyncGenerator[bytes]:
        if self._bucket is None:
            raise errors.StorageUnavailable(
                "the checkpoint is in a bucket, and none is configured here; "
                "set ROOST_CHECKPOINT_BUCKET_URL"
            )
        try:
            async with aclosing(self._bucket.read(checkpoint.object or "")) as parts:
                async for part in parts:
                    yield part
        except ObjectMissing as error:
            raise Damaged("its object is not in the bucket") from error


def whole_of(checkpoint: Checkpoint) -> Whole:
    """What a READY checkpoint says that its state is."""
    return Whole(checkpoint.size_bytes or 0, checkpoint.sha256 or b"")


def corrupt(checkpoint: Checkpoint) -> errors.CheckpointCorrupt:
    """The refusal of a checkpoint that is damaged."""
    return errors.CheckpointCorrupt(
        f"what is stored of checkpoint {checkpoint.number} is not what was saved; "
        "restore another one (ListCheckpoints)",
        {"number": str(checkpoint.number), "checkpoint_id": str(checkpoint.checkpoint_id)},
    )
