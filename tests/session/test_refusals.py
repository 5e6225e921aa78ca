"""A final error is the answer to its request id, also after the session has changed.

StartSession with FAIL_IF_LIVE is in test_replays. EndSession is legal from every state, so it has
no final error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from roost.session.v1 import checkpoint_service_pb2 as checkpoint_pb
from tests.container.harness import failing
from tests.session.harness import TIMEOUT, request_id
from tests.session.saving import client, counting, execute

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.session.harness import Replica, World


class Case:
    """The reason for which a call fails, and how to remove it."""

    def __init__(self, roost: World, url: str) -> None:
        self.roost = roost
        self.url = url

    async def session(self, user_id: str = "wren") -> str:
        """A session with a counter, whose state can be saved."""
        return (await counting(self.roost, 1, user_id)).session_id

    async def hidden(self, session_id: str) -> str:
        """A checkpoint of the session that is another tenant's for now, and so is not found."""
        taken = await client(self.roost.one).create(session_id)
        self.give(taken.checkpoint_id, "another")
        return taken.checkpoint_id

    def give(self, checkpoint_id: str, tenant: str = "default") -> None:
        """Make the checkpoint this tenant's."""
        execute(
            self.url,
            "UPDATE checkpoints SET tenant = %s WHERE checkpoint_id = %s",
            tenant,
            checkpoint_id,
        )


async def _start_again(case: Case, session_id: str) -> None:
    await case.roost.one.undelete(session_id)
    await case.roost.one.start()


async def create_checkpoint(case: Case) -> tuple[str, Any, Any]:
    session_id = await case.session()
    await case.roost.one.pause(session_id)

    async def call(at: Replica, once: str) -> Any:
        return await client(at).create(session_id, request_id=once)

    return "SESSION_STATE_CONFLICT", call, lambda: case.roost.one.start()


async def restore_checkpoint(case: Case) -> tuple[str, Any, Any]:
    session_id = await case.session()

    async def call(at: Replica, once: str) -> Any:
        return await client(at).restore(session_id, number=1, request_id=once)

    return "CHECKPOINT_MISSING", call, lambda: client(case.roost.one).create(session_id)


async def fork_session(case: Case) -> tuple[str, Any, Any]:
    checkpoint_id = await case.hidden(await case.session())

    async def call(at: Replica, once: str) -> Any:
        return await client(at).fork(checkpoint_id, "robin", request_id=once)

    async def mend() -> None:
        case.give(checkpoint_id)

    return "CHECKPOINT_MISSING", call, mend


async def pin_checkpoint(case: Case) -> tuple[str, Any, Any]:
    checkpoint_id = await case.hidden(await case.session())

    async def call(at: Replica, once: str) -> Any:
        request = checkpoint_pb.PinCheckpointRequest(
            checkpoint_id=checkpoint_id, pinned=True, request_id=once
        )
        return await client(at).stub.PinCheckpoint(request, timeout=TIMEOUT)

    async def mend() -> None:
        case.give(checkpoint_id)

    return "CHECKPOINT_MISSING", call, mend


async def delete_missing_checkpoint(case: Case) -> tuple[str, Any, Any]:
    checkpoint_id = await case.hidden(await case.session())

    async def call(at: Replica, once: str) -> Any:
        return await client(at).delete(checkpoint_id, request_id=once)

    async def mend() -> None:
        case.give(checkpoint_id)

    return "CHECKPOINT_MISSING", call, mend


async def delete_pinned_checkpoint(case: Case) -> tuple[str, Any, Any]:
    saved = client(case.roost.one)
    session_id = await case.session()
    taken = await saved.create(session_id)
    await saved.create(session_id)
    await saved.pin(taken.checkpoint_id)

    async def call(at: Replica, once: str) -> Any:
        return await client(at).delete(taken.checkpoint_id, request_id=once)

    return "CHECKPOINT_PINNED", call, lambda: saved.pin(taken.checkpoint_id, pinned=False)


async def pause_session(case: Case) -> tuple[str, Any, Any]:
    session_id = await case.session()
    await case.roost.one.end(session_id)

    async def call(at: Replica, once: str) -> Any:
        return await at.pause(session_id, request_id=once)

    return "SESSION_STATE_CONFLICT", call, lambda: _start_again(case, session_id)


async def stop_session(case: Case) -> tuple[str, Any, Any]:
    session_id = await case.session()
    await case.roost.one.end(session_id)

    async def call(at: Replica, once: str) -> Any:
        return await at.stop(session_id, request_id=once)

    return "SESSION_STATE_CONFLICT", call, lambda: _start_again(case, session_id)


async def resume_session(case: Case) -> tuple[str, Any, Any]:
    session_id = await case.session()
    await case.roost.one.end(session_id)

    async def call(at: Replica, once: str) -> Any:
        return await at.resume(session_id, request_id=once)

    return "SESSION_STATE_CONFLICT", call, lambda: case.roost.one.undelete(session_id)


async def undelete_session(case: Case) -> tuple[str, Any, Any]:
    session_id = await case.session()
    await case.roost.one.end(session_id)
    other = (await case.roost.one.start()).session.session_id

    async def call(at: Replica, once: str) -> Any:
        return await at.undelete(session_id, request_id=once)

    return "LIVE_SESSION_EXISTS", call, lambda: case.roost.one.end(other)


#: Each prepares a failing call: its reason, the call, and a function that removes the cause.
PREPARATIONS = (
    create_checkpoint,
    restore_checkpoint,
    fork_session,
    pin_checkpoint,
    delete_missing_checkpoint,
    delete_pinned_checkpoint,
    pause_session,
    stop_session,
    resume_session,
    undelete_session,
)
CASES = [pytest.param(prepare, id=prepare.__name__) for prepare in PREPARATIONS]


@pytest.mark.parametrize("prepare", CASES)
async def test_a_final_error_is_repeated_after_its_cause_is_gone(
    roost: World,
    database_url: str,
    prepare: Callable[[Case], Awaitable[tuple[str, Any, Any]]],
) -> None:
    """At both replicas; a new request id shows that the cause is gone. Any: calls of all kinds."""
    reason, call, mend = await prepare(Case(roost, database_url))
    once = request_id()
    assert (await failing(call(roost.one, once))).reason == reason
    await mend()
    for replica in roost.replicas:
        assert (await failing(call(replica, once))).reason == reason
    await call(roost.two, request_id())
