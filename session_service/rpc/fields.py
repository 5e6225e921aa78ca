"""Checks a request's fields and collects every fault, so that a caller hears of all at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

from session_service.errors import InvalidField, Violation

if TYPE_CHECKING:
    from collections.abc import Mapping

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NIL = UUID(int=0)
T = TypeVar("T")

#: Longest ids of projects and users, and longest slot.
ID_LIMIT = 128
SLOT_LIMIT = 64
PAGE_LIMIT = 500
PAGE_DEFAULT = 50


class Fields:
    """The faults found so far in one request. Checks return a value that fits, or a stand-in."""

    def __init__(self) -> None:
        self._violations: list[Violation] = []

    def wrong(self, field: str, description: str) -> None:
        """Note a fault."""
        self._violations.append(Violation(field, description))

    def done(self) -> None:
        """Raise InvalidField if there was any fault."""
        if self._violations:
            raise InvalidField(self._violations)

    def text(self, field: str, value: str, limit: int, *, required: bool = False) -> str:
        """Text of up to `limit` characters, without control characters."""
        if required and not value:
            self.wrong(field, "must not be empty")
        elif len(value) > limit:
            self.wrong(field, f"must be at most {limit} characters")
        elif not value.isprintable():
            self.wrong(field, "must hold printable characters only")
        return value

    def uuid(self, field: str, value: str) -> UUID:
        """A UUID that must be there, in its usual form."""
        if not _UUID.fullmatch(value):
            self.wrong(field, "must be a UUID" if value else "must not be empty")
            return _NIL
        return UUID(value)

    def optional_uuid(self, field: str, value: str) -> UUID | None:
        """A UUID, or None where it is empty."""
        return self.uuid(field, value) if value else None

    def choice(self, field: str, number: int, choices: Mapping[int, T], default: T) -> T:
        """An enumeration's value; one that this version does not know is a fault."""
        if number not in choices:
            self.wrong(field, f"has no value {number}")
        return choices.get(number, default)

    def page_size(self, value: int) -> int:
        """How many to answer with; 0 is the default."""
        if value < 0:
            self.wrong("page_size", "must not be negative")
        return min(value, PAGE_LIMIT) or PAGE_DEFAULT
