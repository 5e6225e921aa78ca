"""roost.session.v1.CheckpointService: each method parses, calls a use case and renders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.session.v1 import checkpoint_service_pb2 as pb
from roost.session.v1 import session_pb2
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceServicer
from session_service.domain.session import DEFAULT_TENANT
from session_service.rpc.checkpoint import parse
from session_service.rpc.fields import timestamp

if TYPE_CHECKING:
    from session_service.domain.checkpoint import Checkpoint
    from session_service.rpc.session.render import Renderer
    from session_service.save.keep import Keep
    from session_service.save.service import SaveService
    from session_service.start.restore_fork import RestoreForkService

# Any: the generated base class does not bind the type parameters of the context.
Context = grpc.aio.ServicerContext[Any, Any]

#: Calls are not authenticated: there is one tenant.
TENANT = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class CheckpointCases:
    """The use cases that the servicer calls."""

    save: SaveService
    keep: Keep
    restore_fork: RestoreForkService


class CheckpointServicer(CheckpointServiceServicer):
    """The service's methods. Their semantics are in the comments of the proto."""

    def __init__(self, cases: CheckpointCases, renderer: Renderer) -> None:
        self._cases = cases
        self._render = renderer

    async def CreateCheckpoint(
        self, request: pb.CreateCheckpointRequest, context: Context
    ) -> pb.CreateCheckpointResponse:
        """Save the state of a session now."""
        saved = await self._cases.save.create(parse.parse_create(request, TENANT))
        return pb.CreateCheckpointResponse(
            checkpoint=render(saved.checkpoint), decision_id=str(saved.decision_id)
        )

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        """Read one checkpoint."""
        checkpoint_id = parse.parse_id(request.checkpoint_id)
        found = await self._cases.keep.get(TENANT, checkpoint_id)
        return pb.GetCheckpointResponse(checkpoint=render(found))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """List the checkpoints of a key."""
        wanted = parse.parse_list(request, TENANT)
        key = wanted.key
        if key is None:
            assert wanted.session_id is not None, "parse_list requires one of the two"
            key = await self._cases.keep.key_of(TENANT, wanted.session_id)
        found = await self._cases.keep.page(key, wanted.below(key), wanted.size + 1)
        shown = found[: wanted.size]
        more = len(found) > wanted.size
        return pb.ListCheckpointsResponse(
            checkpoints=[render(each) for each in shown],
            next_page_token=wanted.token(key, shown[-1].number) if more else "",
        )

    async def RestoreCheckpoint(
        self, request: pb.RestoreCheckpointRequest, context: Context
    ) -> pb.RestoreCheckpointResponse:
        """Restore a session to the state of a checkpoint."""
        wanted = parse.parse_restore(request, TENANT)
        answer, saved = await self._cases.restore_fork.restore(wanted)
        start = self._render.start(answer)
        return pb.RestoreCheckpointResponse(
            session=start.session,
            outcome=start.outcome,
            continuity=start.continuity,
            continuity_verified=start.continuity_verified,
            decision_id=start.decision_id,
            attempts=start.attempts,
            rollback_checkpoint=None if saved is None else render(saved),
        )

    async def DeleteCheckpoint(
        self, request: pb.DeleteCheckpointRequest, context: Context
    ) -> pb.DeleteCheckpointResponse:
        """Delete a checkpoint."""
        await self._cases.keep.delete(*parse.parse_named(request, "DeleteCheckpoint", TENANT))
        return pb.DeleteCheckpointResponse()

    async def PinCheckpoint(
        self, request: pb.PinCheckpointRequest, context: Context
    ) -> pb.PinCheckpointResponse:
        """Pin a checkpoint, so that retention keeps it; or unpin it."""
        named = parse.parse_named(request, "PinCheckpoint", TENANT)
        found = await self._cases.keep.pin(*named, pinned=request.pinned)
        return pb.PinCheckpointResponse(checkpoint=render(found))

    async def ForkSession(
        self, request: pb.ForkSessionRequest, context: Context
    ) -> pb.ForkSessionResponse:
        """Create a session at another key from a checkpoint."""
        answer = await self._cases.restore_fork.fork(*parse.parse_fork(request, TENANT))
        start = self._render.start(answer)
        return pb.ForkSessionResponse(
            session=start.session,
            outcome=start.outcome,
            continuity=start.continuity,
            continuity_verified=start.continuity_verified,
            decision_id=start.decision_id,
            attempts=start.attempts,
        )


def render(row: Checkpoint) -> pb.Checkpoint:
    """A checkpoint's row as a message."""
    return pb.Checkpoint(
        checkpoint_id=str(row.checkpoint_id),
        key=session_pb2.SessionKey(project_id=row.project_id, user_id=row.user_id, slot=row.slot),
        number=row.number,
        label=row.label,
        kind=pb.Checkpoint.Kind.Value(f"KIND_{row.kind}"),
        state=pb.Checkpoint.State.Value(f"STATE_{row.state}"),
        reason=pb.Checkpoint.Reason.Value(f"REASON_{row.reason}"),
        session_id=str(row.session_id),
        generation=row.generation,
        parent_checkpoint_id="" if row.parent_id is None else str(row.parent_id),
        size_bytes=row.size_bytes or 0,
        stored_bytes=row.stored_bytes or 0,
        sha256=row.sha256 or b"",
        fingerprint=row.fingerprint,
        pinned=row.pinned,
        failure=row.failure or "",
        create_time=timestamp(row.create_time),
        ready_time=timestamp(row.ready_time),
    )
