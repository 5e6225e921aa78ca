"""Checks a container spec before anything is written, and converts it to JSON.

The limits are those of container_service. A spec that it would reject must be rejected here, before
a session with that spec is committed.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from google.protobuf.json_format import MessageToDict

from roost.container.v1 import container_service_pb2 as pb

if TYPE_CHECKING:
    from session_service.rpc.fields import Fields

_ENV_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_VOLUME = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The characters of a URL's path and query (RFC 3986): no fragment, no backslash, no control
# characters.
_HTTP_PATH = re.compile(r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")
#: The numbers of CPUs that a machine of each kind can have (Fly docs: machine sizing).
_CPUS = {"shared": (1, 2, 4, 6, 8), "performance": (1, 2, 4, 8, 16)}
#: By kind: the least memory per CPU, and the step in which memory is sold, both in MB.
_MEMORY = {"shared": (256, 256), "performance": (2048, 1024)}
#: A machine with more memory cannot be suspended (Fly docs: suspend and resume).
MEMORY_LIMIT_MB = 2048
#: The most characters of a value in `env` and of a word in `command`.
WORD_LIMIT = 32_768
#: The most entries of `env` and words of `command`.
COUNT_LIMIT = 256
#: The most characters of a hook's path or command.
HOOK_LIMIT = 1024
SERVICE_LIMIT = 16
#: The least and the most that `stop_timeout` can be, in s.
STOP_TIMEOUT_LEAST = 0.1
STOP_TIMEOUT_LIMIT = 300


def parse_spec(fields: Fields, path: str, spec: pb.ContainerSpec) -> dict[str, Any]:
    """The spec as JSON, by the proto's field names. Any: JSON as the proto maps it."""
    fields.text(f"{path}.image", spec.image, 512)
    if not spec.image:
        fields.wrong(
            f"{path}.image",
            "must not be empty: the default image is only used if the request has no spec",
        )
    if " " in spec.image:
        fields.wrong(f"{path}.image", "must not contain spaces")
    _env(fields, f"{path}.env", dict(spec.env))
    _guest(fields, f"{path}.guest", spec.guest)
    fields.text(f"{path}.region", spec.region, 64)
    fields.text(f"{path}.secret_generation", spec.secret_generation, 64)
    _services(fields, f"{path}.services", spec)
    _command(fields, f"{path}.command", list(spec.command))
    if spec.restart_policy not in pb.RestartPolicy.values():
        fields.wrong(f"{path}.restart_policy", f"has no value {spec.restart_policy}")
    _mounts(fields, f"{path}.mounts", spec)
    _hook(fields, f"{path}.state_hook", spec.state_hook)
    _activity(fields, f"{path}.activity", spec.activity)
    if not _valid_stop_timeout(spec):
        fields.wrong(
            f"{path}.stop_timeout",
            f"must be between {STOP_TIMEOUT_LEAST} s and {STOP_TIMEOUT_LIMIT} s",
        )
        return {}
    return MessageToDict(spec, preserving_proto_field_name=True)


def _valid_stop_timeout(spec: pb.ContainerSpec) -> bool:
    if not spec.HasField("stop_timeout"):
        return True
    seconds, nanos = spec.stop_timeout.seconds, spec.stop_timeout.nanos
    within = STOP_TIMEOUT_LEAST <= seconds + nanos / 1e9 <= STOP_TIMEOUT_LIMIT
    return within and 0 <= nanos < 1_000_000_000


def _env(fields: Fields, path: str, env: dict[str, str]) -> None:
    if len(env) > COUNT_LIMIT:
        fields.wrong(path, f"must have at most {COUNT_LIMIT} entries")
    for key, value in list(env.items())[:COUNT_LIMIT]:
        entry = f"{path}[{json.dumps(key[:64])}]"
        if not _ENV_KEY.fullmatch(key):
            fields.wrong(
                entry, "must have a key of letters, digits or '_' that does not begin with a digit"
            )
        elif len(value) > WORD_LIMIT or "\0" in value:
            fields.wrong(entry, f"must be at most {WORD_LIMIT} characters, none of them NUL")


def _guest(fields: Fields, path: str, guest: pb.Guest) -> None:
    kind = guest.cpu_kind or "shared"
    if kind not in _CPUS:
        fields.wrong(f"{path}.cpu_kind", "must be shared or performance")
        return
    cpus = guest.cpus or 1
    if cpus not in _CPUS[kind]:
        fields.wrong(f"{path}.cpus", f"must be one of {', '.join(map(str, _CPUS[kind]))}")
        return
    low, step = _MEMORY[kind]
    memory = guest.memory_mb or low * cpus
    if not low * cpus <= memory <= MEMORY_LIMIT_MB or memory % step:
        fields.wrong(
            f"{path}.memory_mb",
            f"must be a multiple of {step} from {low * cpus} to {MEMORY_LIMIT_MB}: "
            "a machine with more cannot be suspended",
        )


def _services(fields: Fields, path: str, spec: pb.ContainerSpec) -> None:
    if len(spec.services) > SERVICE_LIMIT:
        fields.wrong(path, f"must have at most {SERVICE_LIMIT} services")
        return
    ports = {(service.internal_port, service.protocol or "tcp") for service in spec.services}
    if len(ports) < len(spec.services):
        fields.wrong(path, "must not name a port twice")
    for index, service in enumerate(spec.services):
        if not 1 <= service.internal_port <= 65_535:
            fields.wrong(f"{path}[{index}].internal_port", "must be between 1 and 65535")
        if service.protocol not in ("", "tcp", "udp"):
            fields.wrong(f"{path}[{index}].protocol", "must be tcp or udp")


def _command(fields: Fields, path: str, words: list[str]) -> None:
    if len(words) > COUNT_LIMIT:
        fields.wrong(path, f"must be at most {COUNT_LIMIT} words")
    for index, word in enumerate(words[:COUNT_LIMIT]):
        if len(word) > WORD_LIMIT or "\0" in word:
            fields.wrong(
                f"{path}[{index}]", f"must be at most {WORD_LIMIT} characters, none of them NUL"
            )


def _mounts(fields: Fields, path: str, spec: pb.ContainerSpec) -> None:
    if len(spec.mounts) > 1:
        fields.wrong(path, "must be at most 1")
    for index, mount in enumerate(spec.mounts[:1]):
        if not _VOLUME.fullmatch(mount.volume_id):
            fields.wrong(f"{path}[{index}].volume_id", "must be 1 to 64 letters, digits, - or _")
        fields.text(f"{path}[{index}].path", mount.path, 256)
        if not mount.path.startswith("/"):
            fields.wrong(f"{path}[{index}].path", "must be absolute")


def _hook(fields: Fields, path: str, hook: pb.StateHook) -> None:
    match hook.WhichOneof("hook"):
        case "http_path":
            _http_path(fields, f"{path}.http_path", hook.http_path)
        case "command":
            fields.text(f"{path}.command", hook.command, HOOK_LIMIT, required=True)


def _activity(fields: Fields, path: str, source: pb.ActivitySource) -> None:
    match source.WhichOneof("source"):
        case "http_path":
            _http_path(fields, f"{path}.http_path", source.http_path)
        case "connections_port":
            if not 1 <= source.connections_port <= 65_535:
                fields.wrong(f"{path}.connections_port", "must be between 1 and 65535")


def _http_path(fields: Fields, field: str, value: str) -> None:
    """Check a path that is requested from the application. The caller must not be able to choose
    the host, or a path above the root: the path is absolute, without a host and without `..`.
    """
    path = unquote(value.partition("?")[0])
    if not value or len(value) > HOOK_LIMIT:
        fields.wrong(field, f"must be 1 to {HOOK_LIMIT} characters")
    elif not _HTTP_PATH.fullmatch(value):
        fields.wrong(field, "must begin with a slash and be a percent-encoded URL path")
    elif path.startswith("//") or "\\" in path:
        fields.wrong(field, "must be a path without a host")
    elif ".." in path.split("/"):
        fields.wrong(field, "must not contain '..'")
    elif not path.isprintable():
        fields.wrong(field, "must not contain control characters")
