"""A call's own task is cancelled at each of its awaits in turn, as gRPC does when the client hangs
up.

At whichever await: the transition that was committed continues under its owner, without a takeover.
A repeat of the request is answered, without a second machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from roost.session.v1 import session_pb2 as pb
from tests.eventually import eventually
from tests.session.harness import request_id
from tests.session.saving import client, execute, hooked
from tests.session.tracing import Place, Trace, Tracer

if TYPE_CHECKING:
    from tests.session.harness import Replica, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
#: Makes a call of this request id about the session, at a replica.
Call = Callable[["Replica", pb.Session, str], Coroutine[Any, Any, Any]]


async def nothing(roost: World, session: pb.Session) -> None:
    """The session is ready for the call as it is."""


async def pause(roost: World, session: pb.Session) -> None:
    await roost.one.pause(session.session_id)


async def end(roost: World, session: pb.Session) -> None:
    await roost.one.end(session.session_id)


#: Each call, and what is done to a running session before it.
CALLS: dict[str, tuple[Callable[[World, pb.Session], Awaitable[None]], Call]] = {
    "create": (
        end,
        lambda at, session, once: at.start(session.key.user_id, request_id=once, spec=hooked()),
    ),
    "fresh": (
        nothing,
        lambda at, session, once: at.start(
            session.key.user_id, request_id=once, mode=pb.START_MODE_FRESH, spec=hooked()
        ),
    ),
    "resume": (pause, lambda at, session, once: at.resume(session.session_id, request_id=once)),
    "stop": (nothing, lambda at, session, once: at.stop(session.session_id, request_id=once)),
    "end": (nothing, lambda at, session, once: at.end(session.session_id, request_id=once)),
    "undelete": (end, lambda at, session, once: at.undelete(session.session_id, request_id=once)),
    "checkpoint": (
        nothing,
        lambda at, session, once: client(at).create(session.session_id, request_id=once),
    ),
}


#: A few of the cases are part of `make test`, the others of `make proof`.
SHORT = {("resume", False), ("stop", True)}
NAMES = [
    pytest.param(
        name,
        late,
        id=f"{name}-{'late' if late else 'early'}",
        marks=() if (name, late) in SHORT else pytest.mark.proof,
    )
    for name in CALLS
    for late in (False, True)
]


@pytest.mark.parametrize(("name", "late"), NAMES)
async def test_a_call_that_is_cancelled_at_any_wait_leaves_its_work_to_be_finished(
    traced: World, tracer: Tracer, database_url: str, name: str, late: bool
) -> None:
    """A first call that is not cancelled lists the places where it waits.

    Early: the task is cancelled while it waits. Late: the result is there, but the task has not
    resumed yet.
    """
    prepare, call = CALLS[name]
    users = (f"wren-{number}" for number in count())

    async def cancelled_at(place: Place | None) -> Trace:
        user, once = next(users), request_id()
        session = (await traced.one.start(user, spec=hooked())).session
        await prepare(traced, session)
        with tracer.tracing_next(Trace(cancel_at=place, late=late)) as trace:
            await run_call(call(traced.one, session, once), trace)
        at = f"cancelled at {place}"
        await finished(database_url, user, at)
        await check(traced, database_url, user, at)
        # Replayed if the work was done, otherwise done now: at another replica, twice.
        answers = [await call(traced.two, session, once) for _ in range(2)]
        assert len({essence(answer) for answer in answers}) == 1, at
        await finished(database_url, user, at)
        await check(traced, database_url, user, at)
        # Each guest is a process of this machine: free it.
        for session_id in sessions_of(database_url, user):
            await traced.one.end(session_id, now=True)
        return trace

    places = list((await cancelled_at(None)).places)
    hit = [place for place in places if (await cancelled_at(place)).cancelled]
    print(f"{name}: cancelled at {len(hit)} of {len(places)} places")
    # Whether the call waits for a connection of the pool depends on timing.
    assert len(hit) >= max(4, len(places) - 3), set(places) - set(hit)


async def run_call(call: Coroutine[Any, Any, Any], trace: Trace) -> None:
    """Make the call and wait for the end of its task at the server. gRPC does not tell a client of
    a task that was cancelled at the server, so the client hangs up afterwards. Any: of any call.
    """
    asked = asyncio.ensure_future(call)
    over = asyncio.ensure_future(trace.over.wait())
    await asyncio.wait({asked, over}, return_when=asyncio.FIRST_COMPLETED)
    if trace.cancelled:
        await over
        asked.cancel()
    over.cancel()
    await asyncio.wait({asked})
    if not trace.cancelled:
        asked.result()


def essence(answer: Any) -> str:
    """The id that is equal in all answers to one request. Any: of any call."""
    return str(
        getattr(answer, "decision_id", "")
        or getattr(answer, "session_id", "")
        or getattr(answer, "checkpoint_id", "")
    )


async def finished(url: str, user: str, at: str) -> None:
    """Wait until the user has no transition and no checkpoint in flight."""

    def settled() -> bool:
        rows = execute(
            url,
            "SELECT session_id FROM sessions WHERE user_id = %s AND transition IS NOT NULL"
            " UNION ALL SELECT checkpoint_id FROM checkpoints"
            " WHERE user_id = %s AND state = 'WRITING'",
            user,
            user,
        )
        assert not rows, f"{at}: not finished"
        return True

    await eventually(settled)


def sessions_of(url: str, user: str) -> list[str]:
    """The ids of the user's sessions."""
    rows = execute(url, "SELECT session_id::text FROM sessions WHERE user_id = %s", user)
    return [row[0] for row in rows]


async def check(roost: World, url: str, user: str, at: str) -> None:
    """Assert the invariants: one live session at most, no takeover, no unfinished decision, one
    machine for each session.
    """
    ((live,),) = execute(
        url,
        "SELECT count(*) FROM sessions WHERE user_id = %s"
        " AND state IN ('STARTING', 'ACTIVE', 'PAUSING', 'PAUSED')",
        user,
    )
    assert live <= 1, at
    # The lease outlasts the test, so an abandoned transition would show as a takeover.
    taken = execute(
        url,
        "SELECT 1 FROM session_events JOIN sessions USING (session_id)"
        " WHERE user_id = %s AND type = 'TAKEN_OVER'",
        user,
    )
    assert not taken, f"{at}: another owner took the work over"
    unfinished = execute(
        url,
        "SELECT rule FROM decisions WHERE finish_time IS NULL AND session_id IN"
        " (SELECT session_id FROM sessions WHERE user_id = %s)",
        user,
    )
    assert not unfinished, at
    for session_id in sessions_of(url, user):
        assert await roost.committed("create", session_id) == 1, at
