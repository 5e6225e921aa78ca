"""Large checkpoints in an S3-compatible bucket: signed, in parts, proved, and cleaned up after."""

from __future__ import annotations

import hashlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.clients.bucket import parse_address
from session_service.clients.signing import Credentials, signed_headers
from session_service.config import Config, ConfigError
from tests.container.harness import failing
from tests.session.harness import world
from tests.session.s3_store import SECRET, Store, store
from tests.session.saving import Checkpoint, client, execute, large

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from local.fly.emulator import Emulator
    from tests.session.harness import World

MB = 1024 * 1024


@pytest.fixture
async def bucket() -> AsyncIterator[Store]:
    """A store; no request may come that it does not let in."""
    async with store() as running:
        yield running
        assert not running.refused


@asynccontextmanager
async def saving(
    emulator: Emulator, database_url: str, bucket: Store, limit: int = MB
) -> AsyncGenerator[World]:
    """A replica that saves at every stop, beyond the limit into the bucket."""
    async with world(
        emulator,
        database_url,
        1,
        persistence="checkpoint",
        checkpoint_bucket=parse_address(bucket.url),
        checkpoint_database_limit=limit,
    ) as running:
        yield running


async def test_a_large_state_goes_to_the_bucket_and_comes_back(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """What was in the database by then moves there too; the object is all there is."""
    async with saving(emulator, database_url, bucket, 2 * MB) as roost:
        session = (await roost.one.start(spec=large(20 * MB))).session
        before = await roost.counter(session)
        await roost.one.stop(session.session_id)
        (kept,) = await client(roost.one).of()
        assert (kept.state, kept.size_bytes) == (Checkpoint.STATE_READY, 20 * MB)
        assert kept.sha256.hex() == before
        ((name, stored),) = bucket.objects.items()
        assert name.startswith("roost/")
        assert name.endswith(kept.checkpoint_id)
        assert len(stored) == kept.stored_bytes
        assert execute(database_url, "SELECT count(*) FROM checkpoint_chunks") == [(0,)]
        assert bucket.asked.count("PUT partNumber uploadId") == 5
        answer = await roost.one.start()
        assert answer.outcome == pb.START_OUTCOME_RESTORED
        assert await roost.counter(answer.session) == before
        await client(roost.one).delete(kept.checkpoint_id)
        assert not bucket.objects


async def test_a_small_state_stays_in_the_database(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """The bucket is not even asked."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(1000))).session
        await client(roost.one).create(session.session_id)
        assert not bucket.asked


@pytest.mark.parametrize(
    ("asked", "fault"),
    [
        ("POST uploads", "403"),
        ("PUT partNumber uploadId", "403"),
        ("PUT partNumber uploadId", "flip"),
        ("POST uploadId", "error"),
        ("GET", "cut"),
        ("GET", "403"),
    ],
)
async def test_a_bucket_that_fails_leaves_nothing_ready_and_nothing_behind(
    emulator: Emulator, database_url: str, bucket: Store, asked: str, fault: str
) -> None:
    """UNAVAILABLE; a stop keeps the container instead, and says so. Then it goes through."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(9 * MB))).session
        bucket.faults.append((asked, fault))
        failure = await failing(client(roost.one).create(session.session_id))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert SECRET not in failure.message + str(failure.metadata)
        (shown,) = await client(roost.one).of()
        assert (shown.state, shown.failure) == (Checkpoint.STATE_FAILED, "STORAGE_UNAVAILABLE")
        assert not bucket.objects
        assert not bucket.uploads
        bucket.faults.append((asked, fault))
        stopped = await roost.one.stop(session.session_id)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
        assert [c.type for c in stopped.conditions] == [pb.CONDITION_TYPE_CHECKPOINT_FAILED]
        assert not bucket.objects
        assert (await roost.one.stop(session.session_id)).pause_depth == pb.PAUSE_DEPTH_CHECKPOINT


async def test_a_bucket_that_is_slow_for_a_moment_is_asked_again(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """503 once on each kind of request: nobody notices."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(9 * MB))).session
        for asked in ("POST uploads", "PUT partNumber uploadId", "POST uploadId"):
            bucket.faults.append((asked, "503"))
        taken = await client(roost.one).create(session.session_id)
        assert taken.state == Checkpoint.STATE_READY
        assert not bucket.faults


async def test_what_is_lost_or_changed_in_the_bucket_is_corrupt(
    emulator: Emulator, database_url: str, bucket: Store
) -> None:
    """The next older is restored; a bucket that does not answer loses nothing."""
    async with saving(emulator, database_url, bucket) as roost:
        session = (await roost.one.start(spec=large(3 * MB))).session
        before = await roost.counter(session)
        saved = client(roost.one)
        for _ in range(3):
            await saved.create(session.session_id)
        await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_SUSPENDED)
        await roost.destroy_behind_our_back(session)
        names = {each.rpartition("/")[2]: each for each in bucket.objects}
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
    """The bucket is not the one that was meant, or one reading is garbled: no proof of damage."""
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


def test_the_signature_is_that_of_the_documentations_example() -> None:
    """GET with a query, from docs.aws.amazon.com: "Example: GET Bucket Lifecycle" and its like."""
    credentials = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
    headers = signed_headers(
        credentials,
        "GET",
        "examplebucket.s3.amazonaws.com",
        "/",
        {"lifecycle": ""},
        hashlib.sha256(b"").hexdigest(),
        datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert headers["authorization"].endswith(
        "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    )


def test_a_buckets_address_hides_its_secret() -> None:
    """In no repr; a wrong one is not shown either."""
    address = parse_address(f"s3://key:{'s3cr%2Ft'}@host:9000/bucket?region=eu-west-1&tls=false")
    assert (address.origin, address.bucket) == ("http://host:9000", "bucket")
    assert (address.credentials.secret, address.credentials.region) == ("s3cr/t", "eu-west-1")
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
        with pytest.raises(ConfigError) as refused:
            Config.from_env(environment)
        assert "ROOST_CHECKPOINT_BUCKET_URL" in str(refused.value)
        assert "s3cret" not in str(refused.value)
