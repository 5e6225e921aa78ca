"""ListSessions and ListDecisions: filters, order, pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import failing
from tests.paging import pages
from tests.session.harness import TIMEOUT

if TYPE_CHECKING:
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)


async def users_of_pages(roost: World, **fields: object) -> list[list[str]]:
    """The users of each page of a listing, to its end."""
    request = rpc_pb.ListSessionsRequest(page_size=2, **fields)  # type: ignore[arg-type]  # any field
    return [
        [session.key.user_id for session in page.sessions]
        async for page in pages(roost.one.stub.ListSessions, request)
    ]


async def test_pages_hold_every_session_once_in_order(roost: World) -> None:
    """In both orders; the last page has no token."""
    users = [f"u{number}" for number in range(5)]
    for user in users:
        await roost.one.start(user)
    assert await users_of_pages(roost) == [users[:2], users[2:4], users[4:]]
    back = users[::-1]
    assert await users_of_pages(roost, order_by="create_time desc") == [
        back[:2],
        back[2:4],
        back[4:],
    ]


async def test_a_filter_narrows_and_a_token_belongs_to_its_filter(roost: World) -> None:
    """A page token of another filter is rejected, naming `page_token`."""
    for user in ("wren", "robin", "finch"):
        session = (await roost.one.start(user)).session
        if user == "finch":
            await roost.one.stop(session.session_id)
    assert await users_of_pages(roost, filter='user_id = "robin"') == [["robin"]]
    assert await users_of_pages(roost, filter="state = PAUSED AND live = true") == [["finch"]]
    assert await users_of_pages(roost, filter="live = false") == [[]]
    assert await users_of_pages(roost, filter='create_time > "2020-01-01T00:00:00Z"') == [
        ["wren", "robin"],
        ["finch"],
    ]
    first = await roost.one.stub.ListSessions(
        rpc_pb.ListSessionsRequest(page_size=1), timeout=TIMEOUT
    )
    foreign = rpc_pb.ListSessionsRequest(
        page_size=1, page_token=first.next_page_token, filter="live = true"
    )
    failure = await failing(roost.one.stub.ListSessions(foreign, timeout=TIMEOUT))
    assert failure.fields == ("page_token",)


async def test_decisions_are_newest_first_in_pages(roost: World) -> None:
    """Of one session, and of all sessions."""
    session = (await roost.one.start()).session
    for _ in range(3):
        await roost.one.start()
    await roost.one.start("robin")
    request = rpc_pb.ListDecisionsRequest(session_id=session.session_id, page_size=3)
    found = pages(roost.one.stub.ListDecisions, request)
    seen: list[pb.Decision] = [each async for page in found for each in page.decisions]
    assert [d.outcome for d in seen] == [pb.START_OUTCOME_REUSED] * 3 + [pb.START_OUTCOME_CREATED]
    everything = await roost.one.stub.ListDecisions(rpc_pb.ListDecisionsRequest(), timeout=TIMEOUT)
    assert len(everything.decisions) == 5
    assert everything.decisions[0].outcome == pb.START_OUTCOME_CREATED
