"""The paged calls: their requests into pages to read, and what was read into pages to answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING
from uuid import UUID

from roost.session.v1 import session_service_pb2 as pb
from session_service.domain import filters
from session_service.errors import InvalidField
from session_service.rpc import pages, render
from session_service.rpc.fields import Fields
from session_service.storage.listing import Page, Position

if TYPE_CHECKING:
    from session_service.domain.decision import Decision
    from session_service.domain.session import Record

_ORDERS = {"": False, "create_time": False, "create_time asc": False, "create_time desc": True}


@dataclass(frozen=True, slots=True)
class WantedSessions:
    """A page of sessions; it reads one more than it answers with, to know whether more follow."""

    page: Page
    size: int
    listing: str


@dataclass(frozen=True, slots=True)
class WantedDecisions:
    """A page of decisions."""

    session_id: UUID | None
    last: UUID | None
    size: int
    listing: str


def parse_sessions(request: pb.ListSessionsRequest, tenant: str) -> WantedSessions:
    """The page of sessions that is asked for."""
    fields = Fields()
    size = fields.page_size(request.page_size)
    order = " ".join(request.order_by.split())
    if order not in _ORDERS:
        fields.wrong("order_by", "must be create_time or create_time desc")
    comparisons: tuple[filters.Comparison, ...] = ()
    try:
        comparisons = filters.parse(request.filter)
    except filters.BadFilter as error:
        fields.wrong("filter", str(error))
    fields.done()
    listing = pages.digest("sessions", tenant, request.filter, str(_ORDERS[order]))
    after = _position(request.page_token, listing)
    page = Page(tenant, comparisons, _ORDERS[order], after, size + 1)
    return WantedSessions(page, size, listing)


def _position(token: str, listing: str) -> Position | None:
    if not token:
        return None
    time, session_id = pages.read(token, listing, 2)
    try:
        return Position(datetime.fromisoformat(time), UUID(session_id))
    except ValueError:
        raise InvalidField.of("page_token", "cannot be read; begin without one") from None


def render_sessions(
    records: list[Record], wanted: WantedSessions, renderer: render.Renderer
) -> pb.ListSessionsResponse:
    """The page, and where to go on."""
    shown = records[: wanted.size]
    token = ""
    if len(records) > wanted.size:
        last = shown[-1].session
        token = pages.make(wanted.listing, [last.create_time.isoformat(), str(last.session_id)])
    return pb.ListSessionsResponse(
        sessions=[renderer.session(record) for record in shown], next_page_token=token
    )


def parse_decisions(request: pb.ListDecisionsRequest, tenant: str) -> WantedDecisions:
    """The page of decisions that is asked for."""
    fields = Fields()
    size = fields.page_size(request.page_size)
    session_id = fields.optional_uuid("session_id", request.session_id)
    fields.done()
    listing = pages.digest("decisions", tenant, str(session_id))
    last = None
    if request.page_token:
        (text,) = pages.read(request.page_token, listing, 1)
        try:
            last = UUID(text)
        except ValueError:
            raise InvalidField.of("page_token", "cannot be read; begin without one") from None
    return WantedDecisions(session_id, last, size, listing)


def render_decisions(rows: list[Decision], wanted: WantedDecisions) -> pb.ListDecisionsResponse:
    """The page, and where to go on."""
    shown = rows[: wanted.size]
    token = ""
    if len(rows) > wanted.size:
        token = pages.make(wanted.listing, [str(shown[-1].decision_id)])
    return pb.ListDecisionsResponse(
        decisions=[render.decision(row) for row in shown], next_page_token=token
    )
