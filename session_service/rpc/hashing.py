"""The hash of a request's body: what a repeat with the same request id must equal."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from session_service.domain.session import DEFAULT_SLOT

if TYPE_CHECKING:
    from google.protobuf.message import Message


def request_hash(request: Message) -> bytes:
    """SHA-256 of the request's fields but its id, alike for requests that mean the same."""
    same = type(request)()
    same.CopyFrom(request)
    same.ClearField("request_id")
    if hasattr(same, "session_id"):
        same.session_id = same.session_id.lower()
    key = getattr(same, "key", None)
    if key is not None and not key.slot:
        key.slot = DEFAULT_SLOT
    return hashlib.sha256(same.SerializeToString(deterministic=True)).digest()
