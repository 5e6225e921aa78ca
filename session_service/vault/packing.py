"""Compressing state on its way in and out, in a thread, a few pieces at a time.

zlib, of the standard library: what is stored can be read with nothing but Python.
"""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from typing import TYPE_CHECKING

from session_service.ports import Whole

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

#: The fastest: state is written more often than it is read, and nobody waits for less bytes.
LEVEL = 1
#: The first bytes tell whether squeezing is worth it: what they must shrink to, at most. Images and
#: archives do not.
FIRST = 16 * 1024
WORTH = 0.95
#: Most bytes of state in a piece that is read back.
PIECE = 256 * 1024


class Damaged(Exception):
    """The bytes are not what was packed."""


class Packer:
    """Compresses and hashes what passes."""

    def __init__(self) -> None:
        self._deflate: zlib._Compress | None = None
        self._first = b""
        self._hash = hashlib.sha256()
        self._size = 0

    async def add(self, piece: bytes) -> bytes:
        """What is to be stored of this piece; often nothing yet."""
        return await asyncio.to_thread(self._add, piece)

    def _add(self, piece: bytes) -> bytes:
        self._size += len(piece)
        self._hash.update(piece)
        if self._deflate is not None:
            return self._deflate.compress(piece)
        self._first += piece
        return self._chosen().compress(self._first) if len(self._first) >= FIRST else b""

    def _chosen(self) -> zlib._Compress:
        """By the first bytes: one that stores as it is where squeezing would be in vain."""
        worth = len(zlib.compress(self._first, LEVEL)) < WORTH * len(self._first)
        self._deflate = zlib.compressobj(LEVEL if worth else 0)
        return self._deflate

    async def end(self) -> bytes:
        """The last of what is to be stored."""
        return await asyncio.to_thread(self._end)

    def _end(self) -> bytes:
        if self._deflate is not None:
            return self._deflate.flush()
        deflate = self._chosen()
        return deflate.compress(self._first) + deflate.flush()

    @property
    def whole(self) -> Whole:
        """What has passed until now."""
        return Whole(self._size, self._hash.digest())


class Unpacker:
    """Turns what was stored into the state again, and proves that it is that."""

    def __init__(self, expected: Whole) -> None:
        self._inflate = zlib.decompressobj()
        self._hash = hashlib.sha256()
        self._size = 0
        self._expected = expected

    async def states(self, stored: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """The state in pieces; the last of them only once all are proved. Raises Damaged."""
        held = b""
        async for each in stored:
            left = each
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
        """The next piece of state, and what is left to be taken."""
        try:
            piece = self._inflate.decompress(stored, PIECE)
        except zlib.error as error:
            raise Damaged(str(error)) from error
        self._size += len(piece)
        if self._size > self._expected.size_bytes:
            raise Damaged("it is longer than what was saved")
        self._hash.update(piece)
        return piece, self._inflate.unconsumed_tail

    def _prove(self) -> None:
        if not self._inflate.eof or self._inflate.unused_data:
            raise Damaged("it does not end where it should")
        if Whole(self._size, self._hash.digest()) != self._expected:
            raise Damaged("its SHA-256 is another one")
