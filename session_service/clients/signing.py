"""AWS Signature Version 4, as S3 wants it: the headers that prove who asks, and for what.

After docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html. The hash of the body is
signed, so that the store refuses bytes that were changed on their way.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "s3"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks. The secret is in no repr."""

    key_id: str
    secret: str = field(repr=False)
    region: str = "us-east-1"


def encoded(text: str, safe: str = "") -> str:
    """Percent-encoded as the signature wants it: all but letters, digits and -._~"""
    return quote(text, safe=f"-._~{safe}")


def signed_headers(
    credentials: Credentials,
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    payload: str,
    now: datetime,
) -> dict[str, str]:
    """The headers to send with the request; `path` is encoded, `query` is not, `payload` is the
    body's hex SHA-256, `now` is UTC.
    """
    moment = now.strftime("%Y%m%dT%H%M%SZ")
    day = moment[:8]
    headers = {"host": host, "x-amz-content-sha256": payload, "x-amz-date": moment}
    names = ";".join(sorted(headers))
    canonical = "\n".join(
        (
            method,
            path,
            canonical_query(query),
            *(f"{name}:{headers[name]}" for name in sorted(headers)),
            "",
            names,
            payload,
        )
    )
    scope = f"{day}/{credentials.region}/{SERVICE}/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    to_sign = "\n".join((ALGORITHM, moment, scope, digest))
    signature = hmac.new(_key(credentials, day), to_sign.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        f"{ALGORITHM} Credential={credentials.key_id}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return headers


def canonical_query(query: Mapping[str, str]) -> str:
    """The query as it is signed and sent: encoded, and sorted by name."""
    return "&".join(f"{encoded(name)}={encoded(value)}" for name, value in sorted(query.items()))


def _key(credentials: Credentials, day: str) -> bytes:
    key = f"AWS4{credentials.secret}".encode()
    for part in (day, credentials.region, SERVICE, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
