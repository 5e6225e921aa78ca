"""The composition of checkpoints: puts their service onto the server, and tidies behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from roost.session.v1 import checkpoint_service_pb2 as pb
from roost.session.v1 import checkpoint_service_pb2_grpc as rpc
from session_service import loops
from session_service.rpc.checkpoint_servicer import CheckpointServicer

if TYPE_CHECKING:
    from contextlib import AsyncExitStack

    import grpc.aio

    from session_service.rpc.checkpoint_servicer import CheckpointCases
    from session_service.rpc.render import Renderer
    from session_service.vault.retention import Retention

SERVICE = pb.DESCRIPTOR.services_by_name["CheckpointService"].full_name
#: Between two passes over what owners who are gone left, in s.
TIDY_EVERY = 60.0


async def add(
    stack: AsyncExitStack,
    server: grpc.aio.Server,
    cases: CheckpointCases,
    renderer: Renderer,
    retention: Retention,
) -> None:
    """Let the server answer the checkpoint service; the stack ends what runs behind it."""
    rpc.add_CheckpointServiceServicer_to_server(CheckpointServicer(cases, renderer), server)
    await stack.enter_async_context(loops.running("checkpoints", retention.shot, every=TIDY_EVERY))
    stack.push_async_callback(cases.taking.drain)
