"""What a running container cannot follow if it changes: a hash of it, and which parts differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
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


class Carrier(StrEnum):
    """What brings a container's files, or its application's state, into one of another spec."""

    VOLUME = "VOLUME"
    """The volume that both mount."""
    CHECKPOINT = "CHECKPOINT"
    """A checkpoint of what the application hands out by the state hook that both declare."""


@dataclass(frozen=True, slots=True)
class Change:
    """A start asks for another spec than the container was created from."""

    parts: tuple[str, ...]
    """Which parts differ; never how."""
    same_volume: bool = False
    """Whether both mount the same: the root file system goes with its container, a volume stays."""
    same_hook: bool = False
    """Whether both declare the same state hook. Who declares it of both says so that the one takes
    what the other hands out: to Roost it is bytes."""


def change(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Change | None:
    """What differs; None where nothing does. Any: JSON as the proto maps it."""
    parts = differing(before, wanted)
    if not parts:
        return None
    return Change(parts, _same("mounts", before, wanted), _same("state_hook", before, wanted))


def _same(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both have it, and the same."""
    return bool(one.get(name)) and one.get(name) == other.get(name)
