"""Each RPC over a real emulator: its answer, and its calls to the provider."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from local.fly.emulator import serve
from local.fly.settings import Settings
from roost.container.v1 import container_service_pb2 as pb
from tests.container.harness import (
    APP,
    TOKEN,
    Service,
    failing,
    fired,
    http_to,
    make_app,
    serving,
    until,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


async def suspend(service: Service, container_id: str) -> pb.Container:
    request = pb.SuspendContainerRequest(container_id=container_id)
    return (await service.stub.SuspendContainer(request, timeout=30)).container


async def test_a_created_container_shows_what_it_was_created_with(service: Service) -> None:
    request = pb.CreateContainerRequest(
        name="roost-wren-1",
        spec=pb.ContainerSpec(image="roost/base"),
        labels={"roost_session": "wren", "roost_generation": "1"},
    )
    mark = await service.mark()
    created = await service.stub.CreateContainer(request, timeout=30)
    assert await service.requests(mark) == ["create"]
    assert not created.adopted
    container = created.container
    assert container.state == pb.CONTAINER_STATE_CREATED
    assert (container.app, container.name) == ("birds", "roost-wren-1")
    assert dict(container.labels) == {"roost_session": "wren", "roost_generation": "1"}
    assert len(container.spec_hash) == 64
    assert container.host_reachable
    assert container.HasField("create_time")


async def test_start_waits_for_the_launch_and_returns_the_boot_id(service: Service) -> None:
    request = pb.CreateContainerRequest(
        name="roost-wren-1", spec=pb.ContainerSpec(image="roost/base")
    )
    created = await service.stub.CreateContainer(request, timeout=30)
    start = pb.StartContainerRequest(container_id=created.container.container_id)
    started = await service.stub.StartContainer(start, timeout=30)
    assert started.container.state == pb.CONTAINER_STATE_STARTED
    assert len(started.boot_id) == 36


async def test_starting_a_running_container_changes_nothing(patient: Service) -> None:
    container_id = await patient.create()
    mark = await patient.mark()
    request = pb.StartContainerRequest(container_id=container_id)
    first = await patient.stub.StartContainer(request, timeout=30)
    assert await patient.requests(mark) == ["start", "wait", "exec"]
    again = await patient.stub.StartContainer(request, timeout=30)
    assert again.boot_id == first.boot_id


async def test_resume_proves_that_memory_survived(patient: Service) -> None:
    container_id = await patient.create()
    start = pb.StartContainerRequest(container_id=container_id)
    before = await patient.stub.StartContainer(start, timeout=30)
    mark = await patient.mark()
    assert (await suspend(patient, container_id)).state == pb.CONTAINER_STATE_SUSPENDED
    assert await patient.requests(mark) == ["lease", "suspend", "wait", "lease_release"]

    mark = await patient.mark()
    request = pb.ResumeContainerRequest(container_id=container_id, expected_boot_id=before.boot_id)
    resumed = await patient.stub.ResumeContainer(request, timeout=30)
    assert resumed.memory_preserved == pb.MEMORY_PRESERVED_YES
    assert resumed.boot_id == before.boot_id
    assert "boot id" in resumed.evidence
    assert resumed.container.state == pb.CONTAINER_STATE_STARTED
    assert await patient.requests(mark) == ["start", "wait", "exec"]


async def test_a_silent_cold_boot_is_memory_not_preserved(service: Service) -> None:
    container_id = await service.create()
    start = pb.StartContainerRequest(container_id=container_id)
    before = await service.stub.StartContainer(start, timeout=30)
    await suspend(service, container_id)
    await service.admin.set_fault("snapshot_dropped", machine=container_id)
    request = pb.ResumeContainerRequest(container_id=container_id, expected_boot_id=before.boot_id)
    resumed = await service.stub.ResumeContainer(request, timeout=30)
    assert resumed.memory_preserved == pb.MEMORY_PRESERVED_NO
    assert resumed.boot_id not in ("", before.boot_id)
    assert resumed.container.state == pb.CONTAINER_STATE_STARTED


@pytest.mark.parametrize("options", [{"status": 500}, {"exit_code": 1}])
async def test_a_guest_that_does_not_answer_is_memory_unknown(
    service: Service, options: dict[str, int]
) -> None:
    container_id = await service.create()
    await suspend(service, container_id)
    if "status" in options:
        await service.admin.set_fault("exec_fails", times=None, status=options["status"])
    else:
        await service.admin.set_fault("exec_fails", times=None, exit_code=options["exit_code"])
    mark = await service.mark()
    request = pb.ResumeContainerRequest(container_id=container_id, expected_boot_id="a-boot-id")
    resumed = await service.stub.ResumeContainer(request, timeout=30)
    assert resumed.memory_preserved == pb.MEMORY_PRESERVED_UNKNOWN
    assert resumed.boot_id == ""
    assert (await service.requests(mark)).count("exec") == 1


async def test_without_an_expected_boot_id_memory_is_unknown(service: Service) -> None:
    container_id = await service.create()
    request = pb.ResumeContainerRequest(container_id=container_id)
    resumed = await service.stub.ResumeContainer(request, timeout=30)
    assert resumed.memory_preserved == pb.MEMORY_PRESERVED_UNKNOWN
    assert resumed.boot_id


async def test_suspending_a_suspended_container_succeeds(service: Service) -> None:
    container_id = await service.create()
    await suspend(service, container_id)
    assert (await suspend(service, container_id)).state == pb.CONTAINER_STATE_SUSPENDED
    assert await service.committed("suspend") == 1


async def test_suspending_a_stopped_container_returns_stopped(service: Service) -> None:
    container_id = await service.create()
    await service.stub.StopContainer(pb.StopContainerRequest(container_id=container_id), timeout=30)
    assert (await suspend(service, container_id)).state == pb.CONTAINER_STATE_STOPPED


async def test_stop_costs_a_lease_and_a_wait_and_can_be_repeated(
    patient: Service,
) -> None:
    container_id = await patient.create()
    request = pb.StopContainerRequest(container_id=container_id, timeout=Duration(seconds=2))
    mark = await patient.mark()
    for _ in range(2):
        stopped = await patient.stub.StopContainer(request, timeout=30)
        assert stopped.container.state == pb.CONTAINER_STATE_STOPPED
    assert await patient.requests(mark) == ["lease", "stop", "wait", "lease_release"] * 2
    assert await patient.committed("stop") == 1


async def test_stopping_a_suspended_container_drops_its_memory(service: Service) -> None:
    container_id = await service.create()
    start = pb.StartContainerRequest(container_id=container_id)
    before = await service.stub.StartContainer(start, timeout=30)
    await suspend(service, container_id)
    await service.stub.StopContainer(pb.StopContainerRequest(container_id=container_id), timeout=30)
    after = await service.stub.StartContainer(start, timeout=30)
    assert after.boot_id not in ("", before.boot_id)


async def test_destroying_a_running_container_needs_force(patient: Service) -> None:
    container_id = await patient.create()
    request = pb.DestroyContainerRequest(container_id=container_id)
    rejected = await failing(patient.stub.DestroyContainer(request, timeout=30))
    assert rejected.code is grpc.StatusCode.FAILED_PRECONDITION
    assert rejected.reason == "CONTAINER_STATE_CONFLICT"
    assert rejected.metadata["state"] == "started"
    assert rejected.metadata["fly_request_id"]

    mark = await patient.mark()
    forced = pb.DestroyContainerRequest(container_id=container_id, force=True)
    destroyed = await patient.stub.DestroyContainer(forced, timeout=30)
    assert destroyed.container.state == pb.CONTAINER_STATE_DESTROYED
    assert await patient.requests(mark) == ["lease", "destroy", "wait"]
    assert await patient.state(container_id) == pb.CONTAINER_STATE_DESTROYED


async def test_destroying_a_destroyed_or_unknown_container_succeeds(service: Service) -> None:
    container_id = await service.create()
    request = pb.DestroyContainerRequest(container_id=container_id, force=True)
    for _ in range(2):
        await service.stub.DestroyContainer(request, timeout=30)
    assert await service.committed("destroy") == 1
    never = pb.DestroyContainerRequest(container_id="00000000000000")
    answer = await service.stub.DestroyContainer(never, timeout=30)
    assert not answer.HasField("container")


async def test_cordon_and_uncordon_are_visible_and_can_be_repeated(service: Service) -> None:
    container_id = await service.create()
    get = pb.GetContainerRequest(container_id=container_id)
    for _ in range(2):
        request = pb.CordonContainerRequest(container_id=container_id)
        await service.stub.CordonContainer(request, timeout=30)
    assert (await service.stub.GetContainer(get, timeout=30)).container.cordoned
    for _ in range(2):
        back = pb.UncordonContainerRequest(container_id=container_id)
        await service.stub.UncordonContainer(back, timeout=30)
    assert not (await service.stub.GetContainer(get, timeout=30)).container.cordoned


async def test_exec_returns_the_result_of_the_command(service: Service) -> None:
    container_id = await service.create()
    command = ["sh", "-c", "echo out; echo err >&2; exit 3"]
    request = pb.ExecContainerRequest(container_id=container_id, command=command)
    done = await service.stub.ExecContainer(request, timeout=30)
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")


async def test_list_filters_by_all_labels(service: Service) -> None:
    for number, kind in enumerate(["wren", "wren", "owl"]):
        request = pb.CreateContainerRequest(
            name=f"roost-{kind}-{number}",
            spec=pb.ContainerSpec(image="roost/base"),
            labels={"kind": kind, "number": str(number)},
        )
        await service.stub.CreateContainer(request, timeout=30)

    async def names(**labels: str) -> list[str]:
        request = pb.ListContainersRequest(labels=labels)
        listed = await service.stub.ListContainers(request, timeout=30)
        assert listed.HasField("list_time")
        return sorted(container.name for container in listed.containers)

    assert await names(kind="wren") == ["roost-wren-0", "roost-wren-1"]
    assert await names(kind="wren", number="1") == ["roost-wren-1"]
    assert await names(kind="hawk") == []


async def test_destroyed_containers_are_listed_on_request_only(service: Service) -> None:
    container_id = await service.create()
    destroy = pb.DestroyContainerRequest(container_id=container_id, force=True)
    await service.stub.DestroyContainer(destroy, timeout=30)
    plain = await service.stub.ListContainers(pb.ListContainersRequest(), timeout=30)
    assert not plain.containers
    request = pb.ListContainersRequest(include_destroyed=True)
    whole = await service.stub.ListContainers(request, timeout=30)
    assert [container.container_id for container in whole.containers] == [container_id]


async def test_an_unknown_container_is_not_found_and_an_unknown_app_is_rejected(
    service: Service,
) -> None:
    """The two must differ, because only the first is evidence of a lost container."""
    request = pb.GetContainerRequest(container_id="00000000000000")
    missing = await failing(service.stub.GetContainer(request, timeout=30))
    assert (missing.code, missing.reason) == (grpc.StatusCode.NOT_FOUND, "CONTAINER_NOT_FOUND")
    request = pb.GetContainerRequest(app="no-such-app", container_id="00000000000000")
    foreign = await failing(service.stub.GetContainer(request, timeout=30))
    assert foreign.code is grpc.StatusCode.FAILED_PRECONDITION
    assert foreign.reason == "PROVIDER_REFUSED"


async def test_a_wait_ends_at_the_state_or_times_out(service: Service) -> None:
    container_id = await service.create()
    request = pb.WaitContainerRequest(
        container_id=container_id,
        states=[pb.CONTAINER_STATE_STOPPED, pb.CONTAINER_STATE_SUSPENDED],
        timeout=Duration(seconds=1),
    )
    late = await failing(service.stub.WaitContainer(request, timeout=30))
    assert (late.code, late.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMED_OUT")
    request.timeout.seconds = 30
    waiting = asyncio.ensure_future(service.stub.WaitContainer(request, timeout=30))
    await suspend(service, container_id)
    assert (await waiting).state == pb.CONTAINER_STATE_SUSPENDED


async def test_waiting_for_an_unknown_container_to_be_destroyed_ends_at_once(
    service: Service,
) -> None:
    request = pb.WaitContainerRequest(
        container_id="00000000000000", states=[pb.CONTAINER_STATE_DESTROYED]
    )
    reached = await service.stub.WaitContainer(request, timeout=30)
    assert reached.state == pb.CONTAINER_STATE_DESTROYED


async def test_a_crash_changes_the_last_start_time(service: Service) -> None:
    container_id = await service.create()
    get = pb.GetContainerRequest(container_id=container_id)
    before = (await service.stub.GetContainer(get, timeout=30)).container.last_start_time
    await kill_guest(service, container_id)

    async def later_start() -> bool:
        seen = (await service.stub.GetContainer(get, timeout=30)).container
        return seen.last_start_time.ToDatetime() > before.ToDatetime()

    # The guest restarts by itself, so there is no event to wait for.
    await until(later_start, interval=0.2)


async def test_the_cycle_works_with_either_undocumented_answer_of_fly(tmp_path: Path) -> None:
    """Where Fly's answer is undocumented or has changed, the service must work with both."""
    settings = settings_with(
        tmp_path,
        start_on_started="conflict",
        still_active_ms=600,
        wait_stopped_needs_version=True,
        stale_nonce="accept",
    )
    async with emulating(settings) as service:
        await cycle(service)


async def cycle(service: Service) -> None:
    container_id = await service.create()
    start = pb.StartContainerRequest(container_id=container_id)
    first = await service.stub.StartContainer(start, timeout=30)
    assert (await suspend(service, container_id)).state == pb.CONTAINER_STATE_SUSPENDED
    resume = pb.ResumeContainerRequest(container_id=container_id, expected_boot_id=first.boot_id)
    resumed = await service.stub.ResumeContainer(resume, timeout=30)
    assert resumed.memory_preserved == pb.MEMORY_PRESERVED_YES
    stop = pb.StopContainerRequest(container_id=container_id)
    stopped = await service.stub.StopContainer(stop, timeout=30)
    assert stopped.container.state == pb.CONTAINER_STATE_STOPPED
    again = await service.stub.StartContainer(start, timeout=30)
    assert again.boot_id not in ("", first.boot_id)


async def test_the_lease_excludes_other_callers_during_a_suspend(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, start_while_suspending="refuse")
    async with emulating(settings) as service:
        container_id = await service.create()
        fault = await service.admin.set_fault("slow_after", action="suspend", delay_ms=60_000)
        suspending = asyncio.ensure_future(suspend(service, container_id))
        await fired(service, fault)
        request = pb.ResumeContainerRequest(container_id=container_id)
        held = await failing(service.stub.ResumeContainer(request, timeout=30))
        assert (held.code, held.reason) == (grpc.StatusCode.ABORTED, "LEASE_HELD")
        await service.admin.end_fault(fault)
        assert (await suspending).state == pb.CONTAINER_STATE_SUSPENDED


def settings_with(data: Path, **toggles: object) -> Settings:
    """Settings of a fast emulator, with these changes."""
    fast: dict[str, object] = {"create_ms": 5, "start_ms": 5, "resume_ms": 5, "suspend_ms": 20}
    options: dict[str, object] = {"data": data, "port": 0, "proxy_port": 0, "token": TOKEN}
    return Settings(**options | fast | toggles)  # type: ignore[arg-type]


@asynccontextmanager
async def emulating(settings: Settings) -> AsyncGenerator[Service]:
    """Run a service over an emulator with these settings."""
    async with serve(settings) as emulator:
        await make_app(emulator)
        async with serving(emulator) as service:
            yield service


async def kill_guest(service: Service, container_id: str) -> None:
    """Kill the main process of a guest."""
    path = f"/v1/apps/{APP}/machines/{container_id}/signal"
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with http_to(service.emulator.api_url) as client:
        sent = await client.post(path, json={"signal": "SIGKILL"}, headers=headers)
        sent.raise_for_status()
