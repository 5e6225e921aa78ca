"""The gRPC face of captures and restores: parse, call, render."""
# ruff: noqa: D102, N802

from __future__ import annotations

import asyncio
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from container_service import state_convert
from container_service.context import Context, deadline_of
from container_service.errors import ServiceError
from container_service.volume_servicer import VolumeServicer
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from container_service.deadlines import Deadline
    from container_service.provider import Provider, VolumeProvider
    from container_service.transferring import Transferring

#: How long a caller that is refused may go on sending before the call is ended under it.
DRAIN_SECONDS = 5.0


class StateServicer(VolumeServicer):
    """Answers the contract's calls about the state of applications, and those about volumes."""

    def __init__(
        self,
        provider: Provider,
        volumes: VolumeProvider,
        transferring: Transferring,
        default_app: str,
    ) -> None:
        super().__init__(provider, volumes, default_app)
        self._transferring = transferring

    async def CaptureState(
        self, request: pb.CaptureStateRequest, context: Context
    ) -> AsyncIterator[pb.CaptureStateResponse]:
        ref, hook = state_convert.parse_hooked(request, self._app)
        captured = self._transferring.capture(ref, hook, deadline_of(context))
        async with aclosing(captured) as parts:
            async for part in parts:
                yield state_convert.to_capture_response(part)

    async def RestoreState(
        self, request_iterator: AsyncIterator[pb.RestoreStateRequest], context: Context
    ) -> pb.RestoreStateResponse:
        deadline = deadline_of(context)
        try:
            return await self._restore(request_iterator, deadline)
        except ServiceError:
            await _drain(request_iterator, deadline.within(DRAIN_SECONDS))
            raise

    async def _restore(
        self, messages: AsyncIterator[pb.RestoreStateRequest], deadline: Deadline
    ) -> pb.RestoreStateResponse:
        first = await anext(aiter(messages), pb.RestoreStateRequest())
        ref, hook = state_convert.parse_hooked(first, self._app)
        chunks = state_convert.chunks_of(first, messages)
        proof = await self._transferring.restore(ref, hook, chunks, deadline)
        return pb.RestoreStateResponse(bytes_written=proof.total_bytes, sha256=proof.sha256)


async def _drain(messages: AsyncIterator[pb.RestoreStateRequest], deadline: Deadline) -> None:
    """Read on for a while, for nothing.

    A caller in Python that is still writing when a call ends is told of its own failed write, as
    INTERNAL, and not why the call has ended.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(deadline.remaining()):
            async for _ in messages:
                pass
