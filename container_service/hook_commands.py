"""State through a command in the container, where all there is to reach it is an exec.

The provider's exec delivers no standard input, returns its output as text, is counted at about one
a second, and says nowhere how much it carries. So the state crosses as base64, in pieces that are
small by any measure, by way of a temporary file in the container. A piece that was lost is asked
for, or sent, once more; the hook's own command is run once and never again.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from container_service.deadlines import Deadline
from container_service.errors import (
    ProviderUnavailable,
    ServiceError,
    StateHookFailed,
)
from container_service.transferring import CHUNK_BYTES, too_large

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from container_service.container import ContainerRef, ExecResult
    from container_service.provider import Provider

#: More than this would take minutes at one exec a second: an HTTP hook is for that.
LIMIT_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 64 * 1024
BLOCKS_IN_PIECE = 4
PIECE_BYTES = BLOCK_BYTES * BLOCKS_IN_PIECE
#: Linux takes no argument of 128 KiB or more (MAX_ARG_STRLEN).
_ARGUMENT_CHARACTERS = 120_000

HOOK_SECONDS = 60.0
_PIECE_SECONDS = 30.0
_CLEAN_UP_SECONDS = 10.0
_TRIES = 3

_FILE = 'umask 077; f="${TMPDIR:-/tmp}/$1"; '
# Noclobber: whatever has that name already is not ours to write to. A state that fits into one
# piece comes with the answer.
_CAPTURE = _FILE + (
    "set -C; "
    'sh -c "$2 capture" >"$f" </dev/null || { code=$?; rm -f "$f"; exit "$code"; }; '
    'n=$(wc -c <"$f"); echo $((n)); '
    'if [ "$n" -le "$3" ]; then base64 <"$f"; rm -f "$f"; fi'
)
_READ = _FILE + f'dd if="$f" bs={BLOCK_BYTES} skip="$2" count={BLOCKS_IN_PIECE} | base64'
_WRITE = _FILE + (
    'seek=$2; shift 2; printf %s "$@" | base64 -d |'
    f' dd of="$f" bs={BLOCK_BYTES} seek="$seek" conv=notrunc'
)
_RESTORE = _FILE + (
    'hook=$2; total=$3; seek=$4; shift 4; printf %s "$@" | base64 -d |'
    f' dd of="$f" bs={BLOCK_BYTES} seek="$seek" conv=notrunc 2>/dev/null; '
    'n=$(wc -c <"$f"); '
    'if [ "$n" -ne "$total" ]; then rm -f "$f"; echo "$n of $total bytes came" >&2; exit 1; fi; '
    'sh -c "$hook restore" <"$f"; code=$?; rm -f "$f"; exit "$code"'
)
_CLEAN_UP = _FILE + 'rm -f "$f"'


class CommandState:
    """A `StateChannel` over the provider's exec."""

    def __init__(self, provider: Provider, limit: int) -> None:
        self._provider = provider
        self.limit = min(limit, LIMIT_BYTES)

    async def read(
        self, ref: ContainerRef, value: str, deadline: Deadline
    ) -> AsyncGenerator[bytes]:
        """Have the command write a file, and fetch that piece by piece."""
        name = _file_name()
        try:
            size, first = await self._capture(ref, name, value, deadline)
            for chunk in _chunks(first):
                yield chunk
            for start in range(len(first), size, PIECE_BYTES):
                piece = await self._fetch(ref, name, start, deadline)
                for chunk in _chunks(_whole(piece, min(PIECE_BYTES, size - start))):
                    yield chunk
            name = "" if len(first) == size else name
        finally:
            await self._clean_up(ref, name)

    async def write(
        self, ref: ContainerRef, value: str, chunks: AsyncIterator[bytes], deadline: Deadline
    ) -> None:
        """Send a file piece by piece, and have the command read it once it is all there."""
        name = _file_name()
        try:
            total, last = 0, b""
            async for piece in _pieces(chunks):
                # One piece behind: the last one goes with the command.
                if last:
                    await self._send(ref, name, total - len(last), last, deadline)
                total, last = total + len(piece), piece
            seek = str((total - len(last)) // BLOCK_BYTES)
            arguments = (name, value, str(total), seek, *_arguments(last))
            result = await self._run(ref, _RESTORE, arguments, HOOK_SECONDS, deadline)
            if result.exit_code:
                raise _failed(result)
            name = ""
        finally:
            await self._clean_up(ref, name)

    async def _capture(
        self, ref: ContainerRef, name: str, hook: str, deadline: Deadline
    ) -> tuple[int, bytes]:
        """Run the command; the size of what it wrote, and all of that where it is small."""
        arguments = (name, hook, str(PIECE_BYTES))
        result = await self._run(ref, _CAPTURE, arguments, HOOK_SECONDS, deadline)
        if result.exit_code:
            raise _failed(result)
        told, _, encoded = result.stdout.partition("\n")
        if not told.isascii() or not told.isdigit():
            raise ProviderUnavailable("the provider lost what the state hook's command wrote")
        size = int(told)
        if size > self.limit:
            raise too_large(size, self.limit)
        if size > PIECE_BYTES:
            return size, b""
        return size, _whole(_decode(encoded), size)

    async def _fetch(self, ref: ContainerRef, name: str, start: int, deadline: Deadline) -> bytes:
        arguments = (name, str(start // BLOCK_BYTES))
        return _decode((await self._insist(ref, _READ, arguments, deadline)).stdout)

    async def _send(
        self, ref: ContainerRef, name: str, start: int, piece: bytes, deadline: Deadline
    ) -> None:
        arguments = (name, str(start // BLOCK_BYTES), *_arguments(piece))
        await self._insist(ref, _WRITE, arguments, deadline)

    async def _insist(
        self, ref: ContainerRef, script: str, arguments: tuple[str, ...], deadline: Deadline
    ) -> ExecResult:
        """Run a script that does no harm when it is run twice, once more where it was lost."""
        for last in (*(False,) * (_TRIES - 1), True):
            try:
                result = await self._run(ref, script, arguments, _PIECE_SECONDS, deadline)
            except ProviderUnavailable:
                if last or deadline.passed:
                    raise
                continue
            if result.exit_code:
                raise _failed(result)
            return result
        raise AssertionError("unreachable")

    async def _clean_up(self, ref: ContainerRef, name: str) -> None:
        """Remove the file, if the scripts have not; whoever waits has an answer already."""
        if name:
            deadline = Deadline.after(_CLEAN_UP_SECONDS)
            with suppress(ServiceError):
                await self._run(ref, _CLEAN_UP, (name,), _CLEAN_UP_SECONDS, deadline)

    async def _run(
        self,
        ref: ContainerRef,
        script: str,
        arguments: tuple[str, ...],
        seconds: float,
        deadline: Deadline,
    ) -> ExecResult:
        command = ("sh", "-c", script, "roost", *arguments)
        return await self._provider.execute(ref, command, seconds, deadline)


def _file_name() -> str:
    return f"roost-state-{secrets.token_hex(16)}"


def _failed(result: ExecResult) -> StateHookFailed:
    said = (result.stderr or result.stdout).strip()[-200:]
    return StateHookFailed(
        f"the state hook's command ended with exit code {result.exit_code}: {said}",
        exit_code=str(result.exit_code),
        said=said,
    )


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise ProviderUnavailable("the state came out of the container garbled") from error


def _whole(piece: bytes, size: int) -> bytes:
    if len(piece) != size:
        raise ProviderUnavailable("the state broke off on its way out of the container")
    return piece


def _arguments(piece: bytes) -> tuple[str, ...]:
    """A piece as base64, in arguments of a size that the kernel takes."""
    text = base64.b64encode(piece).decode()
    starts = range(0, len(text), _ARGUMENT_CHARACTERS)
    return tuple(text[start : start + _ARGUMENT_CHARACTERS] for start in starts)


def _chunks(piece: bytes) -> list[bytes]:
    return [piece[start : start + CHUNK_BYTES] for start in range(0, len(piece), CHUNK_BYTES)]


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in pieces of PIECE_BYTES; the last may be shorter."""
    held = bytearray()
    async for chunk in chunks:
        held += chunk
        while len(held) >= PIECE_BYTES:
            yield bytes(held[:PIECE_BYTES])
            del held[:PIECE_BYTES]
    if held:
        yield bytes(held)
