"""Validate replies against Fly's OpenAPI document; unlike there, unknown fields are errors."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from tests.conformance.deviations import DEVIATIONS

if TYPE_CHECKING:
    import httpx

Json = Any

_BESIDE = Path(__file__).parents[2].parent / "shared" / "fly" / "openapi.json"
_ERROR = {"$ref": "#/components/schemas/ErrorResponse"}


def find() -> Path | None:
    """The path of the document: ROOST_FLY_OPENAPI, else beside the repository; None if missing."""
    named = os.environ.get("ROOST_FLY_OPENAPI")
    path = Path(named) if named else _BESIDE
    return path if path.exists() else None


class Document:
    """The document, and the validation of replies against it."""

    def __init__(self, path: Path) -> None:
        self.raw: Json = json.loads(path.read_text())
        self._components = _strict(self.raw["components"])
        for name, schema in self._components["schemas"].items():
            schema["title"] = name
        self._operations = [
            (_pattern(template), method.upper(), template, operation)
            for template, methods in self.raw["paths"].items()
            for method, operation in methods.items()
            if method in ("get", "post", "put", "patch", "delete")
        ]

    def check(self, method: str, path: str, reply: httpx.Response) -> None:
        """Fail unless every difference is listed in `deviations`."""
        unjustified = [
            found
            for found in self.differences(method, path, reply)
            if not any(re.fullmatch(deviation.pattern, found) for deviation in DEVIATIONS)
        ]
        assert not unjustified, f"{method} {path} {reply.status_code}: {unjustified}"

    def differences(self, method: str, path: str, reply: httpx.Response) -> list[str]:
        """The differences as `Schema path: text`, without array indices."""
        operation = self._operation(method, path)
        if operation is None:
            return [f"{method} {re.sub(r'[^/]*[0-9][^/]*', '*', path)}: no such operation"]
        template, responses = operation
        schema = self._schema(responses, reply.status_code)
        if not reply.content:
            return [f"{method} {template}: empty"] if schema is not None else []
        if "json" not in reply.headers.get("content-type", ""):
            return []
        if schema is None:
            return [f"{method} {template} {reply.status_code}: a body where none is documented"]
        whole = {**schema, "components": self._components}
        found = jsonschema.Draft202012Validator(whole).iter_errors(reply.json())
        return sorted({line for error in found for line in _lines(error)})

    def _operation(self, method: str, path: str) -> tuple[str, Json] | None:
        bare = path.partition("?")[0].removeprefix("/v1")
        for pattern, known, template, operation in self._operations:
            if known == method and pattern.fullmatch(bare):
                return template, operation["responses"]
        return None

    def _schema(self, responses: Json, status: int) -> Json:
        """The schema for a status; for an undocumented error, the general error object."""
        response = responses.get(str(status))
        if response is None:
            return _ERROR if status >= 400 else None
        for content in response.get("content", {}).values():
            return _strict(content["schema"])
        return None


def _lines(error: Any) -> list[str]:
    names = [str(part) for part in error.absolute_path if not isinstance(part, int)]
    title = error.schema.get("title", "")
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        return [f"{title} {name}: unexpected" for name in error.instance if name not in known]
    kind = "null" if error.instance is None else type(error.instance).__name__
    return [f"{title} {'.'.join(names)}: {error.validator} of {kind}".lstrip()]


def _strict(schema: Json) -> Json:
    """A copy of the schema that allows no additional members."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    tight = {name: _strict(part) for name, part in schema.items()}
    if isinstance(tight.get("properties"), dict) and "additionalProperties" not in tight:
        tight["additionalProperties"] = False
    return tight


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{\w+\}", "[^/]+", template))
