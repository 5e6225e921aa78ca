"""State through compression and back: the same bytes, in bounded pieces, or Damaged."""

from __future__ import annotations

import random
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_service.checkpoints.stream import PIECE, Damaged, Packer, Unpacker
from session_service.ports import Whole

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable


async def packed(pieces: Iterable[bytes]) -> tuple[bytes, Whole]:
    """The stored form of a state, and its size and hash."""
    packer, stored = Packer(), b""
    for piece in pieces:
        stored += await packer.add(piece)
    return stored + await packer.end(), packer.whole


async def unpacked(stored: bytes, whole: Whole, step: int = 65_536) -> list[bytes]:
    """The state in pieces."""

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(stored), step):
            yield stored[start : start + step]

    async with aclosing(Unpacker(whole).states(parts())) as pieces:
        return [piece async for piece in pieces]


@given(st.lists(st.binary(max_size=30_000), max_size=8), st.integers(1, 5000))
async def test_unpacking_returns_the_packed_bytes(pieces: list[bytes], step: int) -> None:
    """However the pieces are cut in either direction."""
    stored, whole = await packed(pieces)
    assert whole.size_bytes == sum(map(len, pieces))
    assert b"".join(await unpacked(stored, whole, step)) == b"".join(pieces)


async def test_highly_compressed_state_is_unpacked_in_small_pieces() -> None:
    """A small first piece does not switch compression off."""
    state = [b"2\n", *[bytes(PIECE)] * 40]
    stored, whole = await packed(state)
    assert len(stored) < whole.size_bytes / 100
    pieces = await unpacked(stored, whole)
    assert max(map(len, pieces)) <= PIECE
    assert sum(map(len, pieces)) == whole.size_bytes


async def test_incompressible_state_is_stored_uncompressed() -> None:
    """The stored form is hardly larger than the state."""
    state = random.Random(7).randbytes(1_000_000)
    stored, whole = await packed([state])
    assert len(stored) < whole.size_bytes * 1.001


@given(st.data())
async def test_every_flipped_bit_and_every_cut_is_detected(data: st.DataObject) -> None:
    """Anywhere in it: Damaged is raised before the last piece is returned."""
    state = data.draw(st.binary(min_size=1, max_size=40_000))
    stored, whole = await packed([state])
    position = data.draw(st.integers(0, len(stored) * 8 - 1))
    flipped = bytearray(stored)
    flipped[position // 8] ^= 1 << position % 8
    for damaged in (bytes(flipped), stored[: position // 8], stored + b"x"):
        try:
            pieces = await unpacked(damaged, whole)
        except Damaged:
            continue
        # A bit of the stream's header without a meaning does not change the state.
        assert b"".join(pieces) == state


async def test_another_valid_state_is_damaged() -> None:
    """The size is checked, and then the hash."""
    stored, _ = await packed([b"three"])
    _, other = await packed([b"other"])
    for whole in (other, Whole(2, other.sha256), Whole(99, other.sha256)):
        with pytest.raises(Damaged):
            await unpacked(stored, whole)
