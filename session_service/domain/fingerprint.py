"""What a running container cannot follow if it changes: a hash of it, and which parts differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Change:
    """A start asks for another spec than the container was created from."""

    parts: tuple[str, ...]
    """Which parts differ; never how."""
    keeps_files: bool = False
    """Whether a new container of the wanted spec would have the old one's files: those on a volume
    that both mount, since the root file system goes with its container."""


def change(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Change | None:
    """What differs; None where nothing does. Any: JSON as the proto maps it."""
    parts = differing(before, wanted)
    if not parts:
        return None
    mounts = before.get("mounts")
    return Change(parts, bool(mounts) and mounts == wanted.get("mounts"))
