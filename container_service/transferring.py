"""State out of a container and into it: counted, hashed, bounded, and never half of it as whole."""

from __future__ import annotations

import hashlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from container_service.container import ContainerRef, ContainerState, StateHook
from container_service.errors import StateConflict, StateTooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from container_service.deadlines import Deadline
    from container_service.provider import Provider, StateChannel

#: The most bytes in one piece of a captured state.
CHUNK_BYTES = 128 * 1024
#: How long a container that reads as resting is given to be seen running: reads lag.
_RUNNING = frozenset({ContainerState.STARTED})


@dataclass(frozen=True, slots=True)
class Proof:
    """What the bytes of a whole state were."""

    total_bytes: int
    sha256: bytes


class Tally:
    """Counts and hashes what passes. Raises StateTooLarge at the first byte above the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._hash = hashlib.sha256()

    def add(self, chunk: bytes) -> None:
        """Take note of a piece."""
        self._total += len(chunk)
        if self._total > self._limit:
            raise too_large(self._total, self._limit)
        self._hash.update(chunk)

    def proof(self) -> Proof:
        """What has passed until now."""
        return Proof(self._total, self._hash.digest())


class Transferring:
    """Captures and restores the state of applications, each through its own kind of hook."""

    def __init__(
        self, provider: Provider, channels: Mapping[str, StateChannel], lag_window: float
    ) -> None:
        """`channels` by the kind of the hook; `lag_window` is how far reads may be behind."""
        self._provider = provider
        self._channels = channels
        self._lag_window = lag_window

    async def capture(
        self, ref: ContainerRef, hook: StateHook, deadline: Deadline
    ) -> AsyncGenerator[bytes | Proof]:
        """The state in pieces, and then, only where the whole has come, what it was."""
        channel = self._channels[hook.kind]
        await self._must_run(ref, deadline)
        tally = Tally(channel.limit)
        async with aclosing(channel.read(ref, hook.value, deadline)) as chunks:
            async for chunk in chunks:
                tally.add(chunk)
                yield chunk
        yield tally.proof()

    async def restore(
        self,
        ref: ContainerRef,
        hook: StateHook,
        chunks: AsyncIterator[bytes],
        deadline: Deadline,
    ) -> Proof:
        """Put state into a container; what it was, once the application has the whole."""
        channel = self._channels[hook.kind]
        await self._must_run(ref, deadline)
        tally = Tally(channel.limit)
        await channel.write(ref, hook.value, _tallied(chunks, tally), deadline)
        return tally.proof()

    async def _must_run(self, ref: ContainerRef, deadline: Deadline) -> None:
        """Refuse a container at rest: its proxy would wake it, and nobody has asked for that."""
        seen = await self._provider.get(ref, deadline)
        if seen.state is ContainerState.STARTED:
            return
        if await self._provider.wait(ref, _RUNNING, self._lag_window, deadline) is None:
            raise StateConflict(
                f"the container is {seen.provider_state}: start or resume it first",
                state=seen.state.value,
            )


def too_large(total: int, limit: int) -> StateTooLarge:
    """The refusal of a state above the limit; `total` is what is known of its size."""
    return StateTooLarge(
        f"the state has {total} bytes or more, and {limit} may be carried", limit=str(limit)
    )


async def _tallied(chunks: AsyncIterator[bytes], tally: Tally) -> AsyncGenerator[bytes]:
    async for chunk in chunks:
        tally.add(chunk)
        if chunk:
            yield chunk
