"""Which local command stands for an image, and what Fly says about the image itself."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from local.fly.wire import JsonObject, items, mapping, text

BUILTIN: Mapping[str, tuple[str, ...]] = {
    "roost/counter": (sys.executable, "-m", "local.counter"),
    # Does nothing for ever: for machines that bring their own command in `init`.
    "roost/base": ("sleep", "infinity"),
}


class UnknownImage(Exception):
    """No local command stands for the image."""


@dataclass(frozen=True)
class ImageRef:
    """An image's name in its parts; a missing registry is Docker Hub's, a missing tag `latest`."""

    registry: str
    repository: str
    tag: str
    digest: str

    @classmethod
    def parse(cls, image: str) -> "ImageRef":
        """Split `registry/repository:tag@digest`; only the repository must be there."""
        name, _, digest = image.partition("@")
        first, slash, rest = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            registry, name = first, rest
        else:
            registry = "registry-1.docker.io"
        repository, _, tag = name.partition(":")
        drawn = "sha256:" + hashlib.sha256(image.encode()).hexdigest()
        return cls(registry, repository, tag or "latest", digest or drawn)

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
    """The command a machine of this config runs: `init.exec`, else entrypoint and cmd."""
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
