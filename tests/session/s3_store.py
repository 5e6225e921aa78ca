"""An S3-compatible store over real HTTP: signatures are checked, uploads come in parts, faults too.

After docs.aws.amazon.com/AmazonS3/latest/API. What it checks, it works out by itself: nothing of
the client that is tested is used here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import uuid4

from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from local.fly.servers import serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from starlette.requests import Request

KEY_ID, SECRET, REGION, BUCKET = "AKROOST", "a/secret+with odd=signs", "eu-north-1", "birds"
LEAST_PART = 5 * 1024 * 1024
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request, "
    r"SignedHeaders=([a-z0-9;-]+), Signature=([0-9a-f]{64})"
)


@dataclass
class Store:
    """What is in it, what was asked of it, and what goes wrong next."""

    url: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Each request that was let in: its method, and the names in its query."""
    refused: list[str] = field(default_factory=list)
    """Why requests were not let in."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """(request as in `asked`, what happens to it): "503", "403", "404", "flip", "error", "cut"."""

    def take(self, asked: str) -> str:
        """The fault that this request meets, once; "" for none."""
        for fault in self.faults:
            if fault[0] == asked:
                self.faults.remove(fault)
                return fault[1]
        return ""


@asynccontextmanager
async def store() -> AsyncGenerator[Store]:
    """Run a store on a free port of this machine."""
    kept = Store()

    async def answer(request: Request) -> Response:
        return await _answer(kept, request)

    app = Starlette(
        routes=[Route("/{path:path}", answer, methods=["GET", "PUT", "POST", "DELETE"])]
    )
    async with serving(app, "127.0.0.1", 0, "port") as port:
        secret = quote(SECRET, safe="")
        kept.url = f"s3://{KEY_ID}:{secret}@127.0.0.1:{port}/{BUCKET}?region={REGION}&tls=false"
        yield kept


async def _answer(kept: Store, request: Request) -> Response:
    body = await request.body()
    wrong = _wrong(request, body)
    if wrong:
        kept.refused.append(wrong)
        return _error(403, wrong)
    query = dict(request.query_params)
    asked = " ".join([request.method, *sorted(query)])
    kept.asked.append(asked)
    fault = kept.take(asked)
    if fault in ("503", "403"):
        return _error(int(fault), "SlowDown" if fault == "503" else "AccessDenied")
    if fault == "404":
        return _error(404, "NoSuchBucket")
    name = request.path_params["path"].removeprefix(f"{BUCKET}/")
    match asked:
        case "POST uploads":
            upload = uuid4().hex + "~"
            kept.uploads[upload] = {}
            return _xml(f"<R><UploadId>{upload}</UploadId></R>")
        case "PUT partNumber uploadId":
            return _part(kept, query, _flipped(body) if fault == "flip" else body)
        case "POST uploadId":
            if fault == "error":
                return _xml("<Error><Code>InternalError</Code></Error>")
            return _complete(kept, name, query["uploadId"], body)
        case "DELETE uploadId":
            gone = kept.uploads.pop(query["uploadId"], None)
            return Response(status_code=204) if gone is not None else _error(404, "NoSuchUpload")
        case "DELETE":
            kept.objects.pop(name, None)
            return Response(status_code=204)
        case "GET" if name in kept.objects:
            stored = kept.objects[name]
            return _object(_flipped(stored) if fault == "flip" else stored, cut=fault == "cut")
        case _:
            return _error(404, "NoSuchKey")


def _part(kept: Store, query: dict[str, str], body: bytes) -> Response:
    parts = kept.uploads.get(query["uploadId"])
    if parts is None:
        return _error(404, "NoSuchUpload")
    parts[int(query["partNumber"])] = body
    return Response(headers={"etag": f'"{hashlib.md5(body).hexdigest()}"'})


def _complete(kept: Store, name: str, upload: str, body: bytes) -> Response:
    parts = kept.uploads.get(upload)
    if parts is None:
        return _error(404, "NoSuchUpload")
    listed = re.findall(
        r'<PartNumber>(\d+)</PartNumber><ETag>&?q?u?o?t?;?"?([0-9a-f]+)', body.decode()
    )
    numbers = [int(number) for number, _ in listed]
    if numbers != sorted(parts) or numbers != list(range(1, len(parts) + 1)):
        return _error(400, "InvalidPart")
    if any(hashlib.md5(parts[int(number)]).hexdigest() != tag for number, tag in listed):
        return _error(400, "InvalidPart")
    if any(len(parts[number]) < LEAST_PART for number in numbers[:-1]):
        return _error(400, "EntityTooSmall")
    kept.objects[name] = b"".join(parts[number] for number in numbers)
    del kept.uploads[upload]
    return _xml("<R/>")


def _object(body: bytes, *, cut: bool) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        step = 256 * 1024
        for start in range(0, len(body), step):
            if cut and start >= len(body) // 2:
                raise ConnectionError("cut off, as a test wants it")
            yield body[start : start + step]

    return StreamingResponse(parts(), headers={"content-length": str(len(body))})


def _flipped(body: bytes) -> bytes:
    changed = bytearray(body)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


def _xml(text: str) -> Response:
    return Response(text, media_type="application/xml")


def _error(status: int, code: str) -> Response:
    return Response(f"<Error><Code>{code}</Code></Error>", status, media_type="application/xml")


def _wrong(request: Request, body: bytes) -> str:
    """Why the request is not let in; "" where it is."""
    found = _SIGNED.fullmatch(request.headers.get("authorization", ""))
    if found is None:
        return "AccessDenied"
    key_id, day, region, names, signature = found.groups()
    if (key_id, region) != (KEY_ID, REGION):
        return "InvalidAccessKeyId"
    if not {"host", "x-amz-content-sha256", "x-amz-date"} <= set(names.split(";")):
        return "AccessDenied"
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
