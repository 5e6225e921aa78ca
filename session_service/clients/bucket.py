"""`ports.Bucket` over the library obstore, which signs the requests and sends them to an
S3-compatible store.

The library is the extra `s3`. It is imported only when a bucket is opened, because it takes memory
and time to load that a service without a bucket would waste.

An object is put by one request, and never as a multipart upload. A cancelled multipart upload of
this library stays in the bucket, where a listing does not show it, and the library can neither name
nor abort it. A put of one request leaves an object with a known name, or nothing.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from session_service.errors import StorageUnavailable
from session_service.ports import ObjectMissing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    from obstore.store import ClientConfig, S3Credential, S3Store


_log = logging.getLogger(__name__)

#: Time limit of a connect, in s.
CONNECT_TIMEOUT = 5.0
#: Time limit of a request until its answer begins, and then of each read of the answer, in s.
READ_TIMEOUT = 30.0
#: Time limit of a request with its whole answer, in s. It is long because an answer is read no
#: faster than the application takes its state.
REQUEST_TIMEOUT = 300.0
#: Time limit of a put, a listing or a deletion with its repeats, in s.
CALL_TIMEOUT = 60.0
#: A request is repeated at most this often. The library repeats it after 408, 429, 5xx, and if the
#: connection fails; and continues an answer that breaks off.
REPEATS = 2
#: The pause before the first repeat, in s. It doubles with each, with jitter.
FIRST_PAUSE = 0.2
#: The least bytes of a piece that is read, but for the last.
SLICE = 256 * 1024
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,100})</Code>")
_KIND = re.compile(r"\bkind: (\w{1,40})")


class LibraryMissing(Exception):
    """A bucket is configured, and the library for it is not installed. The message is one line."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """The access key that signs requests. `repr` leaves the secrets out."""

    key_id: str
    secret: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    """The token that belongs to a temporary key."""


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """A bucket, its host and the credentials for it."""

    origin: str
    """Scheme, host and port."""
    bucket: str
    region: str
    credentials: Credentials | None
    """None: those of the environment, a web identity, or the instance's role."""
    virtual_host: bool = False
    """Whether the bucket's name is part of the host's name instead of the path."""


#: The options in the query of an address, and the values that they can have; None: any but "".
OPTIONS: dict[str, tuple[str, ...] | None] = {
    "region": None,
    "session_token": None,
    "credentials": ("environment",),
    "addressing": ("path", "virtual"),
    "tls": ("true", "false"),
}


def parse_address(text: str) -> BucketAddress:
    """Parse `s3://key:secret@host[:port]/bucket?region=…`; docs/configuration.md has the options.

    Raises ValueError, whose message does not contain the text, since the text contains a secret.
    """
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    bucket = parts.path.strip("/")
    wrong = [
        name
        for name, value in options.items()
        if name not in OPTIONS or value not in (OPTIONS[name] or (value,)) or not value
    ]
    if parts.scheme != "s3" or not parts.hostname or not bucket or "/" in bucket or wrong:
        raise ValueError("not the address of a bucket")
    virtual_host = options.get("addressing") == "virtual"
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    host = f"{bucket}.{name}" if virtual_host else name
    scheme = "https" if options.get("tls", "true") == "true" else "http"
    return BucketAddress(
        f"{scheme}://{host}:{parts.port}" if parts.port else f"{scheme}://{host}",
        bucket,
        options.get("region", "us-east-1"),
        _credentials(parts.username, parts.password, options),
        virtual_host,
    )


def _credentials(
    key_id: str | None, secret: str | None, options: dict[str, str]
) -> Credentials | None:
    """The static credentials of an address; None if it says `credentials=environment`. Raises
    ValueError if it has both or neither.
    """
    from_environment = "credentials" in options
    given = bool(key_id and secret)
    if from_environment == given or (from_environment and (key_id or "session_token" in options)):
        raise ValueError("not the credentials of a bucket")
    if from_environment:
        return None
    return Credentials(unquote(key_id or ""), unquote(secret or ""), options.get("session_token"))


class S3Bucket:
    """One bucket. It has nothing to close: idle connections end by themselves."""

    def __init__(self, address: BucketAddress) -> None:
        """Sends no request. Raises LibraryMissing."""
        self._store = _open(address)

    async def put(self, name: str, pieces: Sequence[bytes]) -> None:
        with _translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._store.put_async(name, list(pieces), use_multipart=False)

    async def read(self, name: str) -> AsyncGenerator[bytes]:
        with _translated(name):
            answer = await self._store.get_async(name)
            async for piece in answer.stream(SLICE):
                yield piece

    async def list(self, prefix: str) -> Sequence[str]:
        with _translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                batches = self._store.list(prefix=prefix)
                return [found["path"] async for batch in batches for found in batch]

    async def delete(self, name: str) -> None:
        # S3 answers 204 if there is no such object; some stores answer 404.
        with suppress(ObjectMissing), _translated(name):
            async with asyncio.timeout(CALL_TIMEOUT):
                await self._store.delete_async(name)


def _open(address: BucketAddress) -> S3Store:
    """The library's client of the bucket. Raises LibraryMissing.

    The library reads the environment too. `AWS_ENDPOINT_URL_S3` would override the endpoint,
    `AWS_SESSION_TOKEN` would be sent with a key that it does not belong to, and a proxy would get
    the requests. What the environment could override is therefore given by name, and static
    credentials by a function, which the environment cannot add to.
    """
    try:
        from obstore.store import S3Store
    except ImportError:
        raise LibraryMissing(
            "ROOST_CHECKPOINT_BUCKET_URL: a bucket needs the library obstore; "
            "install it with: pip install 'roost[s3]'"
        ) from None
    client: ClientConfig = {
        "allow_http": address.origin.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT),
        "read_timeout": timedelta(seconds=READ_TIMEOUT),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT),
    }
    if address.credentials is not None:
        # The library has no option for "no proxy". This proxy is used for no host.
        client["proxy_url"] = address.origin
        client["proxy_excludes"] = urlsplit(address.origin).hostname or ""
    return S3Store(
        address.bucket,
        endpoint=address.origin,
        aws_endpoint_url_s3=address.origin,
        region=address.region,
        virtual_hosted_style_request=address.virtual_host,
        skip_signature=False,
        # The signature covers the hash of the body, so that the store rejects a body that was
        # changed in transit.
        unsigned_payload=False,
        # Not every S3-compatible store can delete several objects by one request.
        disable_bulk_delete=True,
        client_options=client,
        retry_config={
            "max_retries": REPEATS,
            "retry_timeout": timedelta(seconds=CALL_TIMEOUT),
            "backoff": {
                "init_backoff": timedelta(seconds=FIRST_PAUSE),
                "max_backoff": timedelta(seconds=FIRST_PAUSE * 2**REPEATS),
                "base": 2,
            },
        },
        credential_provider=_provider(address.credentials),
    )


def _provider(credentials: Credentials | None) -> Callable[[], S3Credential] | None:
    """A function that returns the static credentials; None: the library looks for others."""
    if credentials is None:
        return None
    found: S3Credential = {
        "access_key_id": credentials.key_id,
        "secret_access_key": credentials.secret,
        "token": credentials.session_token,
        "expires_at": None,
    }
    return lambda: found


@contextmanager
def _translated(name: str | None = None) -> Iterator[None]:
    """Raise the library's errors as StorageUnavailable; as ObjectMissing if the store says that
    there is no object `name`.

    Neither error has the library's text, and no traceback shows it. That text quotes the store's
    answer, and a store that rejects a signature quotes the request in it, with the session token.
    """
    try:
        yield
    except FileNotFoundError as error:
        # The library raises this for every 404. One with another code is about the bucket, or
        # comes from a server that is not the store: it does not prove that the object is missing.
        if name is not None and _word(_CODE, str(error)) == "NoSuchKey":
            raise ObjectMissing(name) from None
        raise _unavailable(error) from None
    except Exception as error:  # noqa: BLE001 - a panic of the library has no documented type
        raise _unavailable(error) from None


def _unavailable(error: Exception) -> StorageUnavailable:
    """The error for a request that failed. From the library's text it takes only the status and the
    store's error code or, without a status, the kind of failure.
    """
    text = str(error)
    status, code = _word(_STATUS, text), _word(_CODE, text) or "no reason"
    if not status:
        kind = _word(_KIND, text) or type(error).__name__
        return StorageUnavailable(f"the checkpoint bucket did not answer ({kind}); try again")
    _log.warning("the bucket rejected a request: %s %s", status, code, extra={"action": "bucket"})
    return StorageUnavailable(
        f"the checkpoint bucket rejected a request ({status} {code}); try again, and check "
        "ROOST_CHECKPOINT_BUCKET_URL if that does not help",
        {"status": status, "code": code},
    )


def _word(pattern: re.Pattern[str], text: str) -> str:
    """The first group of the pattern in the text; "" if it is not there."""
    found = pattern.search(text)
    return found.group(1) if found else ""
