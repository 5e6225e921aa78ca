"""Every call about a session that a FRESH start is replacing, when that start's owner is gone.

No background pass runs: the call itself takes the start over once its lease has expired.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import grpc.aio
import pytest

from roost.session.v1 import checkpoint_service_pb2 as checkpoint_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import Failure, read_failure
from tests.session.harness import key
from tests.session.saving import client, execute, hooked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.session.harness import Replica, World

#: The lease of the lost owner and the timeout of a call, in s.
LEASE, PATIENCE = 1.0, 40.0
# Any: the answers of every call.
CALLS: dict[str, Callable[[Replica, str], Awaitable[Any]]] = {
    "ResumeSession": lambda at, session_id: at.stub.ResumeSession(
        rpc_pb.ResumeSessionRequest(session_id=session_id), timeout=PATIENCE
    ),
    "PauseSession": lambda at, session_id: at.stub.PauseSession(
        rpc_pb.PauseSessionRequest(session_id=session_id), timeout=PATIENCE
    ),
    "StopSession": lambda at, session_id: at.stub.StopSession(
        rpc_pb.StopSessionRequest(session_id=session_id), timeout=PATIENCE
    ),
    "EndSession": lambda at, session_id: at.stub.EndSession(
        rpc_pb.EndSessionRequest(session_id=session_id), timeout=PATIENCE
    ),
    "CreateCheckpoint": lambda at, session_id: client(at).stub.CreateCheckpoint(
        checkpoint_pb.CreateCheckpointRequest(session_id=session_id), timeout=PATIENCE
    ),
    "StartSession": lambda at, session_id: at.stub.StartSession(
        rpc_pb.StartSessionRequest(key=key(), mode=pb.START_MODE_CONTINUE), timeout=PATIENCE
    ),
}


async def replaced(roost: World, url: str) -> tuple[str, str]:
    """A session that is being replaced, and its successor, whose owner is gone."""
    session = (await roost.one.start(spec=hooked())).session
    await roost.admin.set_fault("slow_before", action="create", delay_ms=30_000)
    fresh = asyncio.ensure_future(roost.two.start(mode=pb.START_MODE_FRESH, spec=hooked()))
    new = await roost.until_live("wren")
    while new.session_id == session.session_id:
        new = await roost.until_live("wren")
    # Fenced, as by a replica that took over and died at once.
    execute(
        url,
        "UPDATE sessions SET epoch = epoch + 1, owner = %s,"
        " lease_until = now() + %s * interval '1 s', deadline = now() + interval '100 s'"
        " WHERE session_id = %s",
        uuid4(),
        LEASE,
        new.session_id,
    )
    fresh.cancel()
    await asyncio.gather(fresh, return_exceptions=True)
    await roost.admin.clear_faults()
    ((transition,),) = execute(
        url, "SELECT transition FROM sessions WHERE session_id = %s", session.session_id
    )
    assert transition == "REPLACE"
    return session.session_id, new.session_id


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_takes_over_the_start_that_replaces_its_session(
    roost: World, database_url: str, name: str
) -> None:
    """It succeeds or fails since the session has ended; the successor runs and was created once."""
    old, new = await replaced(roost, database_url)
    answer: Any = None
    try:
        answer = await CALLS[name](roost.one, old)
    except grpc.aio.AioRpcError as error:
        answer = read_failure(error)
    if isinstance(answer, Failure):
        assert name not in ("EndSession", "StartSession"), answer
        assert answer.code is grpc.StatusCode.FAILED_PRECONDITION, answer
        assert answer.reason == "SESSION_STATE_CONFLICT"
    live = await roost.until_live("wren")
    assert (live.session_id, live.state) == (new, pb.Session.STATE_ACTIVE)
    await roost.until_state(old, pb.Session.STATE_ENDED)
    assert await roost.committed("create", new) == 1
