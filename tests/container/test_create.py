"""One name is never two containers, whatever answers are lost, however many callers there are."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from container_service.containers.create import CreateRequest, Creator
from container_service.containers.deadlines import Deadline
from container_service.containers.model import ContainerSpec
from container_service.fly.client import open_client
from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import APP, LAG_WINDOW, TOKEN, Service, failing, fired, serving, until

SPEC = pb.ContainerSpec(image="roost/base", env={"A": "1"})
OTHER_SPEC = pb.ContainerSpec(image="roost/base", env={"A": "2"})


def request(spec: pb.ContainerSpec = SPEC, **labels: str) -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(
        name="roost-wren-1", spec=spec, labels={"roost_session": "wren"} | labels
    )


async def test_fifty_concurrent_calls_are_one_create(service: Service) -> None:
    """Some may come only after the create, and then adopt the container."""
    fault = await service.admin.set_fault("slow_after", action="create", delay_ms=60_000)
    calls = [service.stub.CreateContainer(request(), timeout=30) for _ in range(50)]
    await fired(service, fault)
    await service.admin.end_fault(fault)
    answers = await asyncio.gather(*calls)
    assert len({answer.container.container_id for answer in answers}) == 1
    assert sum(not answer.adopted for answer in answers) == 1
    assert await service.committed("create") == 1


async def test_calls_that_come_during_a_create_cost_the_provider_nothing(service: Service) -> None:
    """Also if the first of them is cancelled."""
    fault = await service.admin.set_fault("slow_before", action="create", delay_ms=60_000)
    wanted = CreateRequest(APP, "roost-wren-1", ContainerSpec("roost/base"), {})
    async with open_client(service.emulator.api_url, TOKEN) as (fly, _):
        creator = Creator(fly, LAG_WINDOW)
        first, *joined = [
            asyncio.create_task(creator.create(wanted, Deadline.after(30))) for _ in range(50)
        ]
        await fired(service, fault)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await service.admin.end_fault(fault)
        results = await asyncio.gather(*joined)
        await creator.aclose()
    assert len({result.container.ref for result in results}) == 1
    assert all(result.adopted for result in results)
    assert await service.requests() == ["create"]


async def test_concurrent_calls_of_two_processes_are_one_create(service: Service) -> None:
    async with serving(service.emulator) as other:
        answers = await asyncio.gather(
            *(each.stub.CreateContainer(request(), timeout=30) for each in (service, other) * 5)
        )
    assert len({answer.container.container_id for answer in answers}) == 1
    assert await service.committed("create") == 1


async def test_a_repeated_create_adopts_the_container_with_one_read(service: Service) -> None:
    first = await service.stub.CreateContainer(request(), timeout=30)
    mark = await service.mark()
    again = await service.stub.CreateContainer(request(), timeout=30)
    assert again.adopted
    assert again.container.container_id == first.container.container_id
    assert await service.requests(mark) == ["create", "get"]


async def test_a_different_spec_for_the_same_name_is_rejected(service: Service) -> None:
    await service.stub.CreateContainer(request(), timeout=30)
    rejected = await failing(service.stub.CreateContainer(request(OTHER_SPEC), timeout=30))
    assert rejected.code is grpc.StatusCode.INVALID_ARGUMENT
    assert rejected.reason == "REQUEST_ID_REUSED"
    assert rejected.metadata["name"] == "roost-wren-1"
    assert await service.committed("create") == 1


async def test_concurrent_calls_with_two_specs_get_an_answer_each(service: Service) -> None:
    calls = [
        service.stub.CreateContainer(request(spec), timeout=30)
        for spec in (SPEC, OTHER_SPEC, SPEC, OTHER_SPEC)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    rejected = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(rejected) == 2
    assert await service.committed("create") == 1


async def test_different_labels_still_adopt_the_container(service: Service) -> None:
    first = await service.stub.CreateContainer(request(), timeout=30)
    again = await service.stub.CreateContainer(request(extra="label"), timeout=30)
    assert again.container.container_id == first.container.container_id


@pytest.mark.parametrize("answer", ["408", "504", "close"])
async def test_after_a_lost_answer_the_container_is_found(service: Service, answer: Any) -> None:
    await service.admin.set_fault("answer_lost", action="create", answer=answer)
    created = await service.stub.CreateContainer(request(), timeout=30)
    assert created.adopted
    assert await service.committed("create") == 1
    assert await service.requests() == ["create", "list"]


async def test_a_lost_answer_with_lagging_reads_is_one_create(service: Service) -> None:
    admin = service.admin
    await admin.set_fault("answer_lost", action="create", answer="close")
    stale = await admin.set_fault("stale_read", delay_ms=60_000)
    # Reads lag until the second list has come.
    await admin.set_fault("slow_before", action="list", delay_ms=0)
    second_list = await admin.set_fault("slow_before", action="list", delay_ms=60_000)
    creating = asyncio.ensure_future(service.stub.CreateContainer(request(), timeout=30))
    await fired(service, second_list)
    await admin.end_fault(stale)
    await admin.end_fault(second_list)
    assert (await creating).adopted
    assert await service.committed("create") == 1
    # The first list lacks the container, which does not prove its absence.
    assert await service.requests() == ["create", "list", "list"]


async def test_a_create_that_did_not_happen_is_posted_again(service: Service) -> None:
    await service.admin.set_fault("server_error", action="create", status=502)
    created = await service.stub.CreateContainer(request(), timeout=30)
    assert not created.adopted
    assert await service.committed("create") == 1
    assert await service.requests() == ["create", "list", "list", "create"]


async def test_a_deadline_too_short_to_check_is_unavailable_and_a_retry_adopts(
    service: Service,
) -> None:
    await service.admin.set_fault("answer_lost", action="create", answer="close")
    stale = await service.admin.set_fault("stale_read", delay_ms=60_000)
    # The second look would come after a minute.
    async with serving(service.emulator, lag_window=60.0) as hurried:
        late = await failing(hurried.stub.CreateContainer(request(), timeout=30))
    await service.admin.end_fault(stale)
    assert (late.code, late.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert late.retry_seconds
    async with serving(service.emulator) as successor:
        created = await successor.stub.CreateContainer(request(), timeout=30)
    assert created.adopted
    assert await service.committed("create") == 1


async def test_cancelling_the_first_caller_does_not_end_the_create_of_the_others(
    service: Service,
) -> None:
    fault = await service.admin.set_fault("slow_before", action="create", delay_ms=60_000)
    leader = service.stub.CreateContainer(request(), timeout=30)
    leading = asyncio.ensure_future(leader)
    await until(lambda: service.asked("create"))
    joined = asyncio.ensure_future(service.stub.CreateContainer(request(), timeout=30))
    leader.cancel()
    await asyncio.wait([leading])
    await service.admin.end_fault(fault)
    assert (await joined).container.container_id
    assert await service.committed("create") == 1


async def test_a_capacity_error_says_when_to_retry(service: Service) -> None:
    await service.admin.set_fault("capacity")
    rejected = await failing(service.stub.CreateContainer(request(), timeout=30))
    assert rejected.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rejected.reason == "PROVIDER_CAPACITY"
    assert rejected.retry_seconds
    assert await service.requests() == ["create"]


async def test_an_unknown_app_is_rejected(service: Service) -> None:
    wanted = request()
    wanted.app = "no-such-app"
    rejected = await failing(service.stub.CreateContainer(wanted, timeout=30))
    assert rejected.code is grpc.StatusCode.FAILED_PRECONDITION
    assert rejected.reason == "PROVIDER_REFUSED"
