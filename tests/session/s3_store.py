"""An S3-compatible store over real HTTP that checks signatures and fails on demand. It takes no
multipart uploads.

After docs.aws.amazon.com/AmazonS3/latest/API. It computes all checks itself and uses no code of
the client under test.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from local.fly.http_server import serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from starlette.requests import Request

KEY_ID, SECRET, REGION, BUCKET = "AKROOST", "a/secret+with odd=signs", "eu-north-1", "birds"
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)


@dataclass
class Store:
    """The store's contents, the requests that it received, and its next faults."""

    url: str = ""
    port: int = 0
    objects: dict[str, bytes] = field(default_factory=dict)
    session_token: str = ""
    """The token that must come with the access key; "": none may come."""
    asked: list[str] = field(default_factory=list)
    """Each request that was accepted: its method, and the names in its query."""
    rejected: list[str] = field(default_factory=list)
    """The error codes of requests that were not authorized."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(request as in `asked`, its fault): "503", "403", "404", "flip", "cut", "hold", "none"."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a request with the fault "hold" has arrived."""
    release: asyncio.Event = field(default_factory=asyncio.Event)
    """Lets the requests that are held go on."""

    def take(self, asked: str) -> str:
        """The fault of this request, which applies once; "" for none."""
        for fault in self.faults:
            if fault[0] == asked:
                self.faults.remove(fault)
                return fault[1]
        return ""

    def address(self, credentials: str, options: str = "") -> str:
        """The address with these credentials and further options."""
        return (
            f"s3://{credentials}127.0.0.1:{self.port}/{BUCKET}?region={REGION}&tls=false{options}"
        )


@asynccontextmanager
async def store() -> AsyncGenerator[Store]:
    """Run a store on a free port of this machine."""
    bucket = Store()

    async def answer(request: Request) -> Response:
        return await _answer(bucket, request)

    app = Starlette(
        routes=[Route("/{path:path}", answer, methods=["GET", "PUT", "POST", "DELETE"])]
    )
    async with serving(app, "127.0.0.1", 0, "port") as bucket.port:
        bucket.url = bucket.address(f"{KEY_ID}:{quote(SECRET, safe='')}@")
        yield bucket


async def _answer(bucket: Store, request: Request) -> Response:
    body = await request.body()
    wrong = _wrong(request, body, bucket.session_token)
    if wrong:
        bucket.rejected.append(wrong)
        # S3 quotes the request whose signature is wrong, with all headers that are signed.
        return _error(403, wrong, f"<CanonicalRequest>{request.headers}</CanonicalRequest>")
    query = dict(request.query_params)
    asked = " ".join([request.method, *sorted(query)])
    bucket.asked.append(asked)
    fault = bucket.take(asked)
    if fault in ("503", "403"):
        return _error(int(fault), "SlowDown" if fault == "503" else "AccessDenied")
    if fault == "404":
        return _error(404, "NoSuchBucket")
    if fault == "hold":
        bucket.held.set()
        await bucket.release.wait()
    name = request.path_params["path"].removeprefix(f"{BUCKET}/")
    match asked:
        case "PUT":
            bucket.objects[name] = _flipped(body) if fault == "flip" else body
            return Response(headers={"etag": f'"{hashlib.md5(body).hexdigest()}"'})
        case "DELETE":
            bucket.objects.pop(name, None)
            return Response(status_code=204)
        case "GET list-type prefix":
            return _listing(bucket, query["prefix"])
        case "GET" if name in bucket.objects:
            stored = bucket.objects[name]
            return _object(request, _flipped(stored) if fault == "flip" else stored, fault == "cut")
        case "GET":
            return _error(404, "NoSuchKey")
        case _:
            return _error(501, "NotImplemented")


def _listing(bucket: Store, prefix: str) -> Response:
    found = "".join(
        f"<Contents><Key>{name}</Key><LastModified>2026-11-22T10:00:00.000Z</LastModified>"
        f"<Size>{len(body)}</Size></Contents>"
        for name, body in sorted(bucket.objects.items())
        if name.startswith(prefix)
    )
    truncated = "<IsTruncated>false</IsTruncated>"
    return _xml(f"<ListBucketResult>{truncated}{found}</ListBucketResult>")


def _object(request: Request, body: bytes, cut: bool) -> Response:
    """The object, or the rest of it that a client asks for after an answer that broke off."""
    first = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
    headers = {
        "content-length": str(len(body) - first),
        "etag": f'"{hashlib.md5(body).hexdigest()}"',
        "last-modified": "Sun, 22 Nov 2026 10:00:00 GMT",
    }
    if first:
        headers["content-range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"

    async def pieces() -> AsyncIterator[bytes]:
        step = 256 * 1024
        for start in range(first, len(body), step):
            if cut and start >= first + (len(body) - first) // 2:
                request.scope["extensions"]["roost.abort"]()
                return
            yield body[start : start + step]

    return StreamingResponse(pieces(), 206 if first else 200, headers)


def _flipped(body: bytes) -> bytes:
    changed = bytearray(body)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def _xml(text: str) -> Response:
    return Response(text, media_type="application/xml")


def _error(status: int, code: str, more: str = "") -> Response:
    text = f"<Error><Code>{code}</Code>{more}</Error>"
    return Response(text, status, media_type="application/xml")


def _wrong(request: Request, body: bytes, session_token: str) -> str:
    """The error code for a request that is not authorized; "" for one that is."""
    found = _SIGNED.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return "AccessDenied"
    key_id, day, region, names, signature = found.groups()
    if (key_id, region) != (KEY_ID, REGION):
        return "InvalidAccessKeyId"
    if not {"host", "x-amz-content-sha256", "x-amz-date"} <= set(names.split(";")):
        return "AccessDenied"
    token = request.headers.get("x-amz-security-token", "")
    if token != session_token or (token and "x-amz-security-token" not in names.split(";")):
        return "InvalidToken"
    if request.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
        return "XAmzContentSHA256Mismatch"
    query = sorted(request.query_params.multi_items())
    canonical = [
        request.method,
        request.scope["raw_path"].decode(),
        "&".join(f"{quote(k, safe='-._~')}={quote(v, safe='-._~')}" for k, v in query),
        *(f"{name}:{request.headers[name].strip()}" for name in names.split(";")),
        "",
        names,
        request.headers["x-amz-content-sha256"],
    ]
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    moment = request.headers["x-amz-date"]
    to_sign = f"AWS4-HMAC-SHA256\n{moment}\n{day}/{region}/s3/aws4_request\n{digest}"
    key = b"AWS4" + SECRET.encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    expected = hmac.digest(key, to_sign.encode(), "sha256").hex()
    return "" if hmac.compare_digest(signature, expected) else "SignatureDoesNotMatch"
