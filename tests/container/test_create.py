"""One name is never two containers, whatever answers are lost, however many callers there are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import Service, failing, serving, until

if TYPE_CHECKING:
    from local.fly.emulator import Emulator

SPEC = pb.ContainerSpec(image="roost/base", env={"A": "1"})
OTHER_SPEC = pb.ContainerSpec(image="roost/base", env={"A": "2"})


def request(spec: pb.ContainerSpec = SPEC, **labels: str) -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(
        name="roost-wren-1", spec=spec, labels={"roost_session": "wren"} | labels
    )


async def test_fifty_concurrent_calls_are_one_create(service: Service) -> None:
    # Long enough for all fifty calls to arrive, on a busy machine too.
    await service.admin.set_fault("slow_after", action="create", delay_ms=4000)
    answers = await asyncio.gather(
        *(service.stub.CreateContainer(request(), timeout=30) for _ in range(50))
    )
    assert len({answer.container.container_id for answer in answers}) == 1
    assert sum(not answer.adopted for answer in answers) == 1
    assert await service.committed("create") == 1
    assert await service.requests() == ["create"]


async def test_concurrent_calls_of_two_processes_are_one_create(service: Service) -> None:
    async with serving(service.emulator) as other:
        answers = await asyncio.gather(
            *(each.stub.CreateContainer(request(), timeout=30) for each in (service, other) * 5)
        )
    assert len({answer.container.container_id for answer in answers}) == 1
    assert await service.committed("create") == 1


async def test_a_repeated_create_adopts_the_container_with_one_read(service: Service) -> None:
    first = await service.stub.CreateContainer(request(), timeout=20)
    mark = await service.mark()
    again = await service.stub.CreateContainer(request(), timeout=20)
    assert again.adopted
    assert again.container.container_id == first.container.container_id
    assert await service.requests(mark) == ["create", "get"]


async def test_a_different_spec_for_the_same_name_is_rejected(service: Service) -> None:
    await service.stub.CreateContainer(request(), timeout=20)
    rejected = await failing(service.stub.CreateContainer(request(OTHER_SPEC), timeout=20))
    assert rejected.code is grpc.StatusCode.INVALID_ARGUMENT
    assert rejected.reason == "REQUEST_ID_REUSED"
    assert rejected.metadata["name"] == "roost-wren-1"
    assert await service.committed("create") == 1


async def test_concurrent_calls_with_two_specs_get_an_answer_each(service: Service) -> None:
    calls = [
        service.stub.CreateContainer(request(spec), timeout=20)
        for spec in (SPEC, OTHER_SPEC, SPEC, OTHER_SPEC)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    rejected = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(rejected) == 2
    assert await service.committed("create") == 1


async def test_different_labels_still_adopt_the_container(service: Service) -> None:
    first = await service.stub.CreateContainer(request(), timeout=20)
    again = await service.stub.CreateContainer(request(extra="label"), timeout=20)
    assert again.container.container_id == first.container.container_id


@pytest.mark.parametrize("answer", ["408", "504", "close"])
async def test_after_a_lost_answer_the_container_is_found(service: Service, answer: Any) -> None:
    await service.admin.set_fault("answer_lost", action="create", answer=answer)
    created = await service.stub.CreateContainer(request(), timeout=20)
    assert created.adopted
    assert await service.committed("create") == 1
    assert await service.requests() == ["create", "list"]


async def test_a_lost_answer_with_lagging_reads_is_one_create(emulator: Emulator) -> None:
    # The first list begins while reads lag, on a busy machine too, and the second one after that.
    async with serving(emulator, lag_window=2.0) as service:
        await service.admin.set_fault("answer_lost", action="create", answer="close")
        await service.admin.set_fault("stale_read", delay_ms=1500)
        created = await service.stub.CreateContainer(request(), timeout=20)
        assert created.adopted
        assert await service.committed("create") == 1
        # The first list lacks the container, which does not prove its absence.
        assert await service.requests() == ["create", "list", "list"]


async def test_a_create_that_did_not_happen_is_posted_again(service: Service) -> None:
    await service.admin.set_fault("server_error", action="create", status=502)
    created = await service.stub.CreateContainer(request(), timeout=20)
    assert not created.adopted
    assert await service.committed("create") == 1
    assert await service.requests() == ["create", "list", "list", "create"]


async def test_a_deadline_too_short_to_check_is_unavailable_and_a_retry_adopts(
    service: Service,
) -> None:
    await service.admin.set_fault("answer_lost", action="create", answer="close")
    await service.admin.set_fault("stale_read", delay_ms=600)
    late = await failing(service.stub.CreateContainer(request(), timeout=0.15))
    assert (late.code, late.reason) == (grpc.StatusCode.UNAVAILABLE, "PROVIDER_UNAVAILABLE")
    assert late.retry_seconds
    async with serving(service.emulator) as successor:
        created = await successor.stub.CreateContainer(request(), timeout=20)
    assert created.adopted
    assert await service.committed("create") == 1


async def test_cancelling_the_first_caller_does_not_end_the_create_of_the_others(
    service: Service,
) -> None:
    await service.admin.set_fault("slow_before", action="create", delay_ms=300)
    leader = service.stub.CreateContainer(request(), timeout=20)
    leading = asyncio.ensure_future(leader)
    await until(lambda: service.asked("create"))
    joined = asyncio.ensure_future(service.stub.CreateContainer(request(), timeout=20))
    leader.cancel()
    assert (await joined).container.container_id
    await asyncio.wait([leading])
    assert await service.requests() == ["create"]


async def test_a_capacity_error_says_when_to_retry(service: Service) -> None:
    await service.admin.set_fault("capacity")
    rejected = await failing(service.stub.CreateContainer(request(), timeout=20))
    assert rejected.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert rejected.reason == "PROVIDER_CAPACITY"
    assert rejected.retry_seconds
    assert await service.requests() == ["create"]


async def test_an_unknown_app_is_rejected(service: Service) -> None:
    wanted = request()
    wanted.app = "no-such-app"
    rejected = await failing(service.stub.CreateContainer(wanted, timeout=20))
    assert rejected.code is grpc.StatusCode.FAILED_PRECONDITION
    assert rejected.reason == "PROVIDER_REFUSED"
