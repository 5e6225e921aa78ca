"""Mounts: a volume under a path of a guest, by a symbolic link."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from local.fly.errors import ApiError
from local.fly.go_json import items, text


@dataclass(frozen=True)
class MountRequest:
    """The mount that a config requests: a volume by id, or any free volume of a name."""

    volume: str
    name: str
    path: str


@dataclass(frozen=True)
class Mount:
    """A volume's files, to appear under a path of the guest."""

    path: str
    files: Path

    def place(self, rootfs: Path) -> None:
        """Replace the path in the root file system by a link to the files."""
        link = _inside(rootfs, self.path)
        remove(rootfs, self.path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.files)

    def rewrite(self, words: str) -> str:
        """Replace the guest's path in a command or variable by the real path of the files.

        Guests share the host's file system: without this an absolute path would name a folder of
        the host.
        """
        pattern = rf"(?<![\w./-]){re.escape(self.path)}(?![\w.-])"
        return re.sub(pattern, lambda _: str(self.files), words)


def requested_mount(config: Mapping[str, object]) -> MountRequest | None:
    """The mount of a config, or None. Raises a 400 for an invalid one."""
    found = items(config, "mounts")
    if len(found) > 1:
        raise ApiError(400, "invalid_argument: a machine can have one mount at most")
    if not found:
        return None
    fields = found[0]
    if not isinstance(fields, dict):
        raise ApiError(400, "json: cannot unmarshal into Go struct field mounts")
    volume, name = text(fields, "volume") or "", text(fields, "name") or ""
    path = text(fields, "path") or ""
    parts = PurePosixPath(path).parts
    if not path.startswith("/") or len(parts) < 2 or ".." in parts or not path.isprintable():
        raise ApiError(400, "invalid_argument: config.mounts.path must be an absolute path")
    if not volume and not name:
        raise ApiError(400, "invalid_argument: config.mounts needs a volume or a name")
    return MountRequest(volume, name, str(PurePosixPath(path)))


def remove(rootfs: Path, path: str) -> None:
    """Remove the link of a mount, or the files that a mount will cover."""
    link = _inside(rootfs, path)
    if link.is_symlink() or link.is_file():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)


def _inside(rootfs: Path, path: str) -> Path:
    return rootfs / path.lstrip("/")
