"""The container spec as the session keeps it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def dump(spec: Mapping[str, Any]) -> str:
    """The canonical form in the row: sorted keys, no spaces."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load(raw: str) -> dict[str, Any]:
    """Read back what `dump` wrote."""
    spec: dict[str, Any] = json.loads(raw)
    return spec


def spec_hash(spec: Mapping[str, Any]) -> str:
    """Hex SHA-256 of the whole spec: equal for specs that ask for the same."""
    return hashlib.sha256(dump(spec).encode()).hexdigest()


def keeps_files(raw: str) -> bool:
    """Whether the root file system of such a container outlives a stop."""
    return not load(raw).get("ephemeral_root_filesystem", False)
