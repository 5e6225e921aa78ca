"""The filter of ListSessions: a subset of AIP-160, comparisons joined by AND and OR.

As in AIP-160, OR binds tighter than AND: `a AND b OR c` means `a AND (b OR c)`. Parentheses group.
A filter is kept as its alternatives (disjunctive normal form): a session satisfies the filter if it
satisfies all comparisons of one alternative.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from itertools import product

from session_service.domain.states import State

TEXTS = frozenset({"project_id", "user_id", "slot"})
TIMES = frozenset({"create_time", "last_active_time"})
_TERM = re.compile(
    r"""(?P<field>[a-z_]+)\s*(?P<operator><=|>=|=|<|>)\s*
    (?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<plain>[A-Za-z0-9_.:+-]+))""",
    re.VERBOSE,
)
_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"(?:AND|OR)\b")
#: The longest filter, in characters.
LIMIT = 1024
#: The most alternatives of a filter. Each takes one or more scans of an index.
ALTERNATIVES = 10
#: How deep parentheses may be nested.
DEPTH = 10


class BadFilter(ValueError):
    """The filter is not valid; the message says why."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison: a field, an operator, and a value of the field's type."""

    field: str
    operator: str
    value: str | bool | datetime


#: Comparisons that must all hold.
Alternative = tuple[Comparison, ...]


def parse(text: str) -> tuple[Alternative, ...]:
    """The filter's alternatives, one of which must hold. An empty filter has one, without
    comparisons. Raises BadFilter.
    """
    if len(text) > LIMIT:
        raise BadFilter(f"must be at most {LIMIT} characters")
    if not text.strip():
        return ((),)
    parser = _Parser(text)
    found = parser.expression()
    if parser.rest():
        raise BadFilter(f"has no AND or OR at character {parser.position + 1}")
    return found


class _Parser:
    """Parses by recursive descent; `position` is where the next token is looked for."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self.position = 0

    def rest(self) -> str:
        """The text that is not parsed yet, without leading space."""
        space = _SPACE.match(self._text, self.position)
        self.position = space.end() if space else self.position
        return self._text[self.position :]

    def expression(self) -> tuple[Alternative, ...]:
        """Factors joined by AND."""
        found = self._factor()
        while self._takes("AND"):
            found = _all_of(found, self._factor())
        return found

    def _factor(self) -> tuple[Alternative, ...]:
        """Terms joined by OR."""
        found = self._term()
        while self._takes("OR"):
            found = _one_of(found, self._term())
        return found

    def _term(self) -> tuple[Alternative, ...]:
        """A comparison, or an expression in parentheses."""
        if not self.rest().startswith("("):
            return ((self._comparison(),),)
        if self._depth == DEPTH:
            raise BadFilter(f"must not nest parentheses deeper than {DEPTH}")
        self._depth += 1
        self.position += 1
        found = self.expression()
        if not self.rest().startswith(")"):
            raise BadFilter(f"has no closing parenthesis at character {self.position + 1}")
        self._depth -= 1
        self.position += 1
        return found

    def _takes(self, word: str) -> bool:
        self.rest()
        found = _WORD.match(self._text, self.position)
        if found is None or found.group() != word:
            return False
        self.position = found.end()
        return True

    def _comparison(self) -> Comparison:
        term = _TERM.match(self._text, self.position)
        if term is None:
            raise BadFilter(
                f"has no comparison at character {self.position + 1};"
                ' one looks like project_id = "p"'
            )
        self.position = term.end()
        return _comparison(term)


def _all_of(
    left: tuple[Alternative, ...], right: tuple[Alternative, ...]
) -> tuple[Alternative, ...]:
    if len(left) * len(right) > ALTERNATIVES:
        raise _too_many()
    return tuple(tuple(dict.fromkeys([*one, *other])) for one, other in product(left, right))


def _one_of(
    left: tuple[Alternative, ...], right: tuple[Alternative, ...]
) -> tuple[Alternative, ...]:
    if len(left) + len(right) > ALTERNATIVES:
        raise _too_many()
    return left + right


def _too_many() -> BadFilter:
    return BadFilter(
        f"must have at most {ALTERNATIVES} alternatives: each OR adds some, and an AND of ORs"
        " multiplies theirs"
    )


def _comparison(term: re.Match[str]) -> Comparison:
    field, operator = term["field"], term["operator"]
    quoted = term["quoted"]
    value = term["plain"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
    if field in TIMES:
        return Comparison(field, operator, _time(field, value))
    if field not in TEXTS and field not in ("state", "live"):
        fields = ", ".join(sorted(TEXTS | TIMES | {"state", "live"}))
        raise BadFilter(f"knows no field {field}; it knows {fields}")
    if operator != "=":
        raise BadFilter(f"can compare {field} by = only")
    if field == "state":
        return Comparison(field, operator, _state(value))
    if field == "live":
        return Comparison(field, operator, _truth(value))
    return Comparison(field, operator, _text(field, value))


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
