"""The state of an application through a command in its container, run by the provider's exec.

The provider's exec takes no standard input, returns output as text, is limited to about one call a
second, and does not document how much output it returns. So the state crosses as base64, in pieces
that are small enough for any such limit, through a temporary file in the container. A piece that
was lost is read or written again, which changes nothing. The command of the hook itself runs once
and is never repeated, because it need not be idempotent.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import (
    ProviderUnavailable,
    ServiceError,
    StateHookFailed,
)
from container_service.containers.state_transfer import CHUNK_BYTES, too_large

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from container_service.containers.model import ContainerRef, ExecResult
    from container_service.containers.provider import Provider

#: The largest size of a state, in bytes. A larger one would take minutes at one exec a second; an
#: HTTP hook is for that.
LIMIT_BYTES = 16 * 1024 * 1024
BLOCK_BYTES = 64 * 1024
BLOCKS_IN_PIECE = 4
PIECE_BYTES = BLOCK_BYTES * BLOCKS_IN_PIECE
#: Linux limits one argument to less than 128 KiB (MAX_ARG_STRLEN).
_ARGUMENT_CHARACTERS = 120_000

HOOK_SECONDS = 60.0
_PIECE_SECONDS = 30.0
_CLEAN_UP_SECONDS = 10.0
_TRIES = 3

_FILE = 'umask 077; f="${TMPDIR:-/tmp}/$1"; '
# `set -C` (noclobber) fails if the file exists, so that another program's file is never
# overwritten. A state that fits into one piece is returned with its size.
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
    'if [ "$n" -ne "$total" ]; then rm -f "$f"; echo "$n of $total bytes arrived" >&2; exit 1; fi; '
    'sh -c "$hook restore" <"$f"; code=$?; rm -f "$f"; exit "$code"'
)
_CLEAN_UP = _FILE + 'rm -f "$f"'


class CommandStateChannel:
    """A `StateChannel` over the provider's exec."""

    def __init__(self, provider: Provider, limit: int) -> None:
        self._provider = provider
        self.limit = min(limit, LIMIT_BYTES)

    async def read(
        self, ref: ContainerRef, value: str, deadline: Deadline
    ) -> AsyncGenerator[bytes]:
        """Run the command with its output to a file, and read the file piece by piece.

        The `finally` also runs when the caller goes away in the middle: the generator is then
        closed at a `yield`, and the file must not stay in the container. It awaits an exec of at
        most _CLEAN_UP_SECONDS with a deadline of its own, as that of the caller may have passed.
        """
        name = _file_name()
        try:
            size, first = await self._capture(ref, name, value, deadline)
            for chunk in _chunks(first):
                yield chunk
            for start in range(len(first), size, PIECE_BYTES):
                piece = await self._fetch(ref, name, start, deadline)
                for chunk in _chunks(_require_size(piece, min(PIECE_BYTES, size - start))):
                    yield chunk
            if len(first) == size:
                name = ""  # the script has removed the file already
        finally:
            await self._clean_up(ref, name)

    async def write(
        self, ref: ContainerRef, value: str, chunks: AsyncIterator[bytes], deadline: Deadline
    ) -> None:
        """Write a file piece by piece, then run the command with the complete file as its input."""
        name = _file_name()
        try:
            total, last = 0, b""
            async for piece in _pieces(chunks):
                # One piece behind, because the last piece is sent together with the command.
                if last:
                    await self._send(ref, name, total - len(last), last, deadline)
                total, last = total + len(piece), piece
            seek = str((total - len(last)) // BLOCK_BYTES)
            arguments = (name, value, str(total), seek, *_arguments(last))
            result = await self._run(ref, _RESTORE, arguments, HOOK_SECONDS, deadline)
            if result.exit_code:
                raise _failed(result)
            name = ""  # the script has removed the file already
        finally:
            await self._clean_up(ref, name)

    async def _capture(
        self, ref: ContainerRef, name: str, hook: str, deadline: Deadline
    ) -> tuple[int, bytes]:
        """Run the command; return the size of its output, and the output if it is one piece."""
        arguments = (name, hook, str(PIECE_BYTES))
        result = await self._run(ref, _CAPTURE, arguments, HOOK_SECONDS, deadline)
        if result.exit_code:
            raise _failed(result)
        size_text, _, encoded = result.stdout.partition("\n")
        if not size_text.isascii() or not size_text.isdigit():
            raise ProviderUnavailable(
                "the provider lost the output of the state hook's command: retry"
            )
        size = int(size_text)
        if size > self.limit:
            raise too_large(size, self.limit)
        if size > PIECE_BYTES:
            return size, b""
        return size, _require_size(_decode(encoded), size)

    async def _fetch(self, ref: ContainerRef, name: str, start: int, deadline: Deadline) -> bytes:
        arguments = (name, str(start // BLOCK_BYTES))
        return _decode((await self._run_idempotent(ref, _READ, arguments, deadline)).stdout)

    async def _send(
        self, ref: ContainerRef, name: str, start: int, piece: bytes, deadline: Deadline
    ) -> None:
        arguments = (name, str(start // BLOCK_BYTES), *_arguments(piece))
        await self._run_idempotent(ref, _WRITE, arguments, deadline)

    async def _run_idempotent(
        self, ref: ContainerRef, script: str, arguments: tuple[str, ...], deadline: Deadline
    ) -> ExecResult:
        """Run an idempotent script, up to _TRIES times while answers are lost."""
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
        """Remove the file unless `name` is empty. An error changes no result, so it is ignored."""
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
    output = (result.stderr or result.stdout).strip()[-200:]
    return StateHookFailed(
        f"the state hook's command exited with status {result.exit_code}: {output}",
        exit_code=str(result.exit_code),
        said=output,
    )


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise ProviderUnavailable("the state did not arrive as valid base64: retry") from error


def _require_size(piece: bytes, size: int) -> bytes:
    if len(piece) != size:
        raise ProviderUnavailable("the state was cut off on its way from the container: retry")
    return piece


def _arguments(piece: bytes) -> tuple[str, ...]:
    """A piece as base64, split into arguments that are short enough for the kernel."""
    text = base64.b64encode(piece).decode()
    starts = range(0, len(text), _ARGUMENT_CHARACTERS)
    return tuple(text[start : start + _ARGUMENT_CHARACTERS] for start in starts)


def _chunks(piece: bytes) -> list[bytes]:
    return [piece[start : start + CHUNK_BYTES] for start in range(0, len(piece), CHUNK_BYTES)]


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The same bytes in pieces of PIECE_BYTES; the last one may be shorter."""
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= PIECE_BYTES:
            yield bytes(buffer[:PIECE_BYTES])
            del buffer[:PIECE_BYTES]
    if buffer:
        yield bytes(buffer)
