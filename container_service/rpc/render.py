"""Convert the model to response messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from container_service.containers.model import Container, ContainerState, Lease, MemoryPreserved
from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from datetime import datetime

    from container_service.containers.model import Snapshot, Volume
    from container_service.containers.start import ResumeResult
    from container_service.containers.state_transfer import StateDigest

_STATES = {
    state: pb.ContainerState.Value(f"CONTAINER_STATE_{state.name}") for state in ContainerState
}
_MEMORY = {
    verdict: pb.MemoryPreserved.Value(f"MEMORY_PRESERVED_{verdict.name}")
    for verdict in MemoryPreserved
}


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    """A Timestamp; None leaves the field unset."""
    if moment is None:
        return None
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def to_state(state: ContainerState) -> pb.ContainerState.ValueType:
    """A state as its message."""
    return _STATES[state]


def to_container(container: Container) -> pb.Container:
    """A container as its message."""
    return pb.Container(
        app=container.ref.app,
        container_id=container.ref.container_id,
        name=container.name,
        state=to_state(container.state),
        provider_state=container.provider_state,
        region=container.region,
        version=container.version,
        labels=dict(container.labels),
        spec_hash=container.spec_hash,
        cordoned=container.cordoned,
        create_time=to_timestamp(container.create_time),
        update_time=to_timestamp(container.update_time),
        last_start_time=to_timestamp(container.last_start_time),
        host_reachable=container.host_reachable,
    )


def to_volume(volume: Volume) -> pb.Volume:
    """A volume as its message."""
    return pb.Volume(
        app=volume.ref.app,
        volume_id=volume.ref.volume_id,
        name=volume.name,
        provider_state=volume.provider_state,
        region=volume.region,
        size_gb=volume.size_gb,
        attached_container_id=volume.attached_container_id,
        create_time=to_timestamp(volume.create_time),
    )


def to_snapshot(snapshot: Snapshot) -> pb.VolumeSnapshot:
    """A snapshot as its message."""
    return pb.VolumeSnapshot(
        snapshot_id=snapshot.snapshot_id,
        volume_id=snapshot.volume_id,
        provider_state=snapshot.provider_state,
        size_bytes=snapshot.size_bytes,
        digest=snapshot.digest,
        create_time=to_timestamp(snapshot.create_time),
    )


def to_lease(lease: Lease) -> pb.Lease:
    """A lease as its message."""
    return pb.Lease(
        nonce=lease.nonce, expire_time=to_timestamp(lease.expire_time), owner=lease.owner
    )


def to_resume_response(result: ResumeResult) -> pb.ResumeContainerResponse:
    """The response to a resume."""
    return pb.ResumeContainerResponse(
        container=to_container(result.started.container),
        memory_preserved=_MEMORY[result.memory_preserved],
        boot_id=result.started.boot_id,
        evidence=result.evidence,
    )


def to_capture_response(part: bytes | StateDigest) -> pb.CaptureStateResponse:
    """A piece of the state, or the digest that ends it."""
    if isinstance(part, bytes):
        return pb.CaptureStateResponse(chunk=part)
    return pb.CaptureStateResponse(total_bytes=part.total_bytes, sha256=part.sha256)
