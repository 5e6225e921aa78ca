"""Volumes and snapshots, and the lifecycle of a container with a volume."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from local.fly.emulator import serve
from roost.container.v1 import container_service_pb2 as pb
from tests.cases import each
from tests.container.harness import (
    APP,
    TOKEN,
    Service,
    failing,
    http_to,
    make_app,
    serving,
    until,
)

if TYPE_CHECKING:
    from local.fly.settings import Settings


async def create(service: Service, **fields: object) -> pb.Volume:
    request = pb.CreateVolumeRequest(**{"name": "data", **fields})  # type: ignore[arg-type]
    return (await service.stub.CreateVolume(request, timeout=30)).volume


async def read(service: Service, volume_id: str) -> pb.Volume:
    request = pb.GetVolumeRequest(volume_id=volume_id)
    return (await service.stub.GetVolume(request, timeout=30)).volume


async def container_with(service: Service, volume_id: str, name: str = "roost-wren-1") -> str:
    mounts = [pb.Mount(volume_id=volume_id, path="/data")]
    spec = pb.ContainerSpec(image="roost/base", mounts=mounts)
    request = pb.CreateContainerRequest(name=name, spec=spec)
    made = (await service.stub.CreateContainer(request, timeout=30)).container
    wait = pb.WaitContainerRequest(container_id=made.container_id)
    await service.stub.WaitContainer(wait, timeout=30)
    return made.container_id


async def run(service: Service, container_id: str, script: str) -> str:
    request = pb.ExecContainerRequest(container_id=container_id, command=["sh", "-c", script])
    done = await service.stub.ExecContainer(request, timeout=30)
    assert done.exit_code == 0, done.stderr
    return done.stdout


async def destroy(service: Service, container_id: str) -> None:
    request = pb.DestroyContainerRequest(container_id=container_id, force=True)
    await service.stub.DestroyContainer(request, timeout=30)


async def snapshot(service: Service, volume_id: str) -> pb.VolumeSnapshot:
    """Take a snapshot and wait until it is complete."""
    request = pb.CreateVolumeSnapshotRequest(volume_id=volume_id)
    began = (await service.stub.CreateVolumeSnapshot(request, timeout=30)).snapshot
    assert began.volume_id == volume_id
    found: list[pb.VolumeSnapshot] = []

    async def finished() -> bool:
        found[:] = await snapshots(service, volume_id)
        return found[0].provider_state == "created"

    await until(finished, interval=0.5)
    assert found[0].snapshot_id == began.snapshot_id
    return found[0]


async def snapshots(service: Service, volume_id: str) -> list[pb.VolumeSnapshot]:
    request = pb.ListVolumeSnapshotsRequest(volume_id=volume_id)
    return list((await service.stub.ListVolumeSnapshots(request, timeout=30)).snapshots)


async def filled(service: Service, volume_id: str) -> None:
    """Wait until a volume is restored from its snapshot."""

    async def created() -> bool:
        return (await read(service, volume_id)).provider_state == "created"

    await until(created, interval=0.5)


async def update(service: Service, container_id: str, env: dict[str, str]) -> None:
    """Replace a machine's config over HTTP, as the service has no such RPC."""
    path = f"/v1/apps/{APP}/machines/{container_id}"
    headers = {"authorization": f"Bearer {TOKEN}"}
    async with http_to(service.emulator.api_url, **headers) as http:
        config = (await http.get(path)).json()["config"] | {"env": env}
        (await http.post(path, json={"config": config})).raise_for_status()
    wait = pb.WaitContainerRequest(container_id=container_id)
    await service.stub.WaitContainer(wait, timeout=30)


async def test_a_volume_shows_what_it_was_created_with(service: Service) -> None:
    volume = await create(service, size_gb=2, region="lhr")
    assert volume.volume_id.startswith("vol_")
    assert (volume.app, volume.name, volume.provider_state) == (APP, "data", "created")
    assert (volume.region, volume.size_gb, volume.attached_container_id) == ("lhr", 2, "")
    assert volume.HasField("create_time")
    assert await read(service, volume.volume_id) == volume
    listed = await service.stub.ListVolumes(pb.ListVolumesRequest(), timeout=30)
    assert list(listed.volumes) == [volume]


async def test_the_default_size_of_a_volume_is_one_gb(service: Service) -> None:
    assert (await create(service)).size_gb == 1


@each(
    ("fields", "wrong"),
    [
        ({"name": ""}, "name"),
        ({"name": "Not-a-name"}, "name"),
        ({"size_gb": 501}, "size_gb"),
        ({"size_gb": -1}, "size_gb"),
        ({"snapshot_id": "../x"}, "snapshot_id"),
        ({"app": "Not an app"}, "app"),
    ],
)
async def test_an_invalid_field_is_named(
    service: Service, fields: dict[str, object], wrong: str
) -> None:
    mark = await service.mark()
    rejected = await failing(create(service, **fields))
    assert (rejected.code, rejected.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert rejected.fields == (wrong,)
    assert await service.requests(mark) == []


async def test_an_unknown_volume_is_not_found(service: Service) -> None:
    for call in (read(service, "vol_none"), snapshots(service, "vol_none")):
        rejected = await failing(call)
        assert (rejected.code, rejected.reason) == (grpc.StatusCode.NOT_FOUND, "VOLUME_NOT_FOUND")


async def test_deleting_twice_succeeds(service: Service) -> None:
    volume = await create(service)
    request = pb.DeleteVolumeRequest(volume_id=volume.volume_id)
    for _ in range(2):
        await service.stub.DeleteVolume(request, timeout=30)
    assert (await failing(read(service, volume.volume_id))).reason == "VOLUME_NOT_FOUND"
    listed = await service.stub.ListVolumes(pb.ListVolumesRequest(), timeout=30)
    assert list(listed.volumes) == []


async def test_a_volume_claimed_by_a_container_is_in_use(service: Service) -> None:
    volume = await create(service)
    container_id = await container_with(service, volume.volume_id)
    assert (await read(service, volume.volume_id)).attached_container_id == container_id
    request = pb.DeleteVolumeRequest(volume_id=volume.volume_id)
    rejected = await failing(service.stub.DeleteVolume(request, timeout=30))
    assert (rejected.code, rejected.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "VOLUME_IN_USE",
    )
    assert rejected.metadata["container_id"] == container_id
    assert rejected.retry_seconds
    second = await failing(container_with(service, volume.volume_id, "roost-wren-2"))
    assert second.reason == "VOLUME_IN_USE"
    assert second.metadata["container_id"] == container_id


@pytest.mark.parametrize("volume_first", ["false", "true"])
async def test_a_repeated_create_recognises_its_own_claim_on_the_volume(
    settings: Settings, volume_first: str
) -> None:
    """It does so whether the provider checks the name first or the volume."""
    async with serve(settings.with_texts({"volume_before_name": volume_first})) as emulator:
        await make_app(emulator)
        async with serving(emulator) as service:
            volume = await create(service)
            first = await container_with(service, volume.volume_id)
            assert await container_with(service, volume.volume_id) == first
            second = await failing(container_with(service, volume.volume_id, "roost-wren-2"))
            assert second.reason == "VOLUME_IN_USE"


async def test_a_delete_waits_for_the_claim_of_a_destroyed_container(
    settings: Settings,
) -> None:
    lingering = settings.with_texts({"volume_release_ms": "6000", "volume_linger_ms": "60000"})
    async with serve(lingering) as emulator:
        await make_app(emulator)
        async with serving(emulator) as service:
            volume = await create(service)
            container_id = await container_with(service, volume.volume_id)
            mark = await service.mark()
            await destroy(service, container_id)
            request = pb.DeleteVolumeRequest(volume_id=volume.volume_id)
            await service.stub.DeleteVolume(request, timeout=30)
            asked = await service.requests(mark)
            assert asked.count("volume_delete") > 1, "the claim was released before the delete"
            # The provider still lists the deleted volume, the service does not.
            listed = await service.stub.ListVolumes(pb.ListVolumesRequest(), timeout=30)
            assert list(listed.volumes) == []


async def test_a_second_snapshot_at_the_same_time_is_rejected(settings: Settings) -> None:
    async with serve(settings.with_texts({"snapshot_ms": "60000"})) as emulator:
        await make_app(emulator)
        async with serving(emulator) as service:
            volume = await create(service)
            request = pb.CreateVolumeSnapshotRequest(volume_id=volume.volume_id)
            await service.stub.CreateVolumeSnapshot(request, timeout=30)
            rejected = await failing(service.stub.CreateVolumeSnapshot(request, timeout=30))
            assert rejected.code is grpc.StatusCode.FAILED_PRECONDITION
            assert rejected.reason == "SNAPSHOT_IN_PROGRESS"
            assert len(await snapshots(service, volume.volume_id)) == 1


async def test_a_full_region_is_a_capacity_error(service: Service) -> None:
    await service.admin.set_fault("capacity", action="volume_create")
    rejected = await failing(create(service))
    assert (rejected.code, rejected.reason) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "PROVIDER_CAPACITY",
    )


async def test_a_lost_answer_to_a_volume_create_is_unavailable(service: Service) -> None:
    await service.admin.set_fault("answer_lost", action="volume_create")
    rejected = await failing(create(service))
    assert (rejected.code, rejected.reason) == (
        grpc.StatusCode.UNAVAILABLE,
        "PROVIDER_UNAVAILABLE",
    )
    assert await service.committed("volume_create") == 1


async def test_the_whole_lifecycle_of_a_container_with_a_volume(service: Service) -> None:
    """A volume survives everything, memory only a suspend, the root file system a restart too."""
    volume = await create(service, size_gb=1)
    container_id = await container_with(service, volume.volume_id)
    look = "cat /data/file 2>/dev/null; cat root 2>/dev/null || true"
    start = pb.StartContainerRequest(container_id=container_id)
    boots = [(await service.stub.StartContainer(start, timeout=30)).boot_id]
    await run(service, container_id, "echo one > /data/file; echo root > root")

    await service.stub.StopContainer(pb.StopContainerRequest(container_id=container_id), timeout=30)
    boots.append((await service.stub.StartContainer(start, timeout=30)).boot_id)
    # The root file system persists over restarts by Roost's default, which is not Fly's.
    assert await run(service, container_id, look) == "one\nroot\n"

    await update(service, container_id, {"COLOUR": "red"})
    assert await run(service, container_id, look + "; echo $COLOUR") == "one\nred\n"
    boots.append((await service.stub.StartContainer(start, timeout=30)).boot_id)
    assert len(set(boots)) == 3

    await run(service, container_id, "echo two > /data/file; echo again > root")
    suspend = pb.SuspendContainerRequest(container_id=container_id)
    await service.stub.SuspendContainer(suspend, timeout=30)
    resume = pb.ResumeContainerRequest(container_id=container_id, expected_boot_id=boots[-1])
    resumed = await service.stub.ResumeContainer(resume, timeout=30)
    assert resumed.memory_preserved == pb.MEMORY_PRESERVED_YES
    assert await run(service, container_id, look) == "two\nagain\n"

    taken = await snapshot(service, volume.volume_id)
    assert taken.size_bytes == 4
    await run(service, container_id, "echo three > /data/file")
    restored = await create(service, snapshot_id=taken.snapshot_id)
    assert restored.provider_state == "restoring"
    await filled(service, restored.volume_id)
    second = await container_with(service, restored.volume_id, "roost-wren-2")
    assert await run(service, second, look) == "two\n"
    assert await run(service, container_id, look) == "three\nagain\n"

    await destroy(service, container_id)
    assert await service.state(container_id) == pb.CONTAINER_STATE_DESTROYED

    async def released() -> bool:
        return not (await read(service, volume.volume_id)).attached_container_id

    await until(released, interval=0.3)
    third = await container_with(service, volume.volume_id, "roost-wren-3")
    assert await run(service, third, look) == "three\n"
