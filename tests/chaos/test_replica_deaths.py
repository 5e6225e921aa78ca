"""A replica dies before, during and after each of its steps; another replica completes the work.

For every transition and failpoint: the repeat of the caller's request is answered, there is one
machine, and no state is lost. `replica_death` explains how a case runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc.aio
import pytest

from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service import failpoints
from tests.chaos.replica_death import (
    PATIENCE,
    Case,
    died_at,
    in_parts,
    running_case,
    shared_servers,
)
from tests.container.harness import read_failure
from tests.eventually import eventually
from tests.session.harness import key, request_id

if TYPE_CHECKING:
    from collections.abc import (
        Awaitable,
        Callable,
        Sequence,
    )
    from pathlib import Path

    from tests.database import Databases

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

CREATE = ("create", "wait_started", "read_boot_id")
REST = ("acquire_lease", "suspend", "release_lease")
END = ("acquire_lease", "cordon", "suspend", "release_lease")


# --- the transitions, and what must hold after a death anywhere in them --------------------------


async def _start_create(case: Case) -> None:
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    assert not answer.joined
    assert await case.session_ids() == [answer.session.session_id]
    assert await case.machines(answer.session.session_id) == ["started"]
    assert await case.world.counter(answer.session) == "0"


async def _start_resume(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    await case.other.pause(session.session_id)
    request = rpc_pb.StartSessionRequest(key=key(), request_id=request_id())
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_RESUMED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await case.machines(session.session_id) == ["started"]
    assert await case.world.counter(answer.session) == "2"


async def _pause(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    request = rpc_pb.PauseSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.PauseSession(request, timeout=PATIENCE))
    answer = await case.repeated("PauseSession", request)
    (state,) = await case.machines(session.session_id)
    if isinstance(answer, rpc_pb.PauseSessionResponse):
        assert (answer.session.state, state) == (pb.Session.STATE_PAUSED, "suspended")
    else:
        # The replica that took over found it running: reported, and nothing is lost.
        assert (answer.reason, state) == ("SUSPEND_FAILED_STILL_RUNNING", "started")
    back = await case.other.start()
    assert (back.continuity, back.session.session_id) == (pb.CONTINUITY_MEMORY, session.session_id)
    assert await case.world.counter(back.session) == "2"


async def _end(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    request = rpc_pb.EndSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.EndSession(request, timeout=PATIENCE))
    answer = await case.repeated("EndSession", request)
    assert answer.session.state == pb.Session.STATE_ENDED
    assert await case.machines(session.session_id) == ["suspended"]
    await case.other.undelete(session.session_id)
    back = await case.other.start()
    assert (back.outcome, back.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert await case.world.counter(back.session) == "2"


async def _end_now(case: Case) -> None:
    session = (await case.other.start()).session
    request = rpc_pb.EndSessionRequest(
        session_id=session.session_id, request_id=request_id(), now=True
    )
    await case.dies(lambda stub: stub.EndSession(request, timeout=PATIENCE))
    answer = await case.repeated("EndSession", request)
    assert answer.session.state == pb.Session.STATE_ENDED
    assert await eventually(lambda: _all_gone(case, session.session_id))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await case.other.undelete(session.session_id)
    assert read_failure(refused.value).reason == "SESSION_STATE_CONFLICT"


async def _undelete(case: Case) -> None:
    session = (await case.other.start()).session
    await case.world.click_twice(session)
    await case.other.end(session.session_id)
    request = rpc_pb.UndeleteSessionRequest(session_id=session.session_id, request_id=request_id())
    await case.dies(lambda stub: stub.UndeleteSession(request, timeout=PATIENCE))
    answer = await case.repeated("UndeleteSession", request)
    assert answer.session.state == pb.Session.STATE_PAUSED
    back = await case.other.start()
    assert (back.outcome, back.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert await case.world.counter(back.session) == "2"


async def _all_gone(case: Case, session_id: str) -> bool:
    return await case.machines(session_id) == ["destroyed"]


async def _fresh(case: Case) -> None:
    old = (await case.other.start()).session
    request = rpc_pb.StartSessionRequest(
        key=key(), request_id=request_id(), mode=pb.START_MODE_FRESH
    )
    await case.dies(lambda stub: stub.StartSession(request, timeout=PATIENCE))
    answer = await case.repeated("StartSession", request)
    assert answer.outcome == pb.START_OUTCOME_CREATED
    new = answer.session.session_id
    assert sorted(await case.session_ids()) == sorted([old.session_id, new])
    ended = await case.other.end(old.session_id)
    assert ended.state == pb.Session.STATE_ENDED
    assert await case.machines(old.session_id) == ["suspended"]
    assert await case.machines(new) == ["started"]
    assert await case.world.counter(answer.session) == "0"


PLACES: dict[Callable[[Case], Awaitable[None]], tuple[str, ...]] = {
    _start_create: ("intent", "note", "outcome", *CREATE),
    _start_resume: ("intent", "outcome", "resume"),
    _pause: ("intent", "outcome", *REST),
    _end: ("intent", "outcome", *END),
    _end_now: ("intent", "outcome", "acquire_lease", "destroy"),
    _undelete: ("intent",),
    _fresh: ("intent", "note", "outcome", *CREATE, *END),
}


POINTS = {
    transition: [f"{place}.{moment}" for place in places for moment in failpoints.MOMENTS]
    for transition, places in PLACES.items()
}


@pytest.mark.parametrize(("transition", "names"), in_parts(POINTS, 12))
async def test_a_death_at_every_failpoint_of(
    transition: Callable[[Case], Awaitable[None]],
    names: Sequence[str],
    databases: Databases,
    migrated_database: str,
    tmp_path: Path,
) -> None:
    """One machine, the right answer, and no lost state, wherever the replica died."""
    async with shared_servers(tmp_path) as servers:
        await died_at(
            names,
            transition,
            lambda name: running_case(name, servers, databases, migrated_database),
        )
