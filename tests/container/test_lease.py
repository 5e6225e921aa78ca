"""Leases: their holder may change the container, and a late request of a former holder may not."""

from __future__ import annotations

import time

import grpc
from google.protobuf.duration_pb2 import Duration

from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import Service, failing


async def acquire(service: Service, container_id: str, ttl: int = 60, wait: int = 0) -> pb.Lease:
    request = pb.AcquireLeaseRequest(
        container_id=container_id,
        ttl=Duration(seconds=ttl),
        description="a test",
        wait_timeout=Duration(seconds=wait),
    )
    return (await service.stub.AcquireLease(request, timeout=30)).lease


async def test_a_lease_excludes_other_callers_and_admits_its_holder(patient: Service) -> None:
    container_id = await patient.create()
    before = time.time()
    lease = await acquire(patient, container_id)
    assert lease.nonce
    # The provider says whole seconds.
    assert before + 60 - 1 <= lease.expire_time.ToSeconds() <= time.time() + 60
    for request in (
        pb.SuspendContainerRequest(container_id=container_id),
        pb.AcquireLeaseRequest(container_id=container_id),
    ):
        method = type(request).__name__.removesuffix("Request")
        rejected = await failing(getattr(patient.stub, method)(request, timeout=30))
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "LEASE_HELD")
        assert rejected.metadata["expire_time"].startswith("20")
        assert "@" not in rejected.message
    mark = await patient.mark()
    mine = pb.SuspendContainerRequest(container_id=container_id, lease_nonce=lease.nonce)
    suspended = await patient.stub.SuspendContainer(mine, timeout=30)
    assert suspended.container.state == pb.CONTAINER_STATE_SUSPENDED
    # Under the caller's lease, the patient neither acquires nor releases one.
    assert await patient.requests(mark) == ["suspend", "wait"]


async def test_a_late_request_of_a_former_holder_is_rejected(service: Service) -> None:
    """The owner of a suspend dies, its successor resumes, and then the suspend request arrives."""
    container_id = await service.create()
    former = await acquire(service, container_id, ttl=1)
    successor = await acquire(service, container_id, wait=25)
    assert successor.nonce != former.nonce
    late = pb.SuspendContainerRequest(container_id=container_id, lease_nonce=former.nonce)
    rejected = await failing(service.stub.SuspendContainer(late, timeout=30))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")
    release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce=successor.nonce)
    await service.stub.ReleaseLease(release, timeout=30)
    rejected = await failing(service.stub.SuspendContainer(late, timeout=30))
    assert rejected.reason == "LEASE_LOST"
    assert await service.state(container_id) == pb.CONTAINER_STATE_STARTED


async def test_waiting_for_a_lease_ends_at_the_wait_timeout(service: Service) -> None:
    container_id = await service.create()
    await acquire(service, container_id)
    began = time.monotonic()
    request = pb.AcquireLeaseRequest(
        container_id=container_id, wait_timeout=Duration(nanos=500_000_000)
    )
    rejected = await failing(service.stub.AcquireLease(request, timeout=30))
    assert rejected.reason == "LEASE_HELD"
    assert time.monotonic() - began >= 0.5


async def test_a_refresh_keeps_the_nonce_and_moves_the_expiry(service: Service) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id, ttl=30)
    request = pb.RefreshLeaseRequest(
        container_id=container_id, lease_nonce=lease.nonce, ttl=Duration(seconds=90)
    )
    refreshed = (await service.stub.RefreshLease(request, timeout=30)).lease
    assert refreshed.nonce == lease.nonce
    assert refreshed.expire_time.ToSeconds() > lease.expire_time.ToSeconds() + 30


async def test_a_lost_lease_cannot_be_refreshed_and_its_release_succeeds(
    service: Service,
) -> None:
    container_id = await service.create()
    lease = await acquire(service, container_id)
    for nonce in (lease.nonce, lease.nonce, "another"):
        release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce=nonce)
        await service.stub.ReleaseLease(release, timeout=30)
    request = pb.RefreshLeaseRequest(container_id=container_id, lease_nonce=lease.nonce)
    lost = await failing(service.stub.RefreshLease(request, timeout=30))
    assert (lost.code, lost.reason) == (grpc.StatusCode.ABORTED, "LEASE_LOST")


async def test_the_lease_of_another_caller_is_not_released(service: Service) -> None:
    container_id = await service.create()
    await acquire(service, container_id)
    release = pb.ReleaseLeaseRequest(container_id=container_id, lease_nonce="another")
    await service.stub.ReleaseLease(release, timeout=30)
    rejected = await failing(
        service.stub.AcquireLease(pb.AcquireLeaseRequest(container_id=container_id), timeout=30)
    )
    assert rejected.reason == "LEASE_HELD"
