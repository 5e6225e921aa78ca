"""Messages of captures and restores into the service's words, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from container_service.container import ContainerRef, StateHook
from container_service.fields import Fields
from container_service.specs import parse_state_hook
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from container_service.transferring import Proof


def parse_hooked(
    request: pb.CaptureStateRequest | pb.RestoreStateRequest, default_app: str
) -> tuple[ContainerRef, StateHook]:
    """The container that a message names, and the way to its state. Raises InvalidRequest."""
    fields = Fields()
    ref = ContainerRef(
        fields.app(request.app, default_app), fields.container_id(request.container_id)
    )
    hook = parse_state_hook(fields, "state_hook", request.state_hook)
    if hook is None:
        fields.wrong("state_hook", "must be set: http_path or command")
    fields.done()
    assert hook is not None
    return ref, hook


async def chunks_of(
    first: pb.RestoreStateRequest, rest: AsyncIterator[pb.RestoreStateRequest]
) -> AsyncGenerator[bytes]:
    """The bytes of a restore. Raises InvalidRequest where a later message names a container."""
    yield first.chunk
    async for message in rest:
        fields = Fields()
        for name in ("app", "container_id", "state_hook"):
            if getattr(message, name) != getattr(_NAMELESS, name):
                fields.wrong(name, "is for the first message alone")
        fields.done()
        yield message.chunk


def to_capture_response(part: bytes | Proof) -> pb.CaptureStateResponse:
    """A piece, or the proof at the end."""
    if isinstance(part, bytes):
        return pb.CaptureStateResponse(chunk=part)
    return pb.CaptureStateResponse(total_bytes=part.total_bytes, sha256=part.sha256)


_NAMELESS = pb.RestoreStateRequest()
