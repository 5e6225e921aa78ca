"""ListSessions and ListDecisions: requests parsed, pages rendered.

ListDecisions reads one row more than a page has. If it exists, the reply has a token for the next
page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import UUID

from roost.session.v1 import session_service_pb2 as pb
from session_service.domain import filters
from session_service.errors import InvalidField
from session_service.rpc import fields as rpc_fields
from session_service.rpc import lists
from session_service.rpc.fields import Fields
from session_service.rpc.lists import Orders
from session_service.rpc.session import render
from session_service.storage.session.listing import Page

if TYPE_CHECKING:
    from session_service.domain.decision import Decision
    from session_service.domain.session import Record
    from session_service.storage.scan import Listed

_ORDERS = Orders("create_time", "last_active_time", descending=False)


@dataclass(frozen=True, slots=True)
class WantedSessions:
    """A page of sessions. `listing` is the listing's digest."""

    page: Page
    listing: str


@dataclass(frozen=True, slots=True)
class WantedDecisions:
    """A page of decisions: those older than `last`. `listing` is the listing's digest."""

    session_id: UUID | None
    last: UUID | None
    size: int
    listing: str


def parse_sessions(request: pb.ListSessionsRequest, tenant: str) -> WantedSessions:
    """The requested page of sessions. Raises InvalidField."""
    fields = Fields()
    size = fields.page_size(request.page_size)
    seen, descending = _ORDERS.parse(fields, request.order_by)
    alternatives: tuple[filters.Alternative, ...] = ()
    try:
        alternatives = filters.parse(request.filter)
    except filters.BadFilter as error:
        fields.wrong("filter", str(error))
    fields.done()
    listing = lists.digest("sessions", tenant, request.filter, seen=seen, descending=descending)
    after = lists.position(request.page_token, listing, UUID)
    return WantedSessions(Page(tenant, alternatives, seen, descending, after, size), listing)


def render_sessions(
    found: Listed[Record], wanted: WantedSessions, renderer: render.Renderer
) -> pb.ListSessionsResponse:
    """The page, and the token for the next one."""
    token = lists.next_token(wanted.listing, found.after)
    return pb.ListSessionsResponse(
        sessions=[renderer.session(record) for record in found.rows], next_page_token=token
    )


def parse_decisions(request: pb.ListDecisionsRequest, tenant: str) -> WantedDecisions:
    """The requested page of decisions. Raises InvalidField."""
    fields = Fields()
    size = fields.page_size(request.page_size)
    session_id = fields.optional_uuid("session_id", request.session_id)
    fields.done()
    listing = rpc_fields.listing_digest("decisions", tenant, str(session_id))
    last = None
    if request.page_token:
        (text,) = rpc_fields.read_page_token(request.page_token, listing, 1)
        try:
            last = UUID(text)
        except ValueError:
            raise InvalidField.of(
                "page_token", "is malformed; leave it empty to begin with the first page"
            ) from None
    return WantedDecisions(session_id, last, size, listing)


def render_decisions(rows: list[Decision], wanted: WantedDecisions) -> pb.ListDecisionsResponse:
    """The page, and the token for the next one."""
    shown = rows[: wanted.size]
    token = ""
    if len(rows) > wanted.size:
        token = rpc_fields.make_page_token(wanted.listing, [str(shown[-1].decision_id)])
    return pb.ListDecisionsResponse(
        decisions=[render.decision(row) for row in shown], next_page_token=token
    )
