"""A config member of another type than in Fly's document is a 400."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conformance.provider_client import App, Json
    from tests.conformance.schema import Document

#: Members that accept more than the document says (docs, fly-go), and values that none accepts.
WIDER = {
    "services[].autostop": [[], 7, {}],
    "guest.persist_rootfs": [[], True, {}],
}
#: Go's text or a number; in a container's health checks they are numbers alone.
DURATIONS = ("interval", "timeout", "grace_period")
WRONG: dict[str, list[Any]] = {
    "string": [7, True, [], {}],
    "integer": ["7", 1.5, True, [], {}, 2**70],
    "number": ["7", True, [], {}],
    "boolean": ["true", 1, [], {}],
    "array": ["x", 7, True, {}],
    "object": ["x", 7, True, []],
}


def members(schemas: Json, schema: Json, path: str) -> Iterator[tuple[str, Json]]:
    """Every member below a schema: its path and its schema."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    if "allOf" in schema:
        yield from members(schemas, schema["allOf"][0], path)
        return
    if path:
        yield path, schema
    if schema.get("type") == "array":
        yield from members(schemas, schema["items"], f"{path}[]")
    elif isinstance(schema.get("additionalProperties"), dict) and not path.endswith(".headers"):
        # Response headers may have values of any type (Fly docs), unlike in the document.
        yield from members(schemas, schema["additionalProperties"], f"{path}{{}}")
    for name, member in schema.get("properties", {}).items():
        yield from members(schemas, member, f"{path}.{name}" if path else name)


def wrongs(path: str, schema: Json) -> list[Any]:
    """Values of types that the member cannot have."""
    if path in WIDER:
        return WIDER[path]
    name = path.rpartition(".")[2]
    if schema["type"] == "string" and name in DURATIONS:
        return [True, [], {}, "soon", ""]
    return WRONG[schema["type"]]


def holding(path: str, value: Any) -> Any:
    """A config with the value at the path."""
    for step in reversed(path.replace("[]", ".[]").replace("{}", ".{}").split(".")):
        value = [value] if step == "[]" else {("x" if step == "{}" else step): value}
    return value


def test_a_member_of_another_type_is_400(faulty: App, document: Document | None) -> None:
    if document is None:
        pytest.skip("Fly's openapi.json is not at hand: set ROOST_FLY_OPENAPI")
    schemas = document.raw["components"]["schemas"]
    found = list(members(schemas, schemas["fly.MachineConfig"], ""))
    assert len(found) > 180
    taken = []
    for path, schema in found:
        for value in wrongs(path, schema):
            body = {"config": {"image": faulty.image} | holding(path, value)}
            reply = faulty.api.send("POST", f"{faulty.path}/machines", body)
            if reply.status_code != 400 or not reply.json()["error"]:
                taken.append((path, value, reply.status_code, reply.text))
    assert taken == []
    assert faulty.list() == []


def test_a_member_that_is_null_is_as_good_as_absent(faulty: App, document: Document | None) -> None:
    if document is None:
        pytest.skip("Fly's openapi.json is not at hand: set ROOST_FLY_OPENAPI")
    properties = document.raw["components"]["schemas"]["fly.MachineConfig"]["properties"]
    config = dict.fromkeys(properties) | {"image": faulty.image}
    faulty.api.http.post(
        f"{faulty.path}/machines",
        json={"config": config},
        headers={"authorization": f"Bearer {faulty.api.token}"},
    ).raise_for_status()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"auto_destroy": "yes"}, "cannot unmarshal string into Go struct field"),
        ({"guest": {"memory_mb": "256"}}, "cannot unmarshal string into Go struct field"),
        ({"env": {"A": 1}}, "cannot unmarshal number into Go struct field"),
        ({"services": {}}, "cannot unmarshal object into Go struct field"),
    ],
)
def test_the_refusal_is_that_of_gos_decoder(app: App, config: Json, words: str) -> None:
    assert words in app.create(400, config=app.config(**config))["error"]


def test_an_update_is_held_to_the_same(app: App) -> None:
    machine = app.machine()
    before = machine.get()["instance_id"]
    machine.update(400, config=app.config(restart={"max_retries": "3"}))
    assert machine.get()["instance_id"] == before


@pytest.mark.parametrize("member", ["skip_launch", "skip_secrets", "lease_ttl", "name", "region"])
def test_members_beside_the_config_have_types_too(app: App, member: str) -> None:
    wrong = {"skip_launch": "yes", "skip_secrets": 1, "lease_ttl": "30"}.get(member, 7)
    app.create(400, **{member: wrong})


@pytest.mark.parametrize(
    "wrong", [{"compute": {"cpus": "1"}}, {"compute": 1}, {"encrypted": "no"}, {"size_gb": "1"}]
)
def test_members_of_a_volume_have_types_too(app: App, wrong: Json) -> None:
    app.api.expect(400, "POST", f"{app.path}/volumes", {"name": "data", **wrong})
