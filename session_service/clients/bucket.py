"""`ports.Bucket` as an S3-compatible store answers it: five requests, each signed.

No library: the small asynchronous one there is (obstore) is a binary of some megabytes, and boto's
is many packages; this is all of S3 that a checkpoint needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

import httpx

from session_service.clients.signing import Credentials, canonical_query, encoded, signed_headers
from session_service.errors import StorageUnavailable
from session_service.ports import ObjectMissing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

_log = logging.getLogger(__name__)

#: One request, in s: connecting, and between two pieces of an answer.
TIMEOUT = httpx.Timeout(30.0, connect=5.0)
#: A request that may be repeated is sent so often in all.
TRIES = 3
FIRST_PAUSE = 0.2
#: Answers that another try may change.
PASSING = frozenset({408, 429, 500, 502, 503, 504})
_UPLOAD = re.compile(rb"<UploadId>([^<]+)</UploadId>")
_CODE = re.compile(rb"<Code>([^<]{1,100})</Code>")
#: Of a body, sent at once.
SLICE = 256 * 1024
EMPTY = hashlib.sha256().hexdigest()
#: Of a refusal, read at most so much.
REFUSAL_LIMIT = 4096


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """Which bucket, where, and as whom. Written `s3://key:secret@host[:port]/bucket?region=…`."""

    origin: str
    host: str
    bucket: str
    credentials: Credentials


def parse_address(text: str) -> BucketAddress:
    """The address that the text means; `tls=false` in its query speaks plain HTTP.

    Raises ValueError, which does not show the text: it holds a secret.
    """
    parts = urlsplit(text)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    bucket = parts.path.strip("/")
    secret = parts.password or ""
    unknown = set(options) - {"region", "tls"}
    sound = parts.scheme == "s3" and parts.hostname and parts.username and secret and bucket
    if not sound or "/" in bucket or unknown or options.get("tls", "true") not in ("true", "false"):
        raise ValueError("not the address of a bucket")
    scheme = "https" if options.get("tls", "true") == "true" else "http"
    name = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    host = f"{name}:{parts.port}" if parts.port else f"{name}"
    credentials = Credentials(
        unquote(parts.username or ""), unquote(secret), options.get("region") or "us-east-1"
    )
    return BucketAddress(f"{scheme}://{host}", host, bucket, credentials)


class S3Bucket:
    """One bucket, over one HTTP client that its giver closes."""

    def __init__(self, address: BucketAddress, http: httpx.AsyncClient) -> None:
        self._address = address
        self._http = http

    async def begin(self, name: str) -> str:
        answer = await self._ask("POST", name, {"uploads": ""})
        found = _UPLOAD.search(answer.content)
        if found is None:
            raise StorageUnavailable("the bucket began no upload; try again")
        return unescape(found.group(1).decode())

    async def put_part(self, name: str, upload: str, number: int, pieces: Sequence[bytes]) -> str:
        # The same part once more replaces the first: safe to repeat.
        query = {"partNumber": str(number), "uploadId": upload}
        answer = await self._ask("PUT", name, query, pieces)
        tag = answer.headers.get("etag")
        if not tag:
            raise StorageUnavailable("the bucket did not confirm a part; try again")
        return str(tag)

    async def complete(self, name: str, upload: str, tags: Sequence[str]) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        answer = await self._ask("POST", name, {"uploadId": upload}, [body])
        # S3 answers 200 before it is done, and may say only then that it failed.
        if b"<Error>" in answer.content:
            raise _refused(answer.status_code, answer.content)

    async def abort(self, name: str, upload: str) -> None:
        await self._ask("DELETE", name, {"uploadId": upload}, gone_is_good=True)

    async def delete(self, name: str) -> None:
        await self._ask("DELETE", name, {}, gone_is_good=True)

    async def read(self, name: str) -> AsyncGenerator[bytes]:
        request = self._request("GET", name, {}, (), EMPTY)
        try:
            answer = await self._http.send(request, stream=True)
            try:
                if answer.status_code != 200:
                    body = await _head(answer)
                    # Any other 404 is of the bucket, or of whoever answers in its place.
                    if answer.status_code == 404 and _code(body) == "NoSuchKey":
                        raise ObjectMissing(name)
                    raise _refused(answer.status_code, body)
                async for part in answer.aiter_raw():
                    yield part
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    def _request(
        self,
        method: str,
        name: str,
        query: Mapping[str, str],
        pieces: Sequence[bytes],
        payload: str,
    ) -> httpx.Request:
        """A request, signed as of now; `payload` is the hex SHA-256 of all pieces together."""
        where = self._address
        path = f"/{encoded(where.bucket)}/{encoded(name, '/')}"
        headers = signed_headers(
            where.credentials, method, where.host, path, query, payload, datetime.now(UTC)
        )
        # Told, so that a body that is sent in pieces need not be chunked, which S3 does not take.
        headers["content-length"] = str(sum(map(len, pieces)))
        url = f"{where.origin}{path}"
        if query:
            url = f"{url}?{canonical_query(query)}"
        return self._http.build_request(
            method, url, headers=headers, content=_sent(pieces), timeout=TIMEOUT
        )

    async def _ask(
        self,
        method: str,
        name: str,
        query: Mapping[str, str],
        pieces: Sequence[bytes] = (),
        *,
        gone_is_good: bool = False,
    ) -> httpx.Response:
        """One request, a few times if need be. Raises StorageUnavailable."""
        payload = await asyncio.to_thread(_hash, pieces)
        for left in range(TRIES - 1, -1, -1):
            try:
                request = self._request(method, name, query, pieces, payload)
                answer = await self._http.send(request)
            except httpx.HTTPError as error:
                if not left:
                    raise _unreachable(error) from error
            else:
                if answer.is_success or (gone_is_good and answer.status_code == 404):
                    return answer
                if answer.status_code not in PASSING or not left:
                    raise _refused(answer.status_code, answer.content)
            await asyncio.sleep(FIRST_PAUSE * 2 ** (TRIES - 1 - left) * random.uniform(0.5, 1.0))
        raise AssertionError("the last try returns or raises")


def _hash(pieces: Sequence[bytes]) -> str:
    """The hex SHA-256 of all pieces together."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


async def _sent(pieces: Sequence[bytes]) -> AsyncGenerator[bytes]:
    """The body in small slices: what is handed over whole is copied whole, several times."""
    for piece in pieces:
        for start in range(0, len(piece), SLICE):
            yield piece[start : start + SLICE]


async def _head(answer: httpx.Response) -> bytes:
    """The beginning of a refusal."""
    async for part in answer.aiter_bytes(REFUSAL_LIMIT):
        return part
    return b""


def _refused(status: int, body: bytes) -> StorageUnavailable:
    """The refusal, with the store's own word for it; never with what was sent."""
    word = _code(body)
    _log.warning("the bucket refused: %d %s", status, word, extra={"action": "bucket"})
    return StorageUnavailable(
        f"the checkpoint bucket refused ({status} {word}); try again, and look at "
        "ROOST_CHECKPOINT_BUCKET_URL if it goes on",
        {"status": str(status), "code": word},
    )


def _code(body: bytes) -> str:
    """The store's own word for why it refused."""
    found = _CODE.search(body[:REFUSAL_LIMIT])
    return found.group(1).decode(errors="replace") if found else "no reason"


def _unreachable(error: httpx.HTTPError) -> StorageUnavailable:
    """The store did not answer; httpx's text can hold the address, its type cannot."""
    return StorageUnavailable(
        f"the checkpoint bucket did not answer ({type(error).__name__}); try again"
    )
