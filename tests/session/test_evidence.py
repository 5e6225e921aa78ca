"""Evidence of losses and of continuity: rules 7 and 9."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from roost.session.v1 import session_pb2 as pb
from tests.container.harness import failing
from tests.session.harness import request_id, spec

if TYPE_CHECKING:
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

FILES = {"COUNTER_FILE": "count"}


async def test_a_dropped_snapshot_is_reported_as_files_only(roost: World) -> None:
    """The provider reports no error and boots the machine cold; only the boot id shows it."""
    session = (await roost.one.start(spec=spec(env=FILES))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    again = await roost.one.start()
    assert again.outcome == pb.START_OUTCOME_RESTARTED
    assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, True)
    (attempt,) = again.attempts
    assert (attempt.rung, attempt.result) == (pb.RUNG_RESUME, pb.ATTEMPT_RESULT_DEGRADED)
    assert attempt.reason == "BOOT_ID_CHANGED"
    assert [c.type for c in again.session.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    assert await roost.counter(session) == "2"


async def test_a_guest_that_does_not_answer_leaves_memory_unproved(roost: World) -> None:
    """The memory may have survived, but the answer claims files only, unverified."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("exec_fails", times=None)
    again = await roost.one.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, False)


@pytest.mark.replicas(2)
async def test_a_boot_id_that_is_first_read_later_proves_no_loss(always_probing: World) -> None:
    """The guest did not answer at its creation, so there is no earlier boot id to compare with."""
    await always_probing.admin.set_fault("exec_fails")
    session = (await always_probing.one.start()).session
    await always_probing.click_twice(session)
    for replica in always_probing.replicas:
        strict = await failing(replica.start(min_continuity=pb.CONTINUITY_MEMORY))
        assert strict.reason == "CONTINUITY_UNAVAILABLE", "a first boot id proves no memory"
    first = await always_probing.two.start()
    assert first.outcome == pb.START_OUTCOME_REUSED
    assert (first.continuity, first.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, False)
    then = await always_probing.one.start()
    assert (then.continuity, then.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await always_probing.counter(session) == "2"


async def test_a_refusal_does_not_claim_the_files_of_an_ephemeral_root(roost: World) -> None:
    session = (await roost.one.start(spec=spec(ephemeral_root_filesystem=True))).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    failure = await failing(roost.one.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    assert "min_continuity NONE or less" in failure.message


@pytest.mark.replicas(2)
async def test_a_start_that_requires_lost_memory_fails_and_the_next_reports_the_loss(
    roost: World,
) -> None:
    """CONTINUITY_UNAVAILABLE: files are kept and no container is created."""
    session = (await roost.one.start(spec=spec(env=FILES))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    once = request_id()
    for replica in roost.replicas:
        start = replica.start(request_id=once, min_continuity=pb.CONTINUITY_MEMORY)
        failure = await failing(start)
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "CONTINUITY_UNAVAILABLE",
        )
        # What is left of this session, and not what others keep.
        assert "min_continuity FILESYSTEM or less" in failure.message
    strict = await failing(roost.two.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert strict.reason == "CONTINUITY_UNAVAILABLE", "the memory is still lost"
    answer = await roost.one.start()
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_REUSED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert await roost.counter(session) == "2"
    after = await roost.one.start(min_continuity=pb.CONTINUITY_MEMORY)
    assert after.continuity == pb.CONTINUITY_MEMORY, "a loss is reported once"
    assert await roost.committed("create") == 1


@pytest.mark.replicas(2)
async def test_a_start_that_requires_unproved_memory_can_be_retried(roost: World) -> None:
    """The boot id could not be read: the same call succeeds once the guest answers."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("exec_fails", times=1)
    once = request_id()
    start = roost.one.start(request_id=once, min_continuity=pb.CONTINUITY_MEMORY)
    assert (await failing(start)).reason == "PROVIDER_UNAVAILABLE"
    again = await roost.two.start(request_id=once, min_continuity=pb.CONTINUITY_MEMORY)
    assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await roost.counter(session) == "2"


@pytest.mark.replicas(2)
async def test_a_machine_that_restarted_by_itself_is_proved_again(always_probing: World) -> None:
    """The provider has a newer start event: one start reports that memory is lost."""
    session = (await always_probing.one.start(spec=spec(env=FILES))).session
    await always_probing.click_twice(session)
    assert (await always_probing.one.start()).continuity == pb.CONTINUITY_MEMORY
    await always_probing.crash(session)
    answer = await always_probing.one.start()
    assert answer.outcome == pb.START_OUTCOME_REUSED
    assert (answer.continuity, answer.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, True)
    assert (await always_probing.two.start()).continuity == pb.CONTINUITY_MEMORY
    assert await always_probing.counter(session) == "2"


async def test_a_probe_costs_one_get_and_an_exec_only_after_a_new_start_event(
    always_probing: World,
) -> None:
    """The provider calls of a start of an ACTIVE session outside the freshness window."""
    await always_probing.one.start()
    await always_probing.one.start()
    await always_probing.calls()
    await always_probing.one.start()
    assert await always_probing.calls() == ["get"]


async def test_a_vanished_container_is_lost_only_after_two_reads_and_a_listing(
    always_probing: World,
) -> None:
    """Rule 7. The answer reports that nothing survived; the session stays the same."""
    session = (await always_probing.one.start()).session
    machine = session.container.container_id
    await always_probing.admin.set_fault("machine_vanished", machine=machine)
    await always_probing.calls()
    again = await always_probing.one.start()
    assert (await always_probing.calls())[:4] == ["get", "get", "list", "create"]
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE)
    assert again.session.session_id == session.session_id
    assert again.session.generation == 2
    assert again.session.container.container_id != machine


async def test_a_container_lost_while_paused_is_recreated_and_reported(roost: World) -> None:
    """The ladder goes down one rung, and the attempts show the reason."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    machine = session.container.container_id
    await roost.admin.set_fault("machine_vanished", machine=machine)
    again = await roost.one.start()
    assert again.outcome == pb.START_OUTCOME_CREATED
    assert [(a.rung, a.result, a.reason) for a in again.attempts] == [
        (pb.RUNG_RESUME, pb.ATTEMPT_RESULT_FAILED, "CONTAINER_LOST"),
        (pb.RUNG_CREATE, pb.ATTEMPT_RESULT_SUCCEEDED, "CREATED"),
    ]
    assert [c.type for c in again.session.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert again.session.generation == 2


async def test_a_new_container_that_vanishes_is_created_again(roost: World) -> None:
    """No state was lost, so the same call creates the next generation."""
    await roost.admin.set_fault("machine_vanished", action="wait")
    answer = await roost.one.start()
    assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_CREATED, 2)
    assert [a.reason for a in answer.attempts] == ["CONTAINER_LOST", "CREATED"]
    assert not answer.session.conditions
    assert await roost.counter(answer.session) == "0"


@pytest.mark.replicas(2)
async def test_a_lost_container_is_not_replaced_if_the_start_requires_continuity(
    roost: World,
) -> None:
    """CONTINUITY_UNAVAILABLE; a container is created only for a start that requires less."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("machine_vanished", machine=session.container.container_id)
    failure = await failing(roost.one.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    assert await roost.committed("create") == 1
    shown = await roost.one.get(session.session_id)
    assert shown.state == pb.Session.STATE_PAUSED
    assert shown.expected_continuity == pb.CONTINUITY_NONE
    assert [c.type for c in shown.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    again = await roost.two.start()
    assert (again.outcome, again.session.generation) == (pb.START_OUTCOME_CREATED, 2)


@pytest.mark.replicas(2)
async def test_an_outage_blocks_no_running_session_and_duplicates_none(
    always_probing: World,
) -> None:
    """Fly's API is down past the freshness window: running sessions are reused, others retry."""
    session = (await always_probing.one.start()).session
    await always_probing.click_twice(session)
    paused_session = (await always_probing.one.start("robin")).session
    await always_probing.one.stop(paused_session.session_id)
    await always_probing.admin.set_fault("unavailable", times=None)
    for replica in always_probing.replicas:
        answer = await replica.start()
        assert answer.outcome == pb.START_OUTCOME_REUSED
        assert not answer.continuity_verified
        assert answer.continuity < pb.CONTINUITY_MEMORY
        kinds = [condition.type for condition in answer.session.conditions]
        assert kinds == [pb.CONDITION_TYPE_PROVIDER_UNREACHABLE]
    once = request_id()
    fresh = await failing(always_probing.one.start("finch", request_id=once))
    paused = await failing(always_probing.one.start("robin"))
    for failure in (fresh, paused):
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "PROVIDER_UNAVAILABLE",
        )
        assert failure.retry_seconds
    await always_probing.admin.clear_faults()
    assert (await always_probing.one.start()).continuity == pb.CONTINUITY_MEMORY
    assert (await always_probing.two.start("finch", request_id=once)).outcome == (
        pb.START_OUTCOME_CREATED
    )
    back = await always_probing.two.start("robin")
    assert (back.outcome, back.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await always_probing.committed("create") == 3
    assert await always_probing.counter(session) == "2"


async def test_a_session_that_the_proxy_suspended_is_resumed(always_probing: World) -> None:
    """Its row says ACTIVE; the probe finds it suspended, and the start resumes its memory."""
    session = (await always_probing.one.start()).session
    await always_probing.click_twice(session)
    await always_probing.suspend_behind_our_back(session)
    again = await always_probing.one.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await always_probing.counter(session) == "2"


async def test_a_destroyed_container_is_lost_at_once(always_probing: World) -> None:
    """A read that shows the machine as destroyed needs no second read."""
    session = (await always_probing.one.start()).session
    await always_probing.destroy_behind_our_back(session)
    await always_probing.calls()
    again = await always_probing.one.start()
    assert again.outcome == pb.START_OUTCOME_CREATED
    assert "list" not in await always_probing.calls()
    assert again.session.generation == 2
