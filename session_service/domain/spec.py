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


def remounted(mount: Mapping[str, Any], volume_id: str) -> dict[str, Any]:
    """The mount with a restored volume in place of the one that it had. Any: JSON; which volume was
    asked for stays beside it, where only `as_restored` looks.
    """
    asked = mount.get("in_place_of") or mount["volume_id"]
    return {**mount, "volume_id": volume_id, "in_place_of": asked}


def as_restored(wanted: Mapping[str, Any], raw: str) -> Mapping[str, Any]:
    """The spec that is wanted of a session whose own is `raw`: where it names a volume that was
    restored for the session, it means the one that the session has in its place. Any: JSON.
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
