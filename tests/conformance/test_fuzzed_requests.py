"""Random requests, derived from Fly's document, valid and invalid: none is answered with a 5xx.

The suite sends 500 of them; `ROOST_FUZZED_REQUESTS=10000` sends more.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.conformance.provider_client import unique

if TYPE_CHECKING:
    from tests.conformance.conftest import Provider
    from tests.conformance.schema import Document

COUNT = int(os.environ.get("ROOST_FUZZED_REQUESTS", "500"))

# Commands run as this user: nothing is drawn for them.
_COMMANDS = st.sampled_from([["true"], ["sleep", "100"], ["sh", "-c", "exit 3"], [], ["no-such"]])
_TEXT = st.text(max_size=12)
_JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    _TEXT,
    st.lists(_TEXT, max_size=2),
    st.dictionaries(_TEXT, st.integers(), max_size=2),
)


class Bodies:
    """Strategies for the document's schemas: mostly valid values, sometimes others."""

    def __init__(self, schemas: Any, known: dict[str, list[str]]) -> None:
        self._schemas = schemas
        self._special: dict[str, st.SearchStrategy[Any]] = {
            "exec": _COMMANDS,
            "cmd": _COMMANDS,
            "entrypoint": _COMMANDS,
            "command": _COMMANDS,
            "image": st.sampled_from(["roost/base", "roost/counter", "nobody/has-it", "", ":@/"]),
            "timeout": st.sampled_from([0, 1, -1, "1s", "0s", "soon", 1.5]),
            "ttl": st.sampled_from([1, 0, -1, 2**70, "1"]),
            "volume": st.sampled_from([*known["volume_id"], "vol_none"]),
            "source_volume_id": st.sampled_from([*known["volume_id"], "vol_none"]),
            "signal": st.sampled_from(["SIGCONT", "SIGUSR1", "SIGNO", 18, 0, -1, 10_000]),
        }

    def of(self, schema: Any, depth: int = 0) -> st.SearchStrategy[Any]:
        """A strategy for a schema; one value in eight is of another type."""
        right = self._right(schema, depth)
        return st.one_of(*([right] * 7), _JUNK) if depth else right

    def _right(self, schema: Any, depth: int) -> st.SearchStrategy[Any]:
        if "$ref" in schema:
            return self._right(self._schemas[schema["$ref"].rpartition("/")[2]], depth)
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "allOf" in schema:
            return self._right(schema["allOf"][0], depth)
        match schema.get("type"):
            case "object":
                return self._object(schema, depth)
            case "array":
                return st.lists(self.of(schema["items"], depth + 1), max_size=2)
            case "integer" | "number":
                return st.integers(-1, 600)
            case "boolean":
                return st.booleans()
        return _TEXT

    def _object(self, schema: Any, depth: int) -> st.SearchStrategy[Any]:
        members = schema.get("properties", {})
        if not members or depth > 4:
            return st.dictionaries(_TEXT, _TEXT, max_size=2)
        optional = {
            name: self._special[name] if name in self._special else self.of(member, depth + 1)
            for name, member in members.items()
        }
        always = {"image", "config"} if depth < 2 else set()
        required = {name: optional.pop(name) for name in always & set(optional)}
        return st.fixed_dictionaries(required, optional=optional)


@st.composite
def requests(
    draw: st.DrawFn, document: Document, known: dict[str, list[str]]
) -> tuple[str, str, Any]:
    """Method, path with query, and body."""
    raw = document.raw
    operations = [
        (method.upper(), template, operation)
        for template, methods in raw["paths"].items()
        for method, operation in methods.items()
        if method in ("get", "post", "put", "patch", "delete")
    ]
    method, template, operation = draw(st.sampled_from(operations))
    path, query = template, []
    for parameter in operation.get("parameters", ()):
        name = parameter["name"]
        if parameter["in"] == "path":
            pool = ["0", "...", "a b", "é", "x" * 300]
            # Deleting the app that all else happens in would end the fun.
            pool += known.get(name, []) * 12 if (method, template) != _DELETE_APP else []
            path = path.replace(f"{{{name}}}", quote(draw(st.sampled_from(pool)), safe=""))
        elif parameter["in"] == "query" and draw(st.booleans()):
            values = ["", "1", "true", "started", "-1", "x", "2026-01-01T00:00:00Z", "0.5s"]
            value = "1" if name == "timeout" else draw(st.sampled_from(values))
            query.append(f"{quote(name)}={quote(value)}")
    if template.endswith("/wait") and not any(part.startswith("timeout") for part in query):
        query.append("timeout=1")
    body = None
    content = (operation.get("requestBody") or {}).get("content", {})
    for described in content.values():
        bodies = Bodies(raw["components"]["schemas"], known)
        body = draw(
            st.one_of(bodies.of(described["schema"]), bodies.of(described["schema"]), _JUNK)
        )
    return method, "/v1" + path + ("?" + "&".join(query) if query else ""), body


_DELETE_APP = ("DELETE", "/apps/{app_name}")


def test_no_request_is_answered_with_a_5xx(place: Provider, document: Document | None) -> None:
    if place.shared_app:
        pytest.skip("fuzzed requests are for the emulator only")
    if document is None:
        pytest.skip("Fly's openapi.json is not at hand: set ROOST_FLY_OPENAPI")
    api = place.api
    app = unique("fuzzed")
    api.expect(201, "POST", "/v1/apps", {"app_name": app, "org_slug": "personal"})
    config = {"image": "roost/base"}
    machines = [
        api.expect(200, "POST", f"/v1/apps/{app}/machines", {"config": config})["id"]
        for _ in range(4)
    ]
    body = {"name": "data", "size_gb": 1}
    volumes = [api.expect(200, "POST", f"/v1/apps/{app}/volumes", body)["id"] for _ in range(3)]
    known = {
        "app_name": [app],
        "machine_id": machines,
        "volume_id": volumes,
        "org_slug": ["personal"],
        "key": ["colour"],
    }
    statuses: dict[int, int] = {}

    @hypothesis.settings(max_examples=COUNT, suppress_health_check=list(HealthCheck))
    @given(requests(document, known))
    def one(request: tuple[str, str, Any]) -> None:
        method, path, body = request
        content = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {api.token}", "content-type": "application/json"}
        reply = api.http.request(method, path, content=content, headers=headers)
        statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        assert reply.status_code < 500, reply.text
        assert reply.headers["fly-request-id"]
        if reply.status_code >= 400:
            error = reply.json()
            assert isinstance(error.get("error", error.get("message")), str)

    one()
    print(f"{sum(statuses.values())} requests: {sorted(statuses.items())}")
    api.expect(202, "DELETE", f"/v1/apps/{app}", force="true")
