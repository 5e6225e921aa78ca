"""The container spec as the session keeps it, and its fingerprint.

The fingerprint is a hash of the parts of a spec that a container cannot change once it exists.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


def dump(spec: Mapping[str, Any]) -> str:
    """The canonical form in the row: sorted keys, no spaces."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load(raw: str) -> dict[str, Any]:
    """Parse what `dump` wrote."""
    spec: dict[str, Any] = json.loads(raw)
    return spec


def spec_hash(spec: Mapping[str, Any]) -> str:
    """Hex SHA-256 of the whole spec: equal for equal specs."""
    return hashlib.sha256(dump(spec).encode()).hexdigest()


def keeps_files(raw: str) -> bool:
    """Whether the root file system of a container with this spec outlives a stop."""
    return not load(raw).get("ephemeral_root_filesystem", False)


def remounted(mount: Mapping[str, Any], volume_id: str) -> dict[str, Any]:
    """The mount with a restored volume in place of the one that it had. Any: JSON.

    The volume of the request stays in `in_place_of`, which only `as_restored` reads.
    """
    requested = mount.get("in_place_of") or mount["volume_id"]
    return {**mount, "volume_id": volume_id, "in_place_of": requested}


def as_restored(wanted: Mapping[str, Any], raw: str) -> Mapping[str, Any]:
    """The spec that a start wants, for a session whose spec is `raw`. Any: JSON.

    A restore may have replaced a volume of the session by a restored one. If the wanted spec still
    names the replaced volume, the result names the restored volume in its place.
    """
    has = {
        each["in_place_of"]: each for each in load(raw).get("mounts", ()) if "in_place_of" in each
    }
    if not has or not wanted.get("mounts"):
        return wanted
    mounts = [
        remounted(each, has[each["volume_id"]]["volume_id"]) if each["volume_id"] in has else each
        for each in wanted["mounts"]
    ]
    return {**wanted, "mounts": mounts}


#: The parts of a spec that an existing container keeps as they were at its creation.
PARTS = ("image", "env", "region", "guest", "secret_generation")


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Hex SHA-256 of the parts in PARTS. Any: JSON as the proto maps it.

    A part that is not set is left out, so that a part added later does not change older hashes.
    """
    parts = {name: spec[name] for name in PARTS if spec.get(name)}
    return hashlib.sha256(dump(parts).encode()).hexdigest()


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the parts that differ; not their values, which may be secret."""
    return tuple(name for name in PARTS if (one.get(name) or None) != (other.get(name) or None))


class Carrier(StrEnum):
    """How the state of a container gets into a container with another spec."""

    VOLUME = "VOLUME"
    """By the volume that both mount."""
    CHECKPOINT = "CHECKPOINT"
    """By a checkpoint, through the state hook that both declare."""


@dataclass(frozen=True, slots=True)
class Change:
    """A start asks for another spec than the container was created from."""

    parts: tuple[str, ...]
    """The names of the parts that differ."""
    same_volume: bool = False
    """Whether both have the same mounts: a volume stays when its container is destroyed."""
    same_hook: bool = False
    """Whether both declare the same state hook. By that the caller declares that the new image can
    read the state of the old one; Roost does not interpret the state."""


def change(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> Change | None:
    """How the wanted spec differs; None if no part does. Any: JSON as the proto maps it."""
    parts = differing(before, wanted)
    if not parts:
        return None
    return Change(parts, _same("mounts", before, wanted), _same("state_hook", before, wanted))


def _same(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both specs set this field, to the same value."""
    return bool(one.get(name)) and one.get(name) == other.get(name)
