"""JSON read as Go's decoder reads it: typed members, Go's error texts, Go's durations."""

import json
import re
from collections.abc import Mapping

from local.fly.errors import ApiError

JsonObject = dict[str, object]
"""A parsed JSON object whose members are not checked yet."""

_GO_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_GO_PART = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def parse_object(body: bytes, target: str) -> JsonObject:
    """Parse a request body as an object; an empty body is an empty object.

    Anything else raises ApiError with the text of Go's decoder, which Fly answers with
    (superfly/docs issue 2187). `target` is the Go type in that text.
    """
    if not body.strip():
        return {}
    try:
        value: object = json.loads(body)
    except ValueError:
        raise ApiError(400, "invalid_argument: json: invalid character in request body") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise unmarshal_error(go_kind(value), target)
    return value


def unmarshal_error(kind: str, target: str) -> ApiError:
    """Go's error for a JSON value of the wrong kind."""
    return ApiError(400, f"json: cannot unmarshal {kind} into Go value of type {target}")


def text(values: Mapping[str, object], name: str) -> str | None:
    """A string member; None when absent or null. Raises ApiError for another type."""
    value = values.get(name)
    if value is not None and not isinstance(value, str):
        raise _member_error(value, name, "string")
    return value


def flag(values: Mapping[str, object], name: str) -> bool | None:
    """A boolean member. The string "true" is an error (Fly docs: managing machines)."""
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise _member_error(value, name, "bool")
    return value


def number(values: Mapping[str, object], name: str) -> int | None:
    """An integer member."""
    value = values.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _member_error(value, name, "int")


def mapping(values: Mapping[str, object], name: str) -> JsonObject | None:
    """An object member."""
    value = values.get(name)
    if value is not None and not isinstance(value, dict):
        raise _member_error(value, name, "map[string]interface {}")
    return value


def items(values: Mapping[str, object], name: str) -> list[object]:
    """An array member, empty when absent."""
    value = values.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _member_error(value, name, "[]interface {}")
    return value


def texts(values: Mapping[str, object], name: str) -> dict[str, str]:
    """An object member whose values are all strings, empty when absent."""
    found = mapping(values, name) or {}
    return {key: text(found, key) or "" for key in found}


def seconds(value: object, name: str) -> float | None:
    """A duration: Go's text ("1m30s") or a number of nanoseconds; None when absent."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value * 1e-9
    if not isinstance(value, str):
        raise _member_error(value, name, "fly.Duration")
    parsed = go_seconds(value)
    if parsed is None:
        raise ApiError(400, f'invalid_argument: time: invalid duration "{value}"')
    return parsed


def go_seconds(value: str) -> float | None:
    """Seconds of a Go duration such as "1m30s"; None for any other text."""
    parts = _GO_PART.findall(value)
    if value == "0":
        return 0.0
    if not parts or "".join(amount + unit for amount, unit in parts) != value:
        return None
    return sum(float(amount) * _GO_UNITS[unit] for amount, unit in parts)


def _member_error(value: object, name: str, wanted: str) -> ApiError:
    text = f"json: cannot unmarshal {go_kind(value)} into Go struct field {name} of type {wanted}"
    return ApiError(400, text)


def go_kind(value: object) -> str:
    """The name that Go's decoder has for the kind of a JSON value."""
    match value:
        case bool():
            return "bool"
        case str():
            return "string"
        case int() | float():
            return "number"
        case list():
            return "array"
        case _:
            return "object"
