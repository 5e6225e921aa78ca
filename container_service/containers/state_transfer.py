"""Capture and restore the state of an application: counted, hashed, and limited in size.

A capture streams: the caller has the first bytes before the last bytes are read. So the end of the
stream does not prove that the state is complete. The digest that follows the last byte proves it. A
stream without a digest is incomplete, even if it ended without an error.
"""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container_service.containers.errors import StateConflict, StateTooLarge
from container_service.containers.model import ContainerRef, ContainerState, StateHook

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from container_service.containers.deadlines import Deadline
    from container_service.containers.provider import Provider, StateChannel

#: The largest number of bytes in one piece of a captured state.
CHUNK_BYTES = 128 * 1024

_STARTED = frozenset({ContainerState.STARTED})


@dataclass(frozen=True, slots=True)
class StateDigest:
    """Size and SHA-256 of a complete state."""

    total_bytes: int
    sha256: bytes


class DigestBuilder:
    """Counts and hashes the bytes of a state, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._hash = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        """Add a piece. Raises StateTooLarge if the total now exceeds the limit."""
        self._total += len(chunk)
        if self._total > self._limit:
            raise too_large(self._total, self._limit)
        self._hash.update(chunk)

    def digest(self) -> StateDigest:
        """The digest of all pieces so far."""
        return StateDigest(self._total, self._hash.digest())


class StateTransfer:
    """Captures and restores the state of applications, through the channel of each hook's kind."""

    def __init__(
        self, provider: Provider, channels: Mapping[str, StateChannel], lag_window: float
    ) -> None:
        """`channels` maps each `StateHook.kind` to its channel. `lag_window` is how many seconds
        the provider's reads may lag behind its writes.
        """
        self._provider = provider
        self._channels = channels
        self._lag_window = lag_window

    async def capture(
        self, ref: ContainerRef, hook: StateHook, deadline: Deadline
    ) -> AsyncGenerator[bytes | StateDigest]:
        """Yield the state in pieces and then, only if it is complete, its digest.

        If the caller goes away, the generator is closed at a `yield`. `aclosing` then closes the
        channel's generator at once, and with it the HTTP response or the temporary file in the
        container. Without `aclosing` both would stay until the garbage collector runs.
        """
        channel = self._channels[hook.kind]
        await self._require_running(ref, deadline)
        builder = DigestBuilder(channel.limit)
        async with aclosing(channel.read(ref, hook.value, deadline)) as chunks:
            async for chunk in chunks:
                builder.add(chunk)
                yield chunk
        yield builder.digest()

    async def restore(
        self,
        ref: ContainerRef,
        hook: StateHook,
        chunks: AsyncIterator[bytes],
        deadline: Deadline,
    ) -> StateDigest:
        """Write state into a container; return its digest when the application has confirmed it."""
        channel = self._channels[hook.kind]
        await self._require_running(ref, deadline)
        builder = DigestBuilder(channel.limit)
        await channel.write(ref, hook.value, _added(chunks, builder), deadline)
        return builder.digest()

    async def _require_running(self, ref: ContainerRef, deadline: Deadline) -> None:
        """Raise StateConflict unless the container runs.

        A request through the provider's proxy would start a container that does not run, which the
        caller did not ask for. A read may be older than the start of the container: if it does not
        show the container running, this waits for STARTED for as long as the lag window.
        """
        seen = await self._provider.get(ref, deadline)
        if seen.state is ContainerState.STARTED:
            return
        if await self._provider.wait(ref, _STARTED, self._lag_window, deadline) is None:
            raise StateConflict(
                f"the container is {seen.provider_state}: start or resume it first",
                state=seen.state.value,
            )


def too_large(total: int, limit: int) -> StateTooLarge:
    """The error for a state above the limit; `total` is the number of bytes known so far."""
    return StateTooLarge(
        f"the state has at least {total} bytes, and the limit is {limit}. Make the state smaller, "
        "or raise ROOST_STATE_LIMIT. With a hook of kind command the limit is never above 16 MiB",
        limit=str(limit),
    )


async def _added(chunks: AsyncIterator[bytes], builder: DigestBuilder) -> AsyncGenerator[bytes]:
    """The chunks that are not empty, each added to the digest before it is passed on."""
    async for chunk in chunks:
        builder.add(chunk)
        if chunk:
            yield chunk
