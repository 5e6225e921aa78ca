"""The client of a bucket: its credentials, what it takes from the environment, and its errors."""

from __future__ import annotations

import logging
import traceback
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from local.fly.http_server import serving
from session_service.clients import bucket as buckets
from session_service.clients.bucket import S3Bucket, parse_address
from session_service.config import Config, ConfigError
from session_service.errors import StorageUnavailable
from session_service.ports import ObjectMissing
from tests.session.s3_store import KEY_ID, REGION, SECRET, Store, store
from tests.session.test_process import NOWHERE, launch_fresh, outcome

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

    from starlette.requests import Request

TOKEN = "a/session+token=="
KEY = f"{KEY_ID}:{quote(SECRET, safe='')}@"
WITH_TOKEN = f"&session_token={quote(TOKEN, safe='')}"
FROM_ENVIRONMENT = "&credentials=environment"


@pytest.fixture
async def bucket() -> AsyncIterator[Store]:
    """A store."""
    async with store() as running:
        yield running


async def used(bucket: Store, address: str) -> bytes:
    """Put, list, read and delete an object at this address; return what was read."""
    opened = S3Bucket(parse_address(address))
    await opened.put("roost/a/00001", [b"one ", b"two"])
    assert await opened.list("roost/a") == ["roost/a/00001"]
    read = b"".join([piece async for piece in opened.read("roost/a/00001")])
    await opened.delete("roost/a/00001")
    assert not bucket.objects
    return read


async def test_a_session_token_is_sent_with_its_key(bucket: Store) -> None:
    bucket.session_token = TOKEN
    assert await used(bucket, bucket.address(KEY, WITH_TOKEN)) == b"one two"
    assert not bucket.rejected


async def test_static_credentials_take_nothing_from_the_environment(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No endpoint, token or proxy of another account, and no option that leaves out signatures."""
    nowhere = "http://127.0.0.1:9"
    for name, value in {
        "AWS_SESSION_TOKEN": "of another key",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_SECRET_ACCESS_KEY": "another",
        "AWS_ENDPOINT_URL_S3": nowhere,
        "AWS_ENDPOINT_URL": nowhere,
        "AWS_REGION": "elsewhere",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "true",
        "HTTP_PROXY": nowhere,
        "http_proxy": nowhere,
        "ALL_PROXY": nowhere,
    }.items():
        monkeypatch.setenv(name, value)
    assert await used(bucket, bucket.url) == b"one two"
    assert not bucket.rejected


async def test_credentials_of_the_environment(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.session_token = TOKEN
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    assert await used(bucket, bucket.address("", FROM_ENVIRONMENT)) == b"one two"
    assert not bucket.rejected


@asynccontextmanager
async def instance() -> AsyncGenerator[str]:
    """The metadata service of an instance with a role (IMDSv2), at the URL that is yielded."""
    role = "/latest/meta-data/iam/security-credentials"

    async def token(request: Request) -> Response:
        assert request.headers["x-aws-ec2-metadata-token-ttl-seconds"]
        return PlainTextResponse("imds-token")

    async def name(request: Request) -> Response:
        assert request.headers["x-aws-ec2-metadata-token"] == "imds-token"
        return PlainTextResponse("roost")

    async def credentials(request: Request) -> Response:
        assert request.headers["x-aws-ec2-metadata-token"] == "imds-token"
        return JSONResponse(
            {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "LastUpdated": "2026-11-22T10:00:00Z",
                "AccessKeyId": KEY_ID,
                "SecretAccessKey": SECRET,
                "Token": TOKEN,
                "Expiration": "2126-11-22T10:00:00Z",
            }
        )

    app = Starlette(
        routes=[
            Route("/latest/api/token", token, methods=["PUT"]),
            Route(f"{role}/", name),
            Route(f"{role}/roost", credentials),
        ]
    )
    async with serving(app, "127.0.0.1", 0, "port") as port:
        yield f"http://127.0.0.1:{port}"


async def test_credentials_of_the_instances_role(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.session_token = TOKEN
    async with instance() as url:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", url)
        assert await used(bucket, bucket.address("", FROM_ENVIRONMENT)) == b"one two"
    assert not bucket.rejected


async def test_an_instance_without_credentials_is_an_unavailable_bucket(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    opened = S3Bucket(parse_address(bucket.address("", FROM_ENVIRONMENT)))
    with pytest.raises(StorageUnavailable, match="did not answer"):
        await opened.put("roost/a", [b""])


async def test_no_error_and_no_log_has_a_secret(
    bucket: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """A store quotes the request in its answer to a wrong signature, with the token in it."""
    caplog.set_level(logging.DEBUG)
    opened = S3Bucket(parse_address(bucket.address(f"{KEY_ID}:wr0ng@", WITH_TOKEN)))
    bucket.session_token = TOKEN
    with pytest.raises(StorageUnavailable) as caught:
        await opened.put("roost/a", [b""])
    assert bucket.rejected == ["SignatureDoesNotMatch"]
    assert caught.value.metadata == {"status": "403", "code": "SignatureDoesNotMatch"}
    trace = "".join(traceback.format_exception(caught.value))
    for shown in (trace, caplog.text, repr(opened), repr(vars(opened))):
        assert TOKEN not in shown
        assert "wr0ng" not in shown


async def test_only_an_answer_of_the_store_proves_that_an_object_is_missing(bucket: Store) -> None:
    """A deletion of one that is missing succeeds; if the bucket is missing it fails."""
    opened = S3Bucket(parse_address(bucket.url))
    with pytest.raises(ObjectMissing):
        [piece async for piece in opened.read("roost/a")]
    await opened.delete("roost/a")
    for asked in ("GET", "DELETE", "GET list-type prefix", "PUT"):
        bucket.faults.append((asked, "404"))
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        [piece async for piece in opened.read("roost/a")]
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        await opened.delete("roost/a")
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        await opened.list("roost/a")
    with pytest.raises(StorageUnavailable, match="NoSuchBucket"):
        await opened.put("roost/a", [b""])


async def test_a_store_that_hangs_is_an_unavailable_bucket(
    bucket: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "CALL_TIMEOUT", 0.1)
    opened = S3Bucket(parse_address(bucket.url))
    bucket.faults.append(("PUT", "hold"))
    with pytest.raises(StorageUnavailable, match="TimeoutError"):
        await opened.put("roost/a", [b""])


def test_the_addresses_of_buckets() -> None:
    """With `addressing=virtual` the bucket is in the host's name, as new buckets of Tigris need."""
    plain = parse_address("s3://k:s@[::1]:9000/birds?tls=false")
    assert (plain.origin, plain.region, plain.virtual_host) == (
        "http://[::1]:9000",
        "us-east-1",
        False,
    )
    virtual = parse_address(
        "s3://t3.storage.dev/birds?region=auto&addressing=virtual&credentials=environment"
    )
    assert (virtual.origin, virtual.bucket) == ("https://birds.t3.storage.dev", "birds")
    assert (virtual.region, virtual.credentials) == ("auto", None)
    token = parse_address(f"s3://k:s@host/b?session_token={quote(TOKEN, safe='')}")
    assert token.credentials is not None
    assert token.credentials.session_token == TOKEN
    assert TOKEN not in repr(Config(database_url="", checkpoint_bucket=token))
    for wrong in (
        "s3://k:s3cret@host/b?credentials=environment",
        "s3://host/b?credentials=environment&session_token=s3cret",
        "s3://host/b?credentials=s3cret",
        "s3://k:s3cret@host/b?session_token=",
        "s3://k:s3cret@host/b?addressing=sideways",
    ):
        with pytest.raises(ConfigError) as caught:
            Config.from_env({"ROOST_DATABASE_URL": NOWHERE, "ROOST_CHECKPOINT_BUCKET_URL": wrong})
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("command", [["serve"], ["sweep", "--report"]], ids=["serve", "sweep"])
async def test_without_the_library_a_bucket_ends_the_service_at_start(
    tmp_path: Path, command: list[str]
) -> None:
    """One line that says what to install, before the database is asked."""
    (tmp_path / "obstore.py").write_text("raise ModuleNotFoundError(__name__)\n")
    process = await launch_fresh(
        *command,
        ROOST_DATABASE_URL=NOWHERE,
        ROOST_CHECKPOINT_BUCKET_URL=f"s3://k:s3cret@127.0.0.1:9/b?region={REGION}",
        PYTHONPATH=str(tmp_path),
    )
    status, out, err = await outcome(process)
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert "ROOST_CHECKPOINT_BUCKET_URL" in err
    assert "pip install 'roost[s3]'" in err
    assert "s3cret" not in err
