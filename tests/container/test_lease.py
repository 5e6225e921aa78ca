"""Leases: their holder may change the container, and a late request of a former holder may not."""

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


async def test_a_lease_excludes_other_callers_and_admits_its_holder(service: Service) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id)
    assert lease.nonce
    assert lease.expire_time.ToSeconds() - time.time() == pytest.approx(30, abs=3)
    for request in (
        pb.SuspendContainerRequest(container_id=container_id),
        pb.AcquireLeaseRequest(container_id=container_id),
    ):
        method = type(request).__name__.removesuffix("Request")
        rejected = await failing(getattr(service.stub, method)(request, timeout=9))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "LEASE_HELD")
        assert rejected.metadata["expire_time"].startswith("20")
        assert "@" not in rejected.message
    mark = await service.mark()
    mine = pb.SuspendContainerRequest(container_id=container_id, lease_nonce=lease.nonce)
    suspended = await service.stub.SuspendContainer(mine, timeout=20)
    assert suspended.container.state == pb.CONTAINER_STATE_SUSPENDED
    # Under the caller's lease, the service neither acquires nor releases one.
    assert await service.requests(mark) == ["suspend", "wait"]


async def test_a_late_request_of_a_former_holder_is_rejected(service: Service) -> None:
    """The owner of a suspend dies, its successor resumes, and then the suspend request arrives."""
    container_id = await service.create()
    former = await acquire(service, container_id, ttl=1)
    successor = await acquire(service, container_id, wait=9)
    assert successor.nonce != former.nonce
    late = pb.SuspendContainerRequest(container_id=container_id, lease_nonce=former.nonce)
    rejected = await failing(service.stub.SuspendContainer(late, timeout=9))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce=successor.nonce)
    await service.stub.ReleaseLease(release, timeout=9)
    rejected = await failing(service.stub.SuspendContainer(late, timeout=9))
    assert rejected.reason == "LEASE_LOST"
    assert await service.state(container_id) == pb.CONTAINER_STATE_STARTED


async def test_waiting_for_a_lease_ends_at_the_wait_timeout(service: Service) -> None:
    container_id = await service.create()
    await acquire(service, container_id)
    began = time.monotonic()
    request = pb.AcquireLeaseRequest(
        container_id=container_id, wait_timeout=Duration(nanos=500_000_000)
    )
    rejected = await failing(service.stub.AcquireLease(request, timeout=20))
    assert rejected.reason == "LEASE_HELD"
    assert 0.5 <= time.monotonic() - began < 3


async def test_a_refresh_keeps_the_nonce_and_moves_the_expiry(service: Service) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id, ttl=5)
    request = pb.RefreshLeaseRequest(
        container_id=container_id, lease_nonce=lease.nonce, ttl=Duration(seconds=60)
    )
    refreshed = (await service.stub.RefreshLease(request, timeout=9)).lease
    assert refreshed.nonce == lease.nonce
    assert refreshed.expire_time.ToSeconds() > lease.expire_time.ToSeconds() + 30


async def test_a_lost_lease_cannot_be_refreshed_and_its_release_succeeds(
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


async def test_the_lease_of_another_caller_is_not_released(service: Service) -> None:
    container_id = await service.create()
    await acquire(service, container_id)
    release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce="another")
    await service.stub.ReleaseLease(release, timeout=9)
    rejected = await failing(
        service.stub.AcquireLease(pb.AcquireLeaseRequest(container_id=container_id), timeout=9)
    )
    assert rejected.reason == "LEASE_HELD"
