"""Health checks: read from a config, and rendered with their results."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from local.fly.clock import rfc3339_now
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject, items, mapping, number, seconds, text

Status = str
"""passing, warning or critical."""

INTERVAL_S, TIMEOUT_S = 15.0, 10.0
SERVICE_INTERVAL_MAX_S = 60.0
"""Fly reduces a longer interval of a service's check to this (observed by users)."""
INTERVAL_MIN_S = 0.05
OUTPUT_MAX = 1024

_FRAMING = frozenset({"connection", "content-length", "expect", "transfer-encoding", "upgrade"})
"""Headers that belong to the connection; a check cannot set them."""


@dataclass(frozen=True)
class Check:
    """One check of a config."""

    name: str
    kind: str
    """tcp or http."""
    method: str = "GET"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()
    interval_s: float = INTERVAL_S
    timeout_s: float = TIMEOUT_S
    grace_s: float = 0.0


@dataclass(frozen=True)
class Result:
    """The result of a check, and the time of its last change."""

    status: Status
    output: str
    updated_at: str = field(default_factory=rfc3339_now)

    def then(self, fresh: "Result") -> "Result":
        """The result after the next run: `updated_at` stays where nothing has changed."""
        changed = (self.status, self.output) != (fresh.status, fresh.output)
        return fresh if changed else self


def wanted(config: Mapping[str, object]) -> list[Check]:
    """The checks of a config, including those of its services. Raises a 400 for an invalid one."""
    found = [_check(name, value) for name, value in (mapping(config, "checks") or {}).items()]
    of_services: list[JsonObject] = []
    for service in items(config, "services"):
        if isinstance(service, dict):
            port = number(service, "internal_port")
            given = [check for check in items(service, "checks") if isinstance(check, dict)]
            of_services += [{"port": port, **check} for check in given]
    for index, check in enumerate(of_services):
        # Named as flyctl and the docs show them: by index, kind and port.
        kind, port = text(check, "type") or "tcp", number(check, "port") or 0
        found.append(_check(f"servicecheck-{index:02d}-{kind}-{port}", check))
    return found


def shown(
    config: Mapping[str, object], results: Mapping[str, Result], since: str
) -> list[JsonObject]:
    """The `checks` of a Machine; one without a result is a warning since `since`."""
    unknown = Result("warning", "the machine hasn't started", since)
    return [
        {"name": check.name, **asdict(results.get(check.name, unknown))} for check in wanted(config)
    ]


def clamped(check: JsonObject) -> JsonObject:
    """A service's check as Fly stores it, with its interval limited."""
    interval = seconds(check.get("interval"), "interval") or 0.0
    return check | {"interval": "1m0s"} if interval > SERVICE_INTERVAL_MAX_S else check


def _check(name: str, value: object) -> Check:
    given = value if isinstance(value, dict) else {}
    kind = text(given, "type") or "tcp"
    if kind not in ("tcp", "http"):
        raise ApiError(400, f"invalid_argument: check {name}: type must be tcp or http")
    path = text(given, "path") or "/"
    if not path.startswith("/") or not path.isascii() or not path.isprintable():
        raise ApiError(400, f"invalid_argument: check {name}: path must be an absolute path")
    method = text(given, "method") or "GET"
    if not method.isascii() or not method.isalpha():
        raise ApiError(400, f"invalid_argument: check {name}: method is not one of HTTP")
    return Check(
        name=name,
        kind=kind,
        method=method.upper(),
        path=path,
        headers=tuple(_headers(name, given)),
        interval_s=max(seconds(given.get("interval"), "interval") or INTERVAL_S, INTERVAL_MIN_S),
        timeout_s=seconds(given.get("timeout"), "timeout") or TIMEOUT_S,
        grace_s=seconds(given.get("grace_period"), "grace_period") or 0.0,
    )


def _headers(check: str, given: JsonObject) -> list[tuple[str, str]]:
    pairs = [
        (text(header, "name") or "", value)
        for header in items(given, "headers")
        if isinstance(header, dict)
        for value in items(header, "values")
        if isinstance(value, str)
    ]
    for name, value in pairs:
        token = name.replace("-", "").replace("_", "")
        if not token.isascii() or not token.isalnum() or not (value.isascii() and _plain(value)):
            raise ApiError(400, f"invalid_argument: check {check}: header {name!r} cannot be sent")
    return [(name, value) for name, value in pairs if name.lower() not in _FRAMING]


def _plain(value: str) -> bool:
    return not value or value.isprintable()
