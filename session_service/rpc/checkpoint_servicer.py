"""roost.session.v1.CheckpointService: parse, call, render."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc.aio

from roost.session.v1 import checkpoint_service_pb2 as pb
from roost.session.v1 import session_pb2
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceServicer
from session_service.domain.session import DEFAULT_TENANT
from session_service.rpc import checkpoint_fields as fields
from session_service.rpc.times import timestamp

if TYPE_CHECKING:
    from session_service.checkpoints.going_back import GoingBack
    from session_service.checkpoints.keeping import Keeping
    from session_service.checkpoints.taking import Taking
    from session_service.domain.checkpoint import Checkpoint
    from session_service.rpc.render import Renderer

# Any: the generated base leaves the context's own parameters open.
Context = grpc.aio.ServicerContext[Any, Any]

#: Until calls are authenticated, everybody is of the one tenant.
TENANT = DEFAULT_TENANT


@dataclass(frozen=True, slots=True)
class CheckpointCases:
    """What the servicer calls."""

    taking: Taking
    keeping: Keeping
    going_back: GoingBack


class CheckpointServicer(CheckpointServiceServicer):
    """Answers the contract; the work is the use cases'."""

    def __init__(self, cases: CheckpointCases, renderer: Renderer) -> None:
        self._cases = cases
        self._render = renderer

    async def CreateCheckpoint(
        self, request: pb.CreateCheckpointRequest, context: Context
    ) -> pb.CreateCheckpointResponse:
        """Save the state of a session now."""
        taken = await self._cases.taking.create(fields.parse_create(request, TENANT))
        return pb.CreateCheckpointResponse(
            checkpoint=render(taken.checkpoint), decision_id=str(taken.decision_id)
        )

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: Context
    ) -> pb.GetCheckpointResponse:
        """Read one checkpoint."""
        checkpoint_id = fields.parse_id(request.checkpoint_id)
        found = await self._cases.keeping.get(TENANT, checkpoint_id)
        return pb.GetCheckpointResponse(checkpoint=render(found))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: Context
    ) -> pb.ListCheckpointsResponse:
        """List the checkpoints of a key."""
        wanted = fields.parse_list(request, TENANT)
        key = wanted.key
        if key is None:
            assert wanted.session_id is not None, "one of the two is given"
            key = await self._cases.keeping.key_of(TENANT, wanted.session_id)
        found = await self._cases.keeping.page(key, wanted.below(key), wanted.size + 1)
        shown = found[: wanted.size]
        more = len(found) > wanted.size
        return pb.ListCheckpointsResponse(
            checkpoints=[render(each) for each in shown],
            next_page_token=wanted.token(key, shown[-1].number) if more else "",
        )

    async def RestoreCheckpoint(
        self, request: pb.RestoreCheckpointRequest, context: Context
    ) -> pb.RestoreCheckpointResponse:
        """Put a session back."""
        wanted = fields.parse_restore(request, TENANT)
        answer, saved = await self._cases.going_back.restore(wanted)
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
        await self._cases.keeping.delete(*fields.parse_named(request, "DeleteCheckpoint", TENANT))
        return pb.DeleteCheckpointResponse()

    async def PinCheckpoint(
        self, request: pb.PinCheckpointRequest, context: Context
    ) -> pb.PinCheckpointResponse:
        """Keep a checkpoint, or let it go again."""
        named = fields.parse_named(request, "PinCheckpoint", TENANT)
        found = await self._cases.keeping.pin(*named, pinned=request.pinned)
        return pb.PinCheckpointResponse(checkpoint=render(found))

    async def ForkSession(
        self, request: pb.ForkSessionRequest, context: Context
    ) -> pb.ForkSessionResponse:
        """Begin a session at another key from a checkpoint."""
        answer = await self._cases.going_back.fork(*fields.parse_fork(request, TENANT))
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
