"""The bytes of a checkpoint: compressed and hashed as they are written, verified as they are read.

A state is written and read in pieces. Neither the writer nor the reader holds more than one part of
an object in memory.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import zlib
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

from session_service import errors
from session_service.domain.checkpoint import Place, in_order
from session_service.ports import ObjectMissing, Whole
from session_service.storage.checkpoint import reads, removal, write

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from uuid import UUID

    from session_service.domain.checkpoint import Checkpoint
    from session_service.domain.session import Session
    from session_service.ports import Bucket
    from session_service.storage.database import Database


#: zlib's fastest level: saves are more frequent than restores, and speed counts more than size.
LEVEL = 1
#: A state is compressed only if its first FIRST bytes shrink below the share WORTH of their size.
#: Images and archives do not.
FIRST = 16 * 1024
WORTH = 0.95
#: The most bytes of state in a piece that is read back.
PIECE = 256 * 1024


class Damaged(Exception):
    """The stored bytes are not those of the state that was saved."""


class Packer:
    """Compresses and hashes a state, piece by piece."""

    def __init__(self) -> None:
        self._deflate: zlib._Compress | None = None
        self._first = b""
        self._hash = hashlib.sha256()
        self._size = 0

    async def add(self, piece: bytes) -> bytes:
        """The bytes to store after this piece; often none yet."""
        return await asyncio.to_thread(self._add, piece)

    def _add(self, piece: bytes) -> bytes:
        self._size += len(piece)
        self._hash.update(piece)
        if self._deflate is not None:
            return self._deflate.compress(piece)
        self._first += piece
        return self._chosen().compress(self._first) if len(self._first) >= FIRST else b""

    def _chosen(self) -> zlib._Compress:
        """The compressor. It stores the bytes as they are if the first ones hardly shrink."""
        worth = len(zlib.compress(self._first, LEVEL)) < WORTH * len(self._first)
        self._deflate = zlib.compressobj(LEVEL if worth else 0)
        return self._deflate

    async def end(self) -> bytes:
        """The last bytes to store."""
        return await asyncio.to_thread(self._end)

    def _end(self) -> bytes:
        if self._deflate is not None:
            return self._deflate.flush()
        deflate = self._chosen()
        return deflate.compress(self._first) + deflate.flush()

    @property
    def whole(self) -> Whole:
        """The size and SHA-256 of the state that was added so far."""
        return Whole(self._size, self._hash.digest())


class Unpacker:
    """Decompresses stored bytes, and verifies that they are the state that was saved."""

    def __init__(self, expected: Whole) -> None:
        self._inflate = zlib.decompressobj()
        self._hash = hashlib.sha256()
        self._size = 0
        self._expected = expected

    async def states(self, stored: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The state in pieces. Raises Damaged.

        The last piece is held back until size and hash of the whole are verified. So a reader that
        got every piece without an error has the state that was saved, and one that got damaged
        bytes never gets to the end.
        """
        held = b""
        async for part in stored:
            left = part
            while True:
                piece, left = await asyncio.to_thread(self._take, left)
                if piece:
                    if held:
                        yield held
                    held = piece
                if not left and len(piece) < PIECE:
                    break
        self._prove()
        if held:
            yield held

    def _take(self, stored: bytes) -> tuple[bytes, bytes]:
        """The next piece of state, and the stored bytes that are not consumed yet."""
        try:
            piece = self._inflate.decompress(stored, PIECE)
        except zlib.error as error:
            raise Damaged(str(error)) from error
        self._size += len(piece)
        if self._size > self._expected.size_bytes:
            raise Damaged("it is longer than the saved state")
        self._hash.update(piece)
        return piece, self._inflate.unconsumed_tail

    def _prove(self) -> None:
        if not self._inflate.eof or self._inflate.unused_data:
            raise Damaged("it does not end where it should")
        if Whole(self._size, self._hash.digest()) != self._expected:
            raise Damaged("its size or SHA-256 differs")


#: Pieces in each part but the last: 3 MiB. A larger part takes more memory, a smaller one more
#: requests. Readers do not depend on it.
PART_PIECES = 3 * 1024 * 1024 // write.PIECE


class Superseded(Exception):
    """The checkpoint was marked FAILED while it was being written."""


class Writer:
    """Stores bytes in order: in the database up to a limit, and in the bucket beyond it."""

    def __init__(
        self, database: Database, bucket: Bucket | None, checkpoint_id: UUID, name: str, limit: int
    ) -> None:
        """`name` is the folder of the parts in the bucket. `limit` is the most bytes that are
        stored in the database.
        """
        self._database = database
        self._bucket = bucket
        self._checkpoint_id = checkpoint_id
        self._name = name
        self._limit = limit
        self._waiting = bytearray()
        self._pieces = 0
        self._parts: _Parts | None = None
        self.stored = 0

    async def write(self, data: bytes) -> None:
        """Store these bytes. Raises Superseded, CheckpointTooLarge, StorageUnavailable."""
        self._waiting += data
        while len(self._waiting) >= write.PIECE:
            await self._put(bytes(self._waiting[: write.PIECE]))
            del self._waiting[: write.PIECE]

    async def end(self) -> None:
        """Store the last bytes. After that all are durable. Raises as `write` does."""
        if self._waiting:
            await self._put(bytes(self._waiting))
            self._waiting.clear()
        if self._parts is not None:
            await self._parts.end()

    def written(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with the place of the written bytes, to read them back."""
        place = Place.DATABASE if self._parts is None else Place.PARTS
        return replace(checkpoint, place=place, object=self._name, stored_bytes=self.stored)

    async def _put(self, piece: bytes) -> None:
        self.stored += len(piece)
        if self._parts is None and self.stored > self._limit:
            self._parts = await self._move_to_bucket()
        if self._parts is not None:
            await self._parts.write(piece)
            return
        if not await write.put(self._database, self._checkpoint_id, self._pieces, piece):
            raise Superseded
        self._pieces += 1

    async def _move_to_bucket(self) -> _Parts:
        """Move the pieces that are in the database into the bucket.

        The row names the folder of the parts before the first of them is sent. If this replica
        dies later, retention finds there what to delete.
        """
        if self._bucket is None:
            raise errors.CheckpointTooLarge(
                f"the compressed state has more than {self._limit} bytes, and no bucket is "
                "configured to store it; set ROOST_CHECKPOINT_BUCKET_URL",
                {"limit": str(self._limit)},
            )
        parts = _Parts(self._database, self._bucket, self._checkpoint_id, self._name)
        for number in range(self._pieces):
            piece = await write.get(self._database, self._checkpoint_id, number)
            if piece is None:
                raise Superseded
            await parts.write(piece)
        await write.delete(self._database, self._checkpoint_id)
        return parts


def part_name(folder: str, number: int) -> str:
    """The name of a part's object; parts are numbered from 1."""
    return f"{folder}/{number:05}"


class _Parts:
    """The objects of a checkpoint in the bucket, one for each part."""

    def __init__(self, database: Database, bucket: Bucket, checkpoint_id: UUID, name: str) -> None:
        self._database = database
        self._bucket = bucket
        self._checkpoint_id = checkpoint_id
        self._name = name
        self._waiting: list[bytes] = []
        self._count = 0

    async def write(self, piece: bytes) -> None:
        """Add a piece. Raises Superseded, StorageUnavailable."""
        self._waiting.append(piece)
        if len(self._waiting) == PART_PIECES:
            await self.end()

    async def end(self) -> None:
        """Send the pieces that are not sent yet. Raises as `write` does.

        The row is written first, at every part. So no part is sent that the row does not name, and
        none once the checkpoint was marked FAILED, when another replica may be deleting its parts.
        """
        if not self._waiting:
            return
        pieces, self._waiting = self._waiting, []
        self._count += 1
        noted = await write.move(self._database, self._checkpoint_id, Place.PARTS, self._name)
        if not noted:
            raise Superseded
        await self._bucket.put(part_name(self._name, self._count), pieces)


_log = logging.getLogger(__name__)


class Reader:
    """Reads and verifies stored checkpoints."""

    def __init__(self, database: Database, bucket: Bucket | None) -> None:
        self._database = database
        self._bucket = bucket

    async def state(self, checkpoint: Checkpoint, whole: Whole) -> AsyncGenerator[bytes]:
        """The state in pieces, the last only after size and hash were verified to be those of
        `whole`. Raises Damaged, StorageUnavailable.
        """
        async with (
            aclosing(self._stored(checkpoint)) as stored,
            aclosing(Unpacker(whole).states(stored)) as pieces,
        ):
            async for piece in pieces:
                yield piece

    async def prove(self, checkpoint: Checkpoint, whole: Whole) -> None:
        """Read and verify all of it. Raises as `state` does."""
        async with aclosing(self.state(checkpoint, whole)) as pieces:
            async for _ in pieces:
                pass

    async def check(self, checkpoint: Checkpoint) -> None:
        """Verify a READY checkpoint. A damaged one is marked FAILED. Snapshots at the provider
        cannot be read, and are not verified. Raises CheckpointCorrupt, StorageUnavailable.

        The bytes are read a second time before the checkpoint is marked FAILED, because the first
        read may have failed although the stored bytes are intact.
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
                raise await self._condemned(checkpoint, error) from error

    async def _condemned(self, checkpoint: Checkpoint, error: Damaged) -> errors.CheckpointCorrupt:
        """Mark a damaged checkpoint FAILED. Returns the error to raise."""
        _log.error(
            "checkpoint %d is damaged: %s",
            checkpoint.number,
            error,
            extra={"action": "mark_corrupt", "checkpoint_id": str(checkpoint.checkpoint_id)},
        )
        await removal.mark_corrupt(self._database, checkpoint.checkpoint_id)
        return corrupt(checkpoint)

    async def _stored(self, checkpoint: Checkpoint) -> AsyncGenerator[bytes]:
        if checkpoint.place in (Place.PARTS, Place.BUCKET):
            async with aclosing(self._in_bucket(checkpoint)) as parts:
                async for part in parts:
                    yield part
            return
        number = 0
        # The first number without a piece is the end. If pieces are missing, the hash differs.
        while piece := await write.get(self._database, checkpoint.checkpoint_id, number):
            yield piece
            number += 1

    async def _in_bucket(self, checkpoint: Checkpoint) -> AsyncGenerator[bytes]:
        if self._bucket is None:
            raise errors.StorageUnavailable(
                "the checkpoint is in a bucket, and none is configured here; "
                "set ROOST_CHECKPOINT_BUCKET_URL"
            )
        folder, left, number = checkpoint.object or "", checkpoint.stored_bytes or 0, 0
        while left > 0:
            number += 1
            name = folder if checkpoint.place is Place.BUCKET else part_name(folder, number)
            try:
                async with aclosing(self._bucket.read(name)) as pieces:
                    async for piece in pieces:
                        left -= len(piece)
                        yield piece
            except ObjectMissing as error:
                raise Damaged(f"{name} is not in the bucket") from error
            if checkpoint.place is Place.BUCKET:
                return


def whole_of(checkpoint: Checkpoint) -> Whole:
    """The size and hash of the state, as the row of a READY checkpoint has them."""
    return Whole(checkpoint.size_bytes or 0, checkpoint.sha256 or b"")


def corrupt(checkpoint: Checkpoint) -> errors.CheckpointCorrupt:
    """The error for a damaged checkpoint."""
    return errors.CheckpointCorrupt(
        f"the stored bytes of checkpoint {checkpoint.number} are not those that were saved; "
        "restore another one (ListCheckpoints)",
        {"number": str(checkpoint.number), "checkpoint_id": str(checkpoint.checkpoint_id)},
    )


async def candidates(database: Database, session: Session | None) -> tuple[Checkpoint, ...]:
    """The checkpoints that a session can be restored from, in the order in which to try them.

    Reads nothing if the session's row names no checkpoint. Raises StorageUnavailable.
    """
    if session is None or session.checkpoint_id is None:
        return ()
    head = session.checkpoint_id
    return in_order(head, await reads.of_session(database, session.session_id, head))
