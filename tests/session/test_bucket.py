"""Large checkpoints in an S3-compatible bucket: parts, verification, faults and clean-up."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import grpc
import pytest

from container_service.main import serve as serve_containers
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from session_service.checkpoints.retention import Retention
from session_service.clients.bucket import REPEATS, S3Bucket, parse_address
from session_service.config import Config, ConfigError
from tests.container.harness import UNPACED, config_for, failing
from tests.session.harness import world
from tests.session.s3_store import SECRET, Store, store
from tests.session.saving import Checkpoint, Checkpoints, client, execute, large
from tests.session.test_process import launch, running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from local.fly.emulator import Emulator
    from tests.session.harness import World

MB = 1024 * 1024
#: How often a request is sent, at most.
TRIES = REPEATS + 1


@pytest.fixture
async def bucket() -> AsyncIterator[Store]:
    """A store; the test fails if it rejected a request's signature."""
    async with store() as running:
        yield running
        assert not running.rejected


@asynccontextmanager
async def saving(
    emulator: Emulator, database_url: str, bucket: Store, limit: int = MB
) -> AsyncGenerator[World]:
    """A replica that saves at every stop; states beyond `limit` bytes go to the bucket."""
    async with world(
        emulator,
        database_url,
        1,
        persistence="checkpoint",
        checkpoint_bucket=parse_address(bucket.url),
        checkpoint_database_limit=limit,
    ) as running:
        yield running


async def test_a_large_state_is_stored_in_the_bucket_and_restored(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """Bytes already in the database move there too; the checkpoint is one object for each part."""
    async with saving(emulator, database_url, bucket, 2 * MB) as roost:
        session = (await roost.one.start(spec=large(20 * MB))).session
        before = await roost.counter(session)
        await roost.one.stop(session.session_id)
        (kept,) = await client(roost.one).of()
        assert (kept.state, kept.size_bytes) == (Checkpoint.STATE_READY, 20 * MB)
        assert kept.sha256.hex() == before
        names = list(bucket.objects)
        (folder,) = {name.rpartition("/")[0] for name in names}
        assert folder.startswith("roost/")
        assert folder.endswith(kept.checkpoint_id)
        assert names == [f"{folder}/{number:05}" for number in range(1, 8)]
        assert sum(map(len, bucket.objects.values())) == kept.stored_bytes
        assert execute(database_url, "SELECT count(*) FROM checkpoint_chunks") == [(0,)]
        assert bucket.asked.count("PUT") == 7
        answer = await roost.one.start()
        assert answer.outcome == pb.START_OUTCOME_RESTORED
        assert await roost.counter(answer.session) == before
        await client(roost.one).delete(kept.checkpoint_id)
        assert not bucket.objects


async def test_a_small_state_stays_in_the_database(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """The bucket gets no request."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(1000))).session
        await client(roost.one).create(session.session_id)
        assert not bucket.asked


@pytest.mark.parametrize(
    ("asked", "fault", "times"),
    [
        ("PUT", "403", 1),
        ("PUT", "flip", 1),
        ("PUT", "503", TRIES),
        ("GET", "cut", TRIES),
        ("GET", "403", 1),
    ],
)
async def test_a_bucket_that_fails_leaves_no_ready_checkpoint_and_no_objects(
    emulator: Emulator, database_url: str, bucket: Store, asked: str, fault: str, times: int
) -> None:
    """UNAVAILABLE. A stop suspends the container instead, with a condition; the next stop saves."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(9 * MB))).session
        bucket.faults += [(asked, fault)] * times
        failure = await failing(client(roost.one).create(session.session_id))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert SECRET not in failure.message + str(failure.metadata)
        (shown,) = await client(roost.one).of()
        assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "STORAGE_UNAVAILABLE")
        assert not bucket.objects
        bucket.faults += [(asked, fault)] * times
        stopped = await roost.one.stop(session.session_id)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
        assert [c.type for c in stopped.conditions] == [pb.CONDITION_TYPE_CHECKPOINT_FAILED]
        assert not bucket.objects
        assert (await roost.one.stop(session.session_id)).pause_depth == pb.PAUSE_DEPTH_CHECKPOINT


async def test_a_request_to_a_busy_bucket_is_retried(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """One 503 for each kind of request, and an answer that breaks off: the checkpoint is saved, and
    its bytes are deleted with it.
    """
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(9 * MB))).session
        bucket.faults += [("PUT", "503"), ("GET", "503"), ("GET", "cut")]
        taken = await client(roost.one).create(session.session_id)
        assert taken.state == Checkpoint.STATE_READY
        bucket.faults += [("GET list-type prefix", "503"), ("DELETE", "503")]
        await client(roost.one).delete(taken.checkpoint_id)
        assert not bucket.objects
        assert not bucket.faults


async def test_an_object_lost_or_changed_in_the_bucket_is_a_corrupt_checkpoint(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """The next older one is restored. A bucket that does not answer marks no checkpoint corrupt."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(3 * MB))).session
        before = await roost.counter(session)
        saved = client(roost.one)
        for _ in range(3):
            await saved.create(session.session_id)
        await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_SUSPENDED)
        await roost.destroy_behind_our_back(session)
        names = {each.split("/")[-2]: each for each in bucket.objects}
        third, second, first = [names[each.checkpoint_id] for each in await saved.of()]
        bucket.faults.append(("GET", "403"))
        failure = await failing(roost.one.start())
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert await roost.committed("create") == 1
        del bucket.objects[third]
        changed = bytearray(bucket.objects[second])
        changed[-100] ^= 4
        bucket.objects[second] = bytes(changed)
        answer = await roost.one.start()
        tried = [(each.reason, each.checkpoint_number) for each in answer.attempts]
        assert tried[-3:] == [
            ("CHECKPOINT_CORRUPT", 3),
            ("CHECKPOINT_CORRUPT", 2),
            ("CHECKPOINT_RESTORED", 1),
        ]
        assert first in bucket.objects
        assert await roost.counter(answer.session) == before


@pytest.mark.parametrize("fault", ["404", "flip"])
async def test_one_bad_answer_of_the_bucket_loses_nothing(
    emulator: Emulator, database_url: str, bucket: Store, fault: str
) -> None:
    """A wrong bucket, or one garbled read, does not prove damage."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(3 * MB))).session
        before = await roost.counter(session)
        await roost.one.stop(session.session_id)
        bucket.faults.append(("GET", fault))
        if fault == "404":
            failure = await failing(roost.one.start())
            assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert await roost.counter((await roost.one.start()).session) == before
        assert not bucket.faults
        (kept,) = await client(roost.one).of()
        assert kept.state == Checkpoint.STATE_READY


async def test_a_save_that_a_stop_cuts_off_leaves_no_parts(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """The part that was under way is stored after the others were deleted: it is deleted with the
    row of the failed checkpoint.
    """
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(12 * MB))).session
        saved = client(roost.one)
        first = asyncio.create_task(failing(saved.create(session.session_id)))
        bucket.faults.append(("PUT", "hold"))
        await bucket.held.wait()
        assert (await roost.one.stop(session.session_id)).pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
        assert (await first).code is grpc.StatusCode.FAILED_PRECONDITION
        kept, failed = await saved.of()
        assert [kept.state, failed.state] == [Checkpoint.STATE_READY, Checkpoint.STATE_FAILED]
        assert {name.split("/")[-2] for name in bucket.objects} == {kept.checkpoint_id}
        late = next(iter(bucket.objects)).replace(kept.checkpoint_id, failed.checkpoint_id)
        bucket.objects[late] = b"late"
        await saved.delete(failed.checkpoint_id)
        assert {name.split("/")[-2] for name in bucket.objects} == {kept.checkpoint_id}


async def test_the_parts_of_a_killed_replica_are_deleted(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """Its row says where they are. The retention pass deletes them."""
    environment = {
        "ROOST_CHECKPOINT_BUCKET_URL": bucket.url,
        "ROOST_CHECKPOINT_DATABASE_LIMIT": str(MB),
        "ROOST_LEASE": "60",
    }
    async with (
        saving(emulator, database_url, bucket) as roost,
        serve_containers(config_for(emulator, fly_rate_share=UNPACED, grace=0.1)) as containers,
        running(database_url, containers.target, partial(launch, **environment)) as served,
    ):
        process, channel = served
        session = (await roost.one.start(spec=large(12 * MB))).session
        bucket.faults += [("PUT", "none"), ("PUT", "hold")]
        saved = Checkpoints(CheckpointServiceStub(channel))
        create = asyncio.create_task(failing(saved.create(session.session_id)))
        await bucket.held.wait()
        process.kill()
        await create
        assert len(bucket.objects) == 1
        execute(database_url, "UPDATE checkpoints SET lease_until = now()")
        retention = Retention(roost.one.running.database, S3Bucket(parse_address(bucket.url)))
        assert await retention.shot() == 1
        assert not bucket.objects


async def test_a_stop_saves_though_the_parts_of_a_dead_writer_cannot_be_deleted(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """The retention pass deletes them later."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(3 * MB))).session
        left = await client(roost.one).create(session.session_id)
        execute(
            database_url,
            "UPDATE checkpoints SET state = 'WRITING', ready_time = NULL,"
            " lease_until = now() + interval '1 hour'",
        )
        execute(database_url, "UPDATE sessions SET checkpoint_id = NULL")
        fault = ("GET list-type prefix", "403")
        bucket.faults.append(fault)
        stopped = await roost.one.stop(session.session_id)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_CHECKPOINT
        kept, failed = await client(roost.one).of()
        assert (failed.checkpoint_id, failed.failure) == (left.checkpoint_id, "SUPERSEDED")
        bucket.faults.clear()
        retention = Retention(roost.one.running.database, S3Bucket(parse_address(bucket.url)))
        assert await retention.shot() == 1
        assert {name.split("/")[-2] for name in bucket.objects} == {kept.checkpoint_id}


async def test_an_object_of_the_former_version_is_restored_and_deleted(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """That version stored a checkpoint as a single object."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(12 * MB))).session
        before = await roost.counter(session)
        await roost.one.stop(session.session_id)
        (kept,) = await client(roost.one).of()
        (folder,) = {name.rpartition("/")[0] for name in bucket.objects}
        whole = b"".join(bucket.objects[name] for name in sorted(bucket.objects))
        bucket.objects = {folder: whole}
        execute(database_url, "UPDATE checkpoints SET place = 'BUCKET' RETURNING 1")
        assert await roost.counter((await roost.one.start()).session) == before
        await client(roost.one).delete(kept.checkpoint_id)
        assert not bucket.objects


def test_a_buckets_address_hides_its_secret() -> None:
    """No repr shows it, and the error for an invalid address does not either."""
    address = parse_address(f"s3://key:{'s3cr%2Ft'}@host:9000/bucket?region=eu-west-1&tls=false")
    assert (address.origin, address.bucket) == ("http://host:9000", "bucket")
    assert address.credentials is not None
    assert (address.credentials.secret, address.region) == ("s3cr/t", "eu-west-1")
    config = Config(database_url="postgresql://u:hidden@h/d", checkpoint_bucket=address)
    assert "s3cr" not in repr(config)
    assert "hidden" not in repr(config)
    for wrong in (
        "s3://host/bucket",
        "https://k:s3cret@host/bucket",
        "s3://k:s3cret@host/",
        "s3://k:s3cret@host/a/b",
        "s3://k:s3cret@host/b?tls=perhaps",
        "s3://k:s3cret@host:port/b",
    ):
        environment = {
            "ROOST_DATABASE_URL": "postgresql://h/d",
            "ROOST_CHECKPOINT_BUCKET_URL": wrong,
        }
        with pytest.raises(ConfigError) as caught:
            Config.from_env(environment)
        assert "ROOST_CHECKPOINT_BUCKET_URL" in str(caught.value)
        assert "s3cret" not in str(caught.value)
