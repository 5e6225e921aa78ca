"""Images: the local command that runs for an image, and the image's reference."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from local.fly.go_json import JsonObject, items, mapping, text

BUILTIN: Mapping[str, tuple[str, ...]] = {
    "roost/counter": (sys.executable, "-m", "local.counter"),
    # For machines whose `init` has a command of its own.
    "roost/base": ("sleep", "infinity"),
}


class UnknownImage(Exception):
    """No local command is known for the image."""


@dataclass(frozen=True)
class ImageRef:
    """A parsed image name. The default registry is Docker Hub, the default tag `latest`."""

    registry: str
    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, image: str) -> "ImageRef":
        """Parse `registry/repository:tag@digest`; only the repository is required."""
        name, _, digest = image.partition("@")
        first, slash, rest = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, name = first, rest
        else:
            registry = "registry-1.docker.io"
        repository, _, tag = name.partition(":")
        derived = "sha256:" + hashlib.sha256(image.encode()).hexdigest()
        return cls(registry, repository, tag or "latest", digest or derived)

    def to_json(self) -> JsonObject:
        """The `image_ref` of a Machine."""
        return {
            "registry": self.registry,
            "repository": self.repository,
            "tag": self.tag,
            "digest": self.digest,
            "labels": None,
        }


def command(config: Mapping[str, object], extra: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The command of a machine: `init.exec`, else entrypoint and cmd, else the image's command.

    Raises UnknownImage.
    """
    known = {**BUILTIN, **extra}
    repository = ImageRef.parse(text(config, "image") or "").repository
    if repository not in known:
        raise UnknownImage(repository)
    init = mapping(config, "init") or {}
    if items(init, "exec"):
        return [str(part) for part in items(init, "exec")]
    entrypoint = [str(part) for part in items(init, "entrypoint")]
    given = [str(part) for part in items(init, "cmd")]
    return entrypoint + given or list(known[repository])
