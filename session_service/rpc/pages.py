"""Page tokens: where a page ended, and of which listing, so that a foreign one is refused."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import TYPE_CHECKING

from session_service.errors import InvalidField

if TYPE_CHECKING:
    from collections.abc import Sequence


def digest(*parts: str) -> str:
    """What the token is bound to: everything that makes the listing what it is."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def make(listing: str, position: Sequence[str]) -> str:
    """The token for the page after `position`, within the listing of this digest."""
    raw = json.dumps([listing, *position], separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read(token: str, listing: str, parts: int) -> list[str]:
    """The position that `make` put in. Raises InvalidField for a token of another listing."""
    values: object = None
    try:
        if len(token) <= 512:
            values = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        values = None
    if not isinstance(values, list) or len(values) != parts + 1 or values[0] != listing:
        raise InvalidField.of(
            "page_token",
            "is not from this listing; repeat the call that gave it, or begin without one",
        )
    return [str(value) for value in values[1:]]
