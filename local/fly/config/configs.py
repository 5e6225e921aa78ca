"""Machine configs: validated, completed as Fly completes them, and read."""

from collections.abc import Mapping

from local.fly.config import checks, mounts, type_check
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject, flag, items, mapping, number, text

_AUTOSTOP: Mapping[object, object] = {
    None: None,
    False: False,
    True: True,
    "off": False,
    "stop": True,
    "suspend": "suspend",
}
"""The accepted values of `autostop`, and the value that Fly returns (Fly docs; fly-go)."""

_GUEST: JsonObject = {"cpu_kind": "shared", "cpus": 1, "memory_mb": 256}


def normalized(config: JsonObject) -> JsonObject:
    """The config as Fly stores and returns it. Raises a 400 for an invalid one.

    Adds the members that Fly adds (`dns`, `guest`, `init`), writes `autostop` in its canonical form
    and limits the interval of services' checks to a minute.
    """
    if not text(config, "image"):
        raise ApiError(400, "invalid_argument: config.image is required")
    type_check.check(config)
    mounts.requested_mount(config)
    checks.wanted(config)
    _check_policies(config)
    services = [_service(service) for service in items(config, "services")]
    filled: JsonObject = {"dns": {}, "guest": dict(_GUEST), "init": {}}
    return {**filled, **config, **({"services": services} if services else {})}


def autostart(config: Mapping[str, object], default: bool) -> bool:
    """Whether traffic starts the machine: if any service says so; absent means `default`."""
    services = [_object(service) for service in items(config, "services")]
    if not services:
        return default
    return any(default if (given := flag(s, "autostart")) is None else given for s in services)


def autostop(config: Mapping[str, object]) -> object:
    """What the proxy does with an idle machine: False (nothing), True (stop) or "suspend"."""
    found = [_object(service).get("autostop") for service in items(config, "services")]
    return next((one for one in found if one), False)


def min_running(config: Mapping[str, object]) -> int:
    """How many machines of a region autostop leaves running."""
    services = [_object(service) for service in items(config, "services")]
    return max((number(one, "min_machines_running") or 0 for one in services), default=0)


def internal_port(config: Mapping[str, object]) -> int:
    """The internal port of the first service, or Fly's default 8080. `PORT` stands for it."""
    services = [_object(service) for service in items(config, "services")]
    return next((port for one in services if (port := number(one, "internal_port"))), 8080)


def suspendable(config: Mapping[str, object]) -> bool:
    """Whether Fly can suspend it: no swap, no schedule, no GPU (Fly docs: suspend)."""
    init = mapping(config, "init") or {}
    guest = mapping(config, "guest") or {}
    return not (number(init, "swap_size_mb") or text(config, "schedule") or text(guest, "gpu_kind"))


def _check_policies(config: JsonObject) -> None:
    restart = mapping(config, "restart") or {}
    if (text(restart, "policy") or "no") not in ("no", "always", "on-failure"):
        raise ApiError(400, "invalid_argument: restart.policy must be no, always or on-failure")
    rootfs = mapping(config, "rootfs") or {}
    if (text(rootfs, "persist") or "never") not in ("never", "restart", "always"):
        raise ApiError(400, "invalid_argument: rootfs.persist must be never, restart or always")


def _service(service: object) -> JsonObject:
    fields = dict(_object(service))
    if fields.get("checks"):
        fields["checks"] = [checks.clamped(_object(check)) for check in items(fields, "checks")]
    if "autostop" in fields:
        given = fields["autostop"]
        if given not in _AUTOSTOP:
            raise ApiError(400, "invalid_argument: autostop must be off, stop or suspend")
        fields["autostop"] = _AUTOSTOP[given]
    return fields


def _object(value: object) -> JsonObject:
    if not isinstance(value, dict):
        raise ApiError(400, "json: cannot unmarshal into Go struct field services")
    return value
