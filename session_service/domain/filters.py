"""The filter of ListSessions: a subset of AIP-160, comparisons joined by AND."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from session_service.domain.states import State

TEXTS = frozenset({"project_id", "user_id", "slot"})
TIMES = frozenset({"create_time", "last_active_time"})
_TERM = re.compile(
    r"""\s*(?P<field>[a-z_]+)\s*(?P<operator><=|>=|=|<|>)\s*
    (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[A-Za-z0-9_.:+-]+))\s*""",
    re.VERBOSE,
)
_AND = re.compile(r"AND\b")
#: Longest filter, in characters.
LIMIT = 1024


class BadFilter(ValueError):
    """The filter cannot be read; the message says where and what would do."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison: a field, =, <, <=, > or >=, and a value of the field's kind."""

    field: str
    operator: str
    value: str | bool | datetime


def parse(text: str) -> tuple[Comparison, ...]:
    """The filter's comparisons, all of which must hold. Raises BadFilter."""
    if len(text) > LIMIT:
        raise BadFilter(f"must be at most {LIMIT} characters")
    found: list[Comparison] = []
    position = 0
    while text[position:].strip():
        if found:
            joint = _AND.match(text, position)
            if joint is None:
                raise BadFilter(f"has no AND at character {position + 1}")
            position = joint.end()
        term = _TERM.match(text, position)
        if term is None:
            raise BadFilter(
                f'has no comparison at character {position + 1}; one looks like project_id = "p"'
            )
        found.append(_comparison(term))
        position = term.end()
    return tuple(found)


def _comparison(term: re.Match[str]) -> Comparison:
    field, operator = term["field"], term["operator"]
    quoted = term["quoted"]
    value = term["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    if field in TIMES:
        return Comparison(field, operator, _time(field, value))
    if operator != "=":
        raise BadFilter(f"can compare {field} by = only")
    if field in TEXTS:
        return Comparison(field, operator, _text(field, value))
    if field == "state":
        return Comparison(field, operator, _state(value))
    if field == "live":
        return Comparison(field, operator, _truth(value))
    fields = ", ".join(sorted(TEXTS | TIMES | {"state", "live"}))
    raise BadFilter(f"knows no field {field}; it knows {fields}")


def _text(field: str, value: str) -> str:
    if "\0" in value:
        raise BadFilter(f"cannot look for a NUL in {field}")
    return value


def _time(field: str, value: str) -> datetime:
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise BadFilter(f"needs a time such as 2026-01-31T00:00:00Z for {field}") from None
    if time.tzinfo is None:
        raise BadFilter(f"needs a time zone for {field}: 2026-01-31T00:00:00Z")
    return time


def _state(value: str) -> str:
    name = value.removeprefix("STATE_")
    if name not in State.__members__:
        raise BadFilter(f"knows the states {', '.join(State)}")
    return name


def _truth(value: str) -> bool:
    if value not in ("true", "false"):
        raise BadFilter("can compare live with true or false")
    return value == "true"
