"""Check the type of every member of a config against Fly's schema."""

import re

from local.fly import go_json
from local.fly.config.config_types import CONFIG_TYPES, ROOT
from local.fly.errors import ApiError
from local.fly.go_json import JsonObject

_INT64 = range(-(2**63), 2**63)
_ITEMS = re.compile(r"(\[\]|map\[string\])(.+)")


def check(config: JsonObject) -> None:
    """Raise a 400 for the first member of the wrong type, as Go's decoder does.

    Unknown members are accepted, and null counts as absent.
    """
    _check(config, ROOT, ROOT)


def _check(value: object, wanted: str, path: str) -> None:
    if value is None or wanted == "any":
        return
    if (items := _ITEMS.fullmatch(wanted)) is not None:
        _check_items(value, items[1], items[2], path)
    elif wanted in CONFIG_TYPES:
        _check_object(value, wanted, path)
    elif wanted == "fly.Duration":
        _check_duration(value, path)
    elif not _fits(value, wanted):
        raise _type_error(value, wanted, path)


def _check_items(value: object, kind: str, wanted: str, path: str) -> None:
    if not isinstance(value, list if kind == "[]" else dict):
        raise _type_error(value, kind + wanted, path)
    for item in value.values() if isinstance(value, dict) else value:
        _check(item, wanted, path)


def _check_object(value: object, wanted: str, path: str) -> None:
    if not isinstance(value, dict):
        raise _type_error(value, f"fly.{wanted}", path)
    for name, kind in CONFIG_TYPES[wanted].items():
        _check(value.get(name), kind, f"{path}.{name}")


def _check_duration(value: object, path: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number and not isinstance(value, str):
        raise _type_error(value, "fly.Duration", path)
    if isinstance(value, str) and go_json.go_seconds(value) is None:
        raise ApiError(400, f'invalid_argument: time: invalid duration "{value}"')


def _fits(value: object, wanted: str) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match wanted:
        case "string":
            return isinstance(value, str)
        case "bool":
            return isinstance(value, bool)
        case "int":
            return number and isinstance(value, int) and value in _INT64
        case "float64":
            return number
        case "string or bool":
            return isinstance(value, str | bool)
        case "string or int":
            return isinstance(value, str) or number
    raise AssertionError(f"a config has no member of type {wanted}")


def _type_error(value: object, wanted: str, path: str) -> ApiError:
    kind = go_json.go_kind(value)
    text = f"json: cannot unmarshal {kind} into Go struct field {path} of type {wanted}"
    return ApiError(400, text)
