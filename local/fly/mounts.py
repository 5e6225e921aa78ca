"""A volume inside a guest: where it is wanted, and how its path is made to lead there."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from local.fly.errors import ApiError
from local.fly.wire import items, text


@dataclass(frozen=True)
class MountWish:
    """What a config says of its one mount: a volume by id, or any free one of a name."""

    volume: str
    name: str
    path: str


@dataclass(frozen=True)
class Mount:
    """A volume's files under a path of the guest."""

    path: str
    files: Path

    def place(self, rootfs: Path) -> None:
        """Make the path lead to the files; what the root file system had there is covered."""
        link = _inside(rootfs, self.path)
        remove(rootfs, self.path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(self.files)

    def rewrite(self, words: str) -> str:
        """Text with the path where the files really are.

        Guests share the host's file system, so an absolute path in a command or in a variable
        would name the host's own folder.
        """
        pattern = rf"(?<![\w./-]){re.escape(self.path)}(?![\w.-])"
        return re.sub(pattern, lambda _: str(self.files), words)


def wish(config: Mapping[str, object]) -> MountWish | None:
    """The mount of a config, None when it has none; a 400 when it cannot be."""
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
    return MountWish(volume, name, str(PurePosixPath(path)))


def remove(rootfs: Path, path: str) -> None:
    """Take away what is at the path: a mount's link, or files that a mount is to cover."""
    link = _inside(rootfs, path)
    if link.is_symlink() or link.is_file():
        link.unlink()
    elif link.is_dir():
        shutil.rmtree(link)


def _inside(rootfs: Path, path: str) -> Path:
    return rootfs / path.lstrip("/")
