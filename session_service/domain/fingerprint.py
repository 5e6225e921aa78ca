"""What a running container cannot follow if it changes: a hash of it, and which parts differ."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from session_service.domain import spec as specs

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The parts of a spec that a resumed container keeps as they were when it was created.
PARTS = ("image", "env", "region", "guest", "secret_generation")


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Hex SHA-256 of those parts; what is not set leaves the hash as it was before there was such a
    part. Any: JSON as the proto maps it.
    """
    parts = {name: spec[name] for name in PARTS if spec.get(name)}
    return hashlib.sha256(specs.dump(parts).encode()).hexdigest()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the parts that differ; never their values, which may be secret."""
    return tuple(name for name in PARTS if (one.get(name) or None) != (other.get(name) or None))


def kept_files(spec: Mapping[str, Any]) -> bool:
    """Whether files of such a container outlive it: those on a volume do."""
    return bool(spec.get("mounts"))
