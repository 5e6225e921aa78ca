"""The order by last activity: which writes move `seen_at`, and which must not."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.rpc import fields
from session_service.storage import activity
from session_service.storage.session import activity as session_activity
from tests.container.harness import failing
from tests.session.ageing import sql
from tests.session.harness import TIMEOUT
from tests.session.test_lists import users_of_pages

if TYPE_CHECKING:
    from tests.session.harness import Replica, World

#: Moves what is as old as that; zero: every session whose activity is not shown.
AT_ONCE = timedelta(0)


async def walk(replica: Replica, moved_after: timedelta = AT_ONCE) -> int:
    """One walk over all sessions."""
    return await activity.run(replica.running.database, session_activity.WALK, moved_after)


async def lag(replica: Replica) -> list[bool]:
    """Of each session, in order of creation: whether `seen_at` shows its last activity."""
    found = await sql(
        replica, "SELECT seen_at = last_active_time FROM sessions ORDER BY create_time"
    )
    return [shown for (shown,) in found]


async def test_a_touch_moves_nothing_and_a_walk_and_a_change_of_state_do(roost: World) -> None:
    """A walk leaves alone what it moved lately."""
    wren = (await roost.one.start("wren")).session
    robin = (await roost.one.start("robin")).session
    assert await lag(roost.one) == [True, True]
    await sql(roost.one, "UPDATE sessions SET seen_at = seen_at - interval '1 minute'")
    for session in (wren, robin):
        touch = rpc_pb.TouchSessionRequest(session_id=session.session_id)
        await roost.one.stub.TouchSession(touch, timeout=TIMEOUT)
    await roost.one.start("wren")
    assert await lag(roost.one) == [False, False]
    await roost.one.pause(robin.session_id)
    assert await lag(roost.one) == [False, True]
    assert await walk(roost.one, activity.MOVED_AFTER) == 0
    assert await walk(roost.one) == 1
    assert await lag(roost.one) == [True, True]
    assert await walk(roost.one) == 0


async def test_a_walk_reads_all_rows_in_chunks(roost: World) -> None:
    """Also those of several tenants, and those that share a time."""
    count = 2 * activity.CHUNK + 1
    await sql(
        roost.one,
        """
        INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation,
            epoch, spec, fingerprint, policy, create_time)
        SELECT lpad(to_hex(n), 32, '0')::uuid, 't' || n %% 3, 'p', 'u' || n, 's', 'ACTIVE', 1, 1,
            '{}', 'f', '{}', '2026-01-01'::timestamptz + n / 7 * interval '1 s'
        FROM generate_series(1, %s) n
        """,
        count,
    )
    await sql(roost.one, "UPDATE sessions SET seen_at = create_time")
    assert await walk(roost.one) == count
    assert await walk(roost.one) == 0


async def test_one_replica_walks_at_a_time(roost: World) -> None:
    """Of all that look at once, and not again within the period."""
    await sql(roost.one, "UPDATE activity_passes SET due_at = now()")
    claims = [
        await activity.claim(replica.running.database, session_activity.SUBJECT) is not None
        for replica in (roost.one, roost.two, roost.one)
    ]
    assert claims == [True, False, False]


async def test_a_complete_walk_is_noted_and_one_that_broke_off_is_not(roost: World) -> None:
    """The next one is due a period after the beginning, or soon if the claim was left."""
    one = roost.one.running.database
    walked = "SELECT walk_time IS NOT NULL, due_at - now() FROM activity_passes WHERE subject = %s"
    await sql(roost.one, "UPDATE activity_passes SET due_at = now(), walk_time = NULL")
    assert await activity.claim(one, session_activity.SUBJECT) is not None
    ((complete, due_in),) = await sql(roost.one, walked, session_activity.SUBJECT)
    assert (complete, due_in <= activity.HOLD) == (False, True)
    await sql(roost.one, "UPDATE activity_passes SET due_at = now()")
    moved = await activity.walk_if_due(one, session_activity.SUBJECT, session_activity.WALK)
    assert moved is not None
    ((complete, due_in),) = await sql(roost.one, walked, session_activity.SUBJECT)
    assert (complete, due_in <= activity.PERIOD) == (True, True)
    again = await activity.walk_if_due(one, session_activity.SUBJECT, session_activity.WALK)
    assert again is None


async def test_sessions_are_listed_by_last_activity(roost: World) -> None:
    """In pages, both ways; a range of it too; a token belongs to its order."""
    users = [f"u{number}" for number in range(5)]
    for number, user in enumerate(users):
        session = (await roost.one.start(user)).session
        await sql(
            roost.one,
            "UPDATE sessions SET last_active_time = t, seen_at = t"
            " FROM (SELECT now() - %s * interval '1 h' AS t) AS time WHERE session_id = %s",
            number,
            UUID(session.session_id),
        )
    assert await users_of_pages(roost, order_by="last_active_time desc") == [
        users[:2],
        users[2:4],
        users[4:],
    ]
    back = users[::-1]
    assert await users_of_pages(roost, order_by="last_active_time") == [
        back[:2],
        back[2:4],
        back[4:],
    ]
    ((since,),) = await sql(roost.one, "SELECT now() - interval '150 minutes'")
    recent = f'last_active_time >= "{since.isoformat()}"'
    for order in ("create_time", "last_active_time desc"):
        assert await users_of_pages(roost, filter=recent, order_by=order) == [users[:2], users[2:3]]
    request = rpc_pb.ListSessionsRequest(page_size=1, order_by="last_active_time")
    token = (await roost.one.stub.ListSessions(request, timeout=TIMEOUT)).next_page_token
    foreign = rpc_pb.ListSessionsRequest(page_size=1, page_token=token)
    failure = await failing(roost.one.stub.ListSessions(foreign, timeout=TIMEOUT))
    assert failure.fields == ("page_token",)


async def test_alternatives_are_listed_once_and_too_many_are_rejected(roost: World) -> None:
    for user in ("wren", "robin", "finch"):
        session = (await roost.one.start(user)).session
        if user == "finch":
            await roost.one.stop(session.session_id)
    both = 'user_id = "wren" OR state = ACTIVE OR state = PAUSED'
    assert await users_of_pages(roost, filter=both) == [["wren", "robin"], ["finch"]]
    bound = 'live = true AND (user_id = "robin" OR state = PAUSED)'
    assert await users_of_pages(roost, filter=bound) == [["robin", "finch"]]
    assert await users_of_pages(roost, filter="state = ACTIVE AND state = PAUSED") == [[]]
    many = " OR ".join(f"user_id = u{number}" for number in range(11))
    failure = await failing(
        roost.one.stub.ListSessions(rpc_pb.ListSessionsRequest(filter=many), timeout=TIMEOUT)
    )
    assert failure.fields == ("filter",)


async def test_a_token_of_the_version_before_is_understood(roost: World) -> None:
    """It was made of the same parts."""
    for user in ("wren", "robin"):
        await roost.one.start(user)
    ((time, session_id),) = await sql(
        roost.one, "SELECT create_time, session_id FROM sessions ORDER BY create_time LIMIT 1"
    )
    listing = fields.listing_digest("sessions", "default", "live = true", "False")
    token = fields.make_page_token(listing, [time.isoformat(), str(session_id)])
    request = rpc_pb.ListSessionsRequest(filter="live = true", page_token=token)
    found = await roost.one.stub.ListSessions(request, timeout=TIMEOUT)
    assert [session.key.user_id for session in found.sessions] == ["robin"]
