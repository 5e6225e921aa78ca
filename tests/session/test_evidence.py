"""What survived, and what is only thought to: rules 7 and 9."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from roost.session.v1 import session_pb2 as pb
from tests.container.harness import failing
from tests.session.harness import request_id, spec

if TYPE_CHECKING:
    from tests.session.harness import World

FILES = {"COUNTER_FILE": "count"}


async def test_a_dropped_snapshot_is_told_as_files_only(roost: World) -> None:
    """The provider boots it cold without a word: the boot id gives it away."""
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
    """It may well be there; nobody claims it."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("exec_fails", times=None)
    again = await roost.one.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, False)


async def test_a_boot_id_that_is_first_read_later_proves_no_loss(forgetful: World) -> None:
    """The guest did not answer as it was created: what it says now has nothing to differ from."""
    await forgetful.admin.set_fault("exec_fails")
    session = (await forgetful.one.start()).session
    await forgetful.click_twice(session)
    for replica in forgetful.replicas:
        strict = await failing(replica.start(min_continuity=pb.CONTINUITY_MEMORY))
        assert strict.reason == "CONTINUITY_UNAVAILABLE", "a look alone proves nothing"
    first = await forgetful.two.start()
    assert first.outcome == pb.START_OUTCOME_REUSED
    assert (first.continuity, first.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, False)
    then = await forgetful.one.start()
    assert (then.continuity, then.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert await forgetful.counter(session) == "2"


async def test_memory_lost_where_it_was_asked_for_is_refused_and_told_next_time(
    roost: World,
) -> None:
    """CONTINUITY_UNAVAILABLE: files kept, nothing created, the next answer tells the loss."""
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
    strict = await failing(roost.two.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert strict.reason == "CONTINUITY_UNAVAILABLE", "still nothing that could be memory"
    told = await roost.one.start()
    assert (told.outcome, told.continuity) == (
        pb.START_OUTCOME_REUSED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert await roost.counter(session) == "2"
    after = await roost.one.start(min_continuity=pb.CONTINUITY_MEMORY)
    assert after.continuity == pb.CONTINUITY_MEMORY, "told once, it is the new normal"
    assert await roost.committed("create") == 1


async def test_unproved_memory_where_it_was_asked_for_can_be_retried(roost: World) -> None:
    """The proof failed, not the memory: the same call goes through once the guest answers."""
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


async def test_a_machine_that_restarted_by_itself_is_proved_again(forgetful: World) -> None:
    """A newer start event: the next start says that memory is gone, once."""
    session = (await forgetful.one.start(spec=spec(env=FILES))).session
    await forgetful.click_twice(session)
    assert (await forgetful.one.start()).continuity == pb.CONTINUITY_MEMORY
    await forgetful.crash(session)
    told = await forgetful.one.start()
    assert told.outcome == pb.START_OUTCOME_REUSED
    assert (told.continuity, told.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, True)
    assert (await forgetful.two.start()).continuity == pb.CONTINUITY_MEMORY
    assert await forgetful.counter(session) == "2"


async def test_a_look_costs_one_get_and_an_exec_only_after_a_new_start_event(
    forgetful: World,
) -> None:
    """Provider calls of a start that has to look."""
    await forgetful.one.start()
    await forgetful.one.start()
    await forgetful.calls()
    await forgetful.one.start()
    assert await forgetful.calls() == ["get"]


async def test_a_vanished_container_is_lost_only_after_two_reads_and_a_listing(
    forgetful: World,
) -> None:
    """Rule 7; the user is told that nothing survived, and the session stays the same."""
    session = (await forgetful.one.start()).session
    machine = session.container.container_id
    await forgetful.admin.set_fault("machine_vanished", machine=machine)
    await forgetful.calls()
    again = await forgetful.one.start()
    assert (await forgetful.calls())[:4] == ["get", "get", "list", "create"]
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE)
    assert again.session.session_id == session.session_id
    assert again.session.generation == 2
    assert again.session.container.container_id != machine


async def test_a_container_lost_while_it_rested_is_created_anew_and_named(roost: World) -> None:
    """The ladder goes down a rung, and the attempts say why."""
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


async def test_a_new_container_that_vanishes_is_made_once_more(roost: World) -> None:
    """Nothing of the user's was lost: the next generation is created in the same call."""
    await roost.admin.set_fault("machine_vanished", action="wait")
    answer = await roost.one.start()
    assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_CREATED, 2)
    assert [a.reason for a in answer.attempts] == ["CONTAINER_LOST", "CREATED"]
    assert not answer.session.conditions
    assert await roost.counter(answer.session) == "0"


async def test_a_lost_container_is_not_replaced_where_something_had_to_survive(
    roost: World,
) -> None:
    """CONTINUITY_UNAVAILABLE, and nothing is created until somebody asks for less."""
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


async def test_an_outage_locks_nobody_out_and_nothing_is_duplicated(forgetful: World) -> None:
    """Fly's API down beyond the freshness window: running sessions go on, new ones can retry."""
    session = (await forgetful.one.start()).session
    await forgetful.click_twice(session)
    resting = (await forgetful.one.start("robin")).session
    await forgetful.one.stop(resting.session_id)
    await forgetful.admin.set_fault("unavailable", times=None)
    for replica in forgetful.replicas:
        answer = await replica.start()
        assert answer.outcome == pb.START_OUTCOME_REUSED
        assert not answer.continuity_verified
        assert answer.continuity < pb.CONTINUITY_MEMORY
        kinds = [condition.type for condition in answer.session.conditions]
        assert kinds == [pb.CONDITION_TYPE_PROVIDER_UNREACHABLE]
    once = request_id()
    fresh = await failing(forgetful.one.start("finch", request_id=once))
    paused = await failing(forgetful.one.start("robin"))
    for failure in (fresh, paused):
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.UNAVAILABLE,
            "PROVIDER_UNAVAILABLE",
        )
        assert failure.retry_seconds
    await forgetful.admin.clear_faults()
    assert (await forgetful.one.start()).continuity == pb.CONTINUITY_MEMORY
    assert (await forgetful.two.start("finch", request_id=once)).outcome == (
        pb.START_OUTCOME_CREATED
    )
    back = await forgetful.two.start("robin")
    assert (back.outcome, back.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await forgetful.committed("create") == 3
    assert await forgetful.counter(session) == "2"


async def test_what_the_proxy_suspended_is_followed(forgetful: World) -> None:
    """The session was thought to run; it is found suspended and resumed, with its memory."""
    session = (await forgetful.one.start()).session
    await forgetful.click_twice(session)
    await forgetful.suspend_behind_our_back(session)
    again = await forgetful.one.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await forgetful.counter(session) == "2"


async def test_a_destroyed_container_is_lost_at_once(forgetful: World) -> None:
    """PRESENT(destroyed) needs no second read."""
    session = (await forgetful.one.start()).session
    await forgetful.destroy_behind_our_back(session)
    await forgetful.calls()
    again = await forgetful.one.start()
    assert again.outcome == pb.START_OUTCOME_CREATED
    assert "list" not in await forgetful.calls()
    assert again.session.generation == 2
