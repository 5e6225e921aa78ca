"""The answers when the provider fails, is slow, or does not do what it accepted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from container_service.containers.deadlines import Deadline
from container_service.containers.errors import OutcomeUnknown
from container_service.containers.lease import Leases
from container_service.containers.model import ContainerRef
from container_service.containers.stop import Stopper
from container_service.containers.wait import Waiter
from container_service.fly.client import open_client
from container_service.rpc.status import row_of, status_of
from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import (
    APP,
    LAG_WINDOW,
    TOKEN,
    Service,
    failing,
    fired,
    read_failure,
    serving,
    until,
)


def suspending(service: Service, container_id: str, timeout: float = 20) -> Any:
    request = pb.SuspendContainerRequest(container_id=container_id)
    return service.stub.SuspendContainer(request, timeout=timeout)


def getting(service: Service, container_id: str, timeout: float = 9) -> Any:
    return service.stub.GetContainer(
        pb.GetContainerRequest(container_id=container_id), timeout=timeout
    )


async def test_a_failed_suspend_returns_started(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("suspend_fails", machine=container_id)
    began = time.monotonic()
    answer = await suspending(service, container_id)
    assert answer.container.state == pb.CONTAINER_STATE_STARTED
    assert time.monotonic() - began > LAG_WINDOW
    # The lease of the call is released too.
    assert (await suspending(service, container_id)).container.state == pb.CONTAINER_STATE_SUSPENDED


async def test_a_suspend_that_ends_in_a_stop_returns_stopped(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("suspend_stops", machine=container_id)
    answer = await suspending(service, container_id)
    assert answer.container.state == pb.CONTAINER_STATE_STOPPED


@pytest.mark.parametrize("answer", ["408", "close"])
async def test_a_suspend_whose_answer_is_lost_is_observed(service: Service, answer: Any) -> None:
    container_id = await service.create()
    await service.admin.set_fault("answer_lost", action="suspend", answer=answer)
    mark = await service.mark()
    seen = await suspending(service, container_id)
    assert seen.container.state == pb.CONTAINER_STATE_SUSPENDED
    assert (await service.requests(mark)).count("suspend") == 1


async def test_a_suspend_not_observed_in_time_is_outcome_unknown(service: Service) -> None:
    """By the deadline of the use case. That of the caller is so little later that on a busy machine
    the error comes after it.
    """
    container_id = await service.create()
    await service.admin.set_fault("slow_before", action="wait", delay_ms=60_000)
    async with open_client(service.emulator.api_url, TOKEN) as (fly, _):
        leases = Leases(fly)
        stopper = Stopper(fly, leases, Waiter(fly, LAG_WINDOW))
        with pytest.raises(OutcomeUnknown, match="not observed before the deadline") as unknown:
            await stopper.suspend(ContainerRef(APP, container_id), "", Deadline.after(4))
        await leases.aclose()
    row, status = row_of(unknown.value), status_of(unknown.value)
    assert (row.code, row.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in status.details)


async def test_after_a_lost_answer_the_own_lease_is_recognised(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("answer_lost", action="lease", answer="close")
    mark = await service.mark()
    seen = await suspending(service, container_id)
    assert seen.container.state == pb.CONTAINER_STATE_SUSPENDED
    assert (await service.requests(mark))[:3] == ["lease", "lease_get", "suspend"]


async def test_a_cancelled_call_releases_its_lease(service: Service) -> None:
    container_id = await service.create()
    fault = await service.admin.set_fault("slow_after", action="suspend", delay_ms=60_000)
    call = suspending(service, container_id)
    gone = asyncio.ensure_future(call)
    await fired(service, fault)
    call.cancel()
    await asyncio.wait([gone])
    await until(lambda: answered(service, "lease_release"))
    acquire = pb.AcquireLeaseRequest(container_id=container_id)
    assert (await service.stub.AcquireLease(acquire, timeout=30)).lease.nonce


async def answered(service: Service, action: str) -> bool:
    """Whether the provider has answered such a call."""
    requests = await service.admin.requests()
    return any(one.action == action and one.status is not None for one in requests)


@pytest.mark.parametrize("answer", ["408", "close"])
async def test_a_start_whose_answer_is_lost_is_observed(service: Service, answer: Any) -> None:
    container_id = await service.create()
    await suspending(service, container_id)
    await service.admin.set_fault("answer_lost", action="start", answer=answer)
    request = pb.ResumeContainerRequest(container_id=container_id)
    resumed = await service.stub.ResumeContainer(request, timeout=30)
    assert resumed.container.state == pb.CONTAINER_STATE_STARTED
    assert resumed.boot_id
    assert await service.committed("start") == 1


async def test_a_start_that_did_not_happen_is_requested_again(service: Service) -> None:
    container_id = await service.create()
    await suspending(service, container_id)
    await service.admin.set_fault("server_error", action="start")
    request = pb.ResumeContainerRequest(container_id=container_id)
    resumed = await service.stub.ResumeContainer(request, timeout=30)
    assert resumed.container.state == pb.CONTAINER_STATE_STARTED
    assert await service.committed("start") == 1


async def test_a_full_host_is_a_capacity_error_that_says_when_to_retry(service: Service) -> None:
    container_id = await service.create()
    await suspending(service, container_id)
    await service.admin.set_fault("capacity", action="start")
    request = pb.ResumeContainerRequest(container_id=container_id)
    rejected = await failing(service.stub.ResumeContainer(request, timeout=30))
    assert rejected.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rejected.reason == "PROVIDER_CAPACITY"
    assert rejected.retry_seconds


@pytest.mark.parametrize(
    "lost",
    [("stop", "StopContainer"), ("destroy", "DestroyContainer"), ("cordon", "CordonContainer")],
)
async def test_a_lost_answer_is_a_success_where_the_target_state_is_observed(
    service: Service, lost: tuple[str, str]
) -> None:
    action, method = lost
    container_id = await service.create()
    await service.admin.set_fault("answer_lost", action=action, answer="close")
    message: Any = getattr(pb, f"{method}Request")(container_id=container_id)
    if action == "destroy":
        message.force = True
    await getattr(service.stub, method)(message, timeout=30)
    assert await service.committed(action) == 1


async def test_exec_is_never_sent_twice(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("exec_fails", status=503)
    request = pb.ExecContainerRequest(container_id=container_id, command=["true"])
    failed = await failing(service.stub.ExecContainer(request, timeout=30))
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert (await service.requests()).count("exec") == 1


async def test_a_read_is_retried_after_a_short_failure(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("server_error", action="get", times=2)
    assert (await getting(service, container_id)).container.state == pb.CONTAINER_STATE_STARTED


async def test_a_plain_text_404_of_a_proxy_is_not_not_found(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault(
        "server_error", action="get", status=404, body="no such host", times=None
    )
    unclear = await failing(getting(service, container_id))
    assert (unclear.code, unclear.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")


async def test_an_outage_is_unavailable_with_a_retry_time_and_ends(
    service: Service,
) -> None:
    container_id = await service.create()
    await service.admin.set_fault("unavailable", answer="close")
    calls = (
        getting(service, container_id),
        service.stub.ListContainers(pb.ListContainersRequest(), timeout=30),
        suspending(service, container_id),
    )
    for call in calls:
        failed = await failing(call)
        assert failed.code is grpc.StatusCode.UNAVAILABLE
        assert failed.reason == "PROVIDER_UNAVAILABLE"
        assert failed.retry_seconds
    await service.admin.clear_faults()
    assert (await getting(service, container_id)).container.state == pb.CONTAINER_STATE_STARTED


async def test_a_rate_limited_call_is_retried(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("rate_limited", action="get")
    assert (await getting(service, container_id)).container.state == pb.CONTAINER_STATE_STARTED
    await service.admin.set_fault("rate_limited", action="exec", times=None)
    request = pb.ExecContainerRequest(container_id=container_id, command=["true"])
    # With a hundredth of Fly's rate the next call may be sent in 100 s: after the deadline.
    async with serving(service.emulator, fly_rate_share=0.01) as slow:
        rejected = await failing(slow.stub.ExecContainer(request, timeout=30))
    assert rejected.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rejected.reason == "PROVIDER_RATE_LIMITED"
    assert rejected.retry_seconds


async def test_the_rate_limiter_stays_within_the_limits_of_the_provider(service: Service) -> None:
    """With half of Fly's rate. Calls that a busy machine delays on their way come closer together
    than they were sent: at the whole rate, a delay of 50 ms can be enough for a 429.
    """
    container_id = await service.create()
    async with serving(service.emulator, fly_rate_share=0.5) as half:
        began = time.monotonic()
        await asyncio.gather(*(getting(half, container_id, timeout=30) for _ in range(12)))
        # Five at once, then one each 0.4 s. The provider would reject two of twelve at once.
        assert time.monotonic() - began >= 2.7
    assert all(request.status != 429 for request in await service.admin.requests())


async def test_a_call_that_would_wait_past_its_deadline_fails_at_once(service: Service) -> None:
    """With a hundredth of Fly's rate: the first call may be sent, and the next one in 100 s."""
    container_id = await service.create()
    request = pb.ExecContainerRequest(container_id=container_id, command=["true"])
    async with serving(service.emulator, fly_rate_share=0.01) as slow:
        began = time.monotonic()
        calls = [slow.stub.ExecContainer(request, timeout=50) for _ in range(3)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 25
    rejected = [read_failure(each) for each in answers if isinstance(each, grpc.aio.AioRpcError)]
    assert [each.reason for each in rejected] == ["PROVIDER_RATE_LIMITED"] * 2


async def test_a_vanished_machine_is_not_found_and_not_listed(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("machine_vanished", machine=container_id)
    missing = await failing(getting(service, container_id))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "CONTAINER_NOT_FOUND")
    listed = await service.stub.ListContainers(pb.ListContainersRequest(), timeout=30)
    assert not listed.containers
    for method in ("ResumeContainer", "SuspendContainer", "StopContainer"):
        request = getattr(pb, f"{method}Request")(container_id=container_id)
        failed = await failing(getattr(service.stub, method)(request, timeout=30))
        assert failed.reason == "CONTAINER_NOT_FOUND"
    destroy = pb.DestroyContainerRequest(container_id=container_id)
    assert not (await service.stub.DestroyContainer(destroy, timeout=30)).HasField("container")


async def test_a_slow_answer_is_cut_off_by_the_callers_deadline(service: Service) -> None:
    container_id = await service.create()
    await service.admin.set_fault("slow_after", action="get", delay_ms=60_000, times=None)
    began = time.monotonic()
    failed = await failing(getting(service, container_id, timeout=0.6))
    assert failed.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    # A call of the service itself is given up after 30 s.
    assert time.monotonic() - began < 20


async def test_a_rejected_token_names_the_variable_to_check(service: Service) -> None:
    async with serving(service.emulator, fly_token="another") as stranger:
        request = pb.ListContainersRequest()
        rejected = await failing(stranger.stub.ListContainers(request, timeout=30))
    assert rejected.code is grpc.StatusCode.FAILED_PRECONDITION
    assert rejected.reason == "PROVIDER_REFUSED"
    assert "FLY_API_TOKEN" in rejected.message
    assert "another" not in rejected.message
