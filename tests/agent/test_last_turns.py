"""The order by the newest turn: an append writes no indexed column, and a walk moves them."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from roost.agent.v1 import agent_session_pb2 as pb
from roost.agent.v1 import agent_session_service_pb2 as rpc_pb
from session_service.rpc import fields
from session_service.storage import activity
from session_service.storage.agent import activity as agent_activity
from tests.agent.test_retention import age
from tests.container.harness import failing
from tests.paging import pages

if TYPE_CHECKING:
    from tests.agent.harness import Replica

AT_ONCE = timedelta(0)
_SHOWN = (
    "SELECT seen_at = last_query_at,"
    " due_at - greatest(last_query_at, idle_from) - idle_timeout < interval '1 s' AND"
    " due_at >= greatest(last_query_at, idle_from) + idle_timeout FROM llm_sessions"
    " ORDER BY session_id"
)


async def walk(agents: Replica, moved_after: timedelta = AT_ONCE) -> int:
    """One walk over all sessions."""
    return await activity.run(agents.database, agent_activity.WALK, moved_after)


async def listed(agents: Replica, order: str, **filters: object) -> list[str]:
    """The ids of all pages."""
    request = rpc_pb.ListAgentSessionsRequest(
        filter=rpc_pb.AgentSessionFilter(**filters),  # type: ignore[arg-type]  # any field
        page_size=2,
        order_by=order,
    )
    found = pages(agents.stub.ListAgentSessions, request)
    return [each.session_id async for page in found for each in page.agent_sessions]


async def test_a_walk_moves_what_an_append_leaves(agents: Replica) -> None:
    """Of ACTIVE sessions; a session that ends takes its time along."""
    for name in ("a", "b", "c"):
        await agents.create(session_id=name)
        await age(agents, name, 600)
        await agents.append(name, "hello")
    assert await agents.rows(_SHOWN) == [(False, False)] * 3
    await agents.end("b")
    assert (await agents.rows(_SHOWN))[1][0] is True
    assert await walk(agents, timedelta(hours=1)) == 0
    assert await walk(agents) == 2
    shown = await agents.rows(_SHOWN)
    assert (shown[0], shown[2]) == ((True, True), (True, True))
    assert await walk(agents) == 0


async def test_an_append_that_revives_an_active_session_writes_no_index(agents: Replica) -> None:
    """Only one that was EXPIRED gets other indexed columns."""
    await agents.create(session_id="r")
    await age(agents, "r", 600)
    columns = "SELECT seen_at, due_at, state, purge_at FROM llm_sessions"
    before = await agents.rows(columns)
    await agents.append("r", "hello", revive=True)
    assert await agents.rows(columns) == before
    await agents.rows(
        "UPDATE llm_sessions SET state = 'EXPIRED', ended_at = now(),"
        " purge_at = now() + interval '1 d'"
    )
    await agents.append("r", "more", revive=True)
    assert await agents.rows(_SHOWN) == [(True, True)]


async def test_sessions_are_listed_by_their_newest_turn(agents: Replica) -> None:
    for number in range(5):
        await agents.create(("ceo", "cto")[number % 2], session_id=f"s{number}")
        await age(agents, f"s{number}", 60 * number)
    names = [f"s{number}" for number in range(5)]
    assert await listed(agents, "last_query_time desc") == names
    assert await listed(agents, "last_query_time") == names[::-1]
    assert await listed(agents, "last_query_time", agent_role="ceo") == ["s4", "s2", "s0"]
    await agents.append("s4", "hello")
    await walk(agents)
    assert await listed(agents, "last_query_time desc") == ["s4", *names[:4]]
    ended = [pb.AgentSession.STATE_ENDED, pb.AgentSession.STATE_ACTIVE]
    await agents.end("s1")
    assert await listed(agents, "last_query_time desc", states=ended) == ["s4", *names[:4]]
    bad = rpc_pb.ListAgentSessionsRequest(order_by="last_query_at")
    assert (await failing(agents.stub.ListAgentSessions(bad, timeout=30))).fields == ("order_by",)


async def test_a_token_of_the_version_before_is_understood(agents: Replica) -> None:
    """It was made of the same parts."""
    for name in ("a", "b"):
        await agents.create(session_id=name)
    ((time,),) = await agents.rows("SELECT created_at FROM llm_sessions WHERE session_id = 'b'")
    listing = fields.listing_digest("agent_sessions", "default", "", "True")
    token = fields.make_page_token(listing, [time.isoformat(), "b"])
    request = rpc_pb.ListAgentSessionsRequest(page_token=token)
    found = await agents.stub.ListAgentSessions(request, timeout=30)
    assert [session.session_id for session in found.agent_sessions] == ["a"]
