"""The table of types, compared with Fly's document if that is available."""

import json
from typing import Any

import pytest

from local.fly.config.config_types import CONFIG_TYPES, ROOT
from tests.conformance.schema import find

_PLAIN = {"string": "string", "integer": "int", "boolean": "bool", "number": "float64"}
#: Members that accept more than the document says; see the table's docstring.
WIDER = {
    ("MachineService", "autostop"): "string or bool",
    ("MachineGuest", "persist_rootfs"): "string or int",
    ("HTTPResponseOptions", "headers"): "map[string]any",
}
DURATIONS = {
    ("MachineCheck", "interval"),
    ("MachineCheck", "timeout"),
    ("MachineCheck", "grace_period"),
    ("MachineServiceCheck", "interval"),
    ("MachineServiceCheck", "timeout"),
    ("MachineServiceCheck", "grace_period"),
    ("StopConfig", "timeout"),
}


def test_the_table_is_the_documents() -> None:
    path = find()
    if path is None:
        pytest.skip("Fly's openapi.json is not at hand: set ROOST_FLY_OPENAPI")
    schemas = json.loads(path.read_text())["components"]["schemas"]
    expected: dict[str, dict[str, str]] = {}
    waiting = [ROOT]
    while waiting:
        name = waiting.pop()
        expected[name] = {
            member: expected_type(schemas, name, member, schema)
            for member, schema in schemas[f"fly.{name}"]["properties"].items()
        }
        named = {kind.rpartition("]")[2] for kind in expected[name].values()}
        waiting += [one for one in named if f"fly.{one}" in schemas and one not in expected]
    assert expected == CONFIG_TYPES


def expected_type(schemas: Any, name: str, member: str, schema: Any) -> str:
    if (name, member) in WIDER:
        return WIDER[name, member]
    return "fly.Duration" if (name, member) in DURATIONS else written(schemas, schema)


def written(schemas: Any, schema: Any) -> str:
    """A schema in the notation of the table."""
    if "$ref" in schema:
        full = schema["$ref"].rpartition("/")[2]
        plain = _PLAIN.get(schemas[full].get("type", ""))
        return plain or full.removeprefix("fly.")
    if "allOf" in schema:
        return written(schemas, schema["allOf"][0])
    if schema["type"] == "array":
        return f"[]{written(schemas, schema['items'])}"
    if schema["type"] == "object":
        return f"map[string]{written(schemas, schema['additionalProperties'])}"
    return _PLAIN[schema["type"]]
