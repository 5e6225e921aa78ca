"""Where a checkpoint's bytes go: the database, and a bucket once they are too many."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.checkpoint import Place
from session_service.storage import checkpoints, chunks

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.ports import Bucket
    from session_service.storage.database import Database

#: Pieces in each of an object's parts but the last: as little as S3 takes, 5 MiB.
PART_PIECES = 5 * 1024 * 1024 // chunks.PIECE


class Superseded(Exception):
    """Somebody said FAILED of the checkpoint while it was being written."""


class Writer:
    """Stores what it is given, in order. Holds a part of it at most, however much there is."""

    def __init__(
        self, database: Database, bucket: Bucket | None, checkpoint_id: UUID, name: str, limit: int
    ) -> None:
        """`name` is the object's in the bucket; `limit` the most bytes that go to the database."""
        self._database = database
        self._bucket = bucket
        self._checkpoint_id = checkpoint_id
        self._name = name
        self._limit = limit
        self._waiting = bytearray()
        self._pieces = 0
        self._upload: _Upload | None = None
        self.stored = 0

    async def write(self, data: bytes) -> None:
        """Store these bytes. Raises Superseded, CheckpointTooLarge, StorageUnavailable."""
        self._waiting += data
        while len(self._waiting) >= chunks.PIECE:
            await self._put(bytes(self._waiting[: chunks.PIECE]))
            del self._waiting[: chunks.PIECE]

    async def end(self) -> None:
        """Store the last of them, so that all are durable. Raises as `write` does."""
        if self._waiting:
            await self._put(bytes(self._waiting))
            self._waiting.clear()
        if self._upload is not None:
            await self._upload.complete()

    def written(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as its bytes are to be read back."""
        place = Place.DATABASE if self._upload is None else Place.BUCKET
        return replace(checkpoint, place=place, object=self._name)

    async def _put(self, piece: bytes) -> None:
        self.stored += len(piece)
        if self._upload is None and self.stored > self._limit:
            self._upload = await self._turn_to_bucket()
        if self._upload is not None:
            await self._upload.write(piece)
            return
        if not await chunks.put(self._database, self._checkpoint_id, self._pieces, piece):
            raise Superseded
        self._pieces += 1

    async def _turn_to_bucket(self) -> _Upload:
        """Too much for the database: what is there already goes to the bucket first."""
        if self._bucket is None:
            raise errors.CheckpointTooLarge(
                f"the state has more than {self._limit} bytes, compressed, and no bucket is "
                "configured to keep it; set ROOST_CHECKPOINT_BUCKET_URL",
                {"limit": str(self._limit)},
            )
        upload = _Upload(self._bucket, self._name, await self._bucket.begin(self._name))
        # Before the first byte: whoever tidies up after us must know what to abort.
        noted = await checkpoints.move(
            self._database, self._checkpoint_id, Place.BUCKET, self._name, upload.upload
        )
        if not noted:
            await self._bucket.abort(self._name, upload.upload)
            raise Superseded
        for number in range(self._pieces):
            piece = await chunks.get(self._database, self._checkpoint_id, number)
            if piece is None:
                raise Superseded
            await upload.write(piece)
        await chunks.delete(self._database, self._checkpoint_id)
        return upload


class _Upload:
    """An object on its way into the bucket."""

    def __init__(self, bucket: Bucket, name: str, upload: str) -> None:
        self._bucket = bucket
        self._name = name
        self.upload = upload
        self._waiting: list[bytes] = []
        self._tags: list[str] = []

    async def write(self, piece: bytes) -> None:
        """Take a piece; all but the last are of the same size."""
        self._waiting.append(piece)
        if len(self._waiting) == PART_PIECES:
            await self._put()

    async def complete(self) -> None:
        """Make the object."""
        if self._waiting or not self._tags:
            await self._put()
        await self._bucket.complete(self._name, self.upload, self._tags)

    async def _put(self) -> None:
        pieces, self._waiting = self._waiting, []
        number = len(self._tags) + 1
        self._tags.append(await self._bucket.put_part(self._name, self.upload, number, pieces))
