"""What the lists of sessions and of agent sessions share: their orders, and their page tokens."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from session_service.errors import InvalidField
from session_service.rpc import fields as rpc_fields
from session_service.storage.scan import Position

if TYPE_CHECKING:
    from collections.abc import Callable

    from session_service.rpc.fields import Fields


@dataclass(frozen=True, slots=True)
class Orders:
    """The values of `order_by`: a time, with or without asc or desc after it."""

    created: str
    seen: str
    descending: bool
    """Whether a list without an order begins with the newest."""

    def parse(self, fields: Fields, value: str) -> tuple[bool, bool]:
        """Whether the order is by `seen` instead of `created`, and whether it is descending."""
        time, *way = value.split() or [self.created, "desc" if self.descending else "asc"]
        if time not in (self.created, self.seen) or way not in ([], ["asc"], ["desc"]):
            fields.wrong(
                "order_by", f"must be {self.created} or {self.seen}, with or without desc after it"
            )
        return time == self.seen, way == ["desc"]


def digest(kind: str, tenant: str, filter_: str, *, seen: bool, descending: bool) -> str:
    """The digest of a list."""
    # The parts of an order by creation are those of an earlier version: its tokens stay valid.
    by = ["seen"] if seen else []
    return rpc_fields.listing_digest(kind, tenant, filter_, str(descending), *by)


def position(token: str, listing: str, identity: Callable[[str], Any]) -> Position | None:
    """The position that a page token holds; None if there is no token. `identity` reads an id, and
    raises ValueError for what is none. Any: an id of any type. Raises InvalidField.
    """
    if not token:
        return None
    time, name = rpc_fields.read_page_token(token, listing, 2)
    try:
        found = Position(datetime.fromisoformat(time), identity(name))
    except ValueError:
        found = None
    if found is None or found.time.tzinfo is None:
        raise InvalidField.of(
            "page_token", "is malformed; leave it empty to begin with the first page"
        )
    return found


def next_token(listing: str, after: Position | None) -> str:
    """The token for the page after this position; empty if there is none."""
    if after is None:
        return ""
    return rpc_fields.make_page_token(listing, [after.time.isoformat(), str(after.identity)])
