"""The fence: who holds a container's lease changes it, a late request does not."""

from __future__ import annotations

import time

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import Service, failing


async def acquire(service: Service, container_id: str, ttl: int = 30, wait: int = 0) -> pb.Lease:
    request = pb.AcquireLeaseRequest(
        container_id=container_id,
        ttl=Duration(seconds=ttl),
        description="a test",
        wait_timeout=Duration(seconds=wait),
    )
    return (await service.stub.AcquireLease(request, timeout=20)).lease


async def test_a_lease_shuts_others_out_and_lets_its_holder_in(service: Service) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id)
    assert lease.nonce
    assert lease.expire_time.ToSeconds() - time.time() == pytest.approx(30, abs=3)
    for request in (
        pb.SuspendContainerRequest(container_id=container_id),
        pb.AcquireLeaseRequest(container_id=container_id),
    ):
        method = type(request).__name__.removesuffix("Request")
        refused = await failing(getattr(service.stub, method)(request, timeout=9))
        assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "LEASE_HELD")
        assert refused.metadata["expire_time"].startswith("20")
        assert "@" not in refused.message
    mark = await service.mark()
    mine = pb.SuspendContainerRequest(container_id=container_id, lease_nonce=lease.nonce)
    suspended = await service.stub.SuspendContainer(mine, timeout=20)
    assert suspended.container.state == pb.CONTAINER_STATE_SUSPENDED
    # Under the caller's lease none is taken, and none given back.
    assert await service.requests(mark) == ["suspend", "wait"]


async def test_the_late_request_of_a_former_holder_is_refused(service: Service) -> None:
    """The owner is killed in the middle of a suspend, the successor resumes, the request comes."""
    container_id = await service.create()
    former = await acquire(service, container_id, ttl=1)
    successor = await acquire(service, container_id, wait=9)
    assert successor.nonce != former.nonce
    late = pb.SuspendContainerRequest(container_id=container_id, lease_nonce=former.nonce)
    refused = await failing(service.stub.SuspendContainer(late, timeout=9))
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce=successor.nonce)
    await service.stub.ReleaseLease(release, timeout=9)
    refused = await failing(service.stub.SuspendContainer(late, timeout=9))
    assert refused.reason == "LEASE_LOST"
    assert await service.state(container_id) == pb.CONTAINER_STATE_STARTED


async def test_waiting_for_a_lease_ends_when_the_patience_does(service: Service) -> None:
    container_id = await service.create()
    await acquire(service, container_id)
    begun = time.monotonic()
    request = pb.AcquireLeaseRequest(
        container_id=container_id, wait_timeout=Duration(nanos=500_000_000)
    )
    refused = await failing(service.stub.AcquireLease(request, timeout=20))
    assert refused.reason == "LEASE_HELD"
    assert 0.5 <= time.monotonic() - begun < 3


async def test_a_refresh_keeps_the_nonce_and_moves_the_expiry(service: Service) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id, ttl=5)
    request = pb.RefreshLeaseRequest(
        container_id=container_id, lease_nonce=lease.nonce, ttl=Duration(seconds=60)
    )
    refreshed = (await service.stub.RefreshLease(request, timeout=9)).lease
    assert refreshed.nonce == lease.nonce
    assert refreshed.expire_time.ToSeconds() > lease.expire_time.ToSeconds() + 30


async def test_what_is_not_held_cannot_be_refreshed_and_need_not_be_released(
    service: Service,
) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id)
    for nonce in (lease.nonce, lease.nonce, "another"):
        release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce=nonce)
        await service.stub.ReleaseLease(release, timeout=9)
    request = pb.RefreshLeaseRequest(container_id=container_id, lease_nonce=lease.nonce)
    lost = await failing(service.stub.RefreshLease(request, timeout=9))
    assert (lost.code, lost.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")


async def test_anothers_lease_is_not_released(service: Service) -> None:
    container_id = await service.create()
    await acquire(service, container_id)
    release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce="another")
    await service.stub.ReleaseLease(release, timeout=9)
    refused = await failing(
        service.stub.AcquireLease(pb.AcquireLeaseRequest(container_id=container_id), timeout=9)
    )
    assert refused.reason == "LEASE_HELD"
