"""One name is never two containers: whatever answers are lost, whoever asks at once."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import Service, failing, serving, until

SPEC = pb.ContainerSpec(image="roost/base", env={"A": "1"})
OTHER_SPEC = pb.ContainerSpec(image="roost/base", env={"A": "2"})


def request(spec: pb.ContainerSpec = SPEC, **labels: str) -> pb.CreateContainerRequest:
    return pb.CreateContainerRequest(
        name="roost-wren-1", spec=spec, labels={"roost_session": "wren"} | labels
    )


async def test_fifty_at_once_are_one_create(service: Service) -> None:
    # Long enough for all fifty to arrive, also on a busy machine.
    await service.admin.set_fault("slow_after", action="create", delay_ms=4000)
    answers = await asyncio.gather(
        *(service.stub.CreateContainer(request(), timeout=30) for _ in range(50))
    )
    assert len({answer.container.container_id for answer in answers}) == 1
    assert sum(not answer.adopted for answer in answers) == 1
    assert await service.committed("create") == 1
    assert await service.requests() == ["create"]


async def test_two_processes_at_once_are_one_create(service: Service) -> None:
    async with serving(service.emulator) as other:
        answers = await asyncio.gather(
            *(each.stub.CreateContainer(request(), timeout=30) for each in (service, other) * 5)
        )
    assert len({answer.container.container_id for answer in answers}) == 1
    assert await service.committed("create") == 1


async def test_the_same_again_is_adopted_with_one_read(service: Service) -> None:
    first = await service.stub.CreateContainer(request(), timeout=20)
    mark = await service.mark()
    again = await service.stub.CreateContainer(request(), timeout=20)
    assert again.adopted
    assert again.container.container_id == first.container.container_id
    assert await service.requests(mark) == ["create", "get"]


async def test_another_spec_under_the_name_is_refused(service: Service) -> None:
    await service.stub.CreateContainer(request(), timeout=20)
    refused = await failing(service.stub.CreateContainer(request(OTHER_SPEC), timeout=20))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.reason == "REQUEST_ID_REUSED"
    assert refused.metadata["name"] == "roost-wren-1"
    assert await service.committed("create") == 1


async def test_at_once_each_spec_gets_its_own_answer(service: Service) -> None:
    calls = [
        service.stub.CreateContainer(request(spec), timeout=20)
        for spec in (SPEC, OTHER_SPEC, SPEC, OTHER_SPEC)
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(refused) == 2
    assert await service.committed("create") == 1


async def test_other_labels_under_the_name_still_find_it(service: Service) -> None:
    first = await service.stub.CreateContainer(request(), timeout=20)
    again = await service.stub.CreateContainer(request(extra="label"), timeout=20)
    assert again.container.container_id == first.container.container_id


@pytest.mark.parametrize("answer", ["408", "504", "close"])
async def test_an_answer_that_was_lost_is_found_again(service: Service, answer: Any) -> None:
    await service.admin.set_fault("answer_lost", action="create", answer=answer)
    created = await service.stub.CreateContainer(request(), timeout=20)
    assert created.adopted
    assert await service.committed("create") == 1
    assert await service.requests() == ["create", "list"]


async def test_an_answer_lost_and_reads_that_lag_are_one_create(service: Service) -> None:
    await service.admin.set_fault("answer_lost", action="create", answer="close")
    await service.admin.set_fault("stale_read", delay_ms=100)
    created = await service.stub.CreateContainer(request(), timeout=20)
    assert created.adopted
    assert await service.committed("create") == 1
    # Not in the first listing, and not believed to be absent for it.
    assert await service.requests() == ["create", "list", "list"]


async def test_what_was_never_created_is_posted_again(service: Service) -> None:
    await service.admin.set_fault("server_error", action="create", status=502)
    created = await service.stub.CreateContainer(request(), timeout=20)
    assert not created.adopted
    assert await service.committed("create") == 1
    assert await service.requests() == ["create", "list", "list", "create"]


async def test_too_little_time_to_know_is_unavailable_and_the_next_try_adopts(
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


async def test_a_caller_that_goes_away_does_not_end_it_for_those_who_joined(
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


async def test_no_room_is_said_with_a_time_to_come_back(service: Service) -> None:
    await service.admin.set_fault("capacity")
    refused = await failing(service.stub.CreateContainer(request(), timeout=20))
    assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refused.reason == "PROVIDER_CAPACITY"
    assert refused.retry_seconds
    assert await service.requests() == ["create"]


async def test_an_app_that_is_not_there_is_refused(service: Service) -> None:
    wanted = request()
    wanted.app = "no-such-app"
    refused = await failing(service.stub.CreateContainer(wanted, timeout=20))
    assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
    assert refused.reason == "PROVIDER_REFUSED"
