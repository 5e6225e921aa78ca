"""Regression tests: blocked keys, retry loops, false claims of continuity, wrong evidence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc.aio
import psycopg
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import TOKEN, failing
from tests.eventually import eventually
from tests.session.harness import (
    IMAGE,
    TIMEOUT,
    key,
    replica,
    request_id,
    session_config,
    spec,
    world,
)

if TYPE_CHECKING:
    from local.fly.emulator import Emulator
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

FILES = {"COUNTER_FILE": "count"}
#: An image that runs but listens on no port: its preview never answers.
SILENT = container_pb.ContainerSpec(image="roost/base")
#: The start budget where a start must use it up. The starts that must succeed are far from it.
QUICK = timedelta(seconds=6)


async def rows(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run a statement on a connection of its own; return its rows. Any: every type."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []


async def alive(roost: World) -> list[str]:
    """The names of the provider's machines that are not destroyed."""
    url = f"{roost.emulator.api_url}/v1/apps/birds/machines"
    answer = await roost.http.get(url, headers={"authorization": f"Bearer {TOKEN}"})
    return [made["name"] for made in answer.json() if made["state"] != "destroyed"]


async def stuck_session(roost: World) -> pb.Session:
    """Start a session that cannot come up: its preview never answers."""
    failure = await failing(roost.one.start(spec=SILENT))
    assert failure.reason == "PROVIDER_UNAVAILABLE"
    return await roost.until_live("wren")


async def test_a_failed_first_start_does_not_block_its_key(
    emulator: Emulator, database_url: str
) -> None:
    """A start with another spec replaces it at once, and its machine is destroyed."""
    async with world(emulator, database_url, start_budget=QUICK) as roost:
        stuck = await stuck_session(roost)
        answer = await roost.two.start(spec=spec())
        assert answer.outcome == pb.START_OUTCOME_CREATED
        assert answer.session.session_id != stuck.session_id

        async def gone() -> bool:
            return await alive(roost) == [f"roost-{answer.session.session_id}-1"]

        await eventually(gone)
        assert (await roost.one.get(stuck.session_id)).state == pb.Session.STATE_ENDED


@pytest.mark.replicas(2)
async def test_an_image_that_cannot_start_fails_at_once(roost: World) -> None:
    """It does not use the whole budget and the error is final; no machine is left."""
    once = request_id()
    bad = container_pb.ContainerSpec(image="no-such-image")
    for replica_ in roost.replicas:
        failure = await failing(replica_.start(request_id=once, spec=bad))
        assert (failure.code, failure.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "PROVIDER_REFUSED",
        )
        assert "spec.image" in failure.message

    async def gone() -> bool:
        return await alive(roost) == []

    await eventually(gone)
    assert (await roost.one.start()).outcome == pb.START_OUTCOME_CREATED


async def test_a_failed_first_start_can_be_ended(emulator: Emulator, database_url: str) -> None:
    """EndSession is legal from every state; no machine is left."""
    async with world(emulator, database_url, start_budget=QUICK) as roost:
        stuck = await stuck_session(roost)
        ended = await roost.two.end(stuck.session_id)
        assert ended.state == pb.Session.STATE_ENDED
        assert await alive(roost) == []


async def test_a_pause_that_cannot_be_finished_fails_once_without_a_retry_loop(
    emulator: Emulator, database_url: str
) -> None:
    """UNAVAILABLE after one attempt, not repeated takeovers while the caller waits."""
    async with world(emulator, database_url) as roost:
        session = (await roost.one.start()).session
        nowhere = session_config(database_url, "127.0.0.1:1", emulator.proxy_url)
        async with replica(nowhere) as alone:
            assert (await failing(alone.stop(session.session_id))).retry_seconds
            failure = await failing(alone.start())
            assert failure.reason == "PROVIDER_UNAVAILABLE"
        ((epoch,),) = await rows(database_url, "SELECT epoch FROM sessions")
        assert epoch < 12
        assert (await roost.one.start()).session.session_id == session.session_id


async def test_an_unexpected_exception_in_a_transition_is_answered_once(
    roost: World, database_url: str
) -> None:
    """A malformed row makes the worker raise: the caller gets UNAVAILABLE, without a retry loop."""
    session = (await roost.one.start(spec=spec())).session
    await roost.one.stop(session.session_id)
    # A start without a spec does not compare specs, so the decision does not read this one.
    await rows(database_url, "UPDATE sessions SET spec = '[]'")
    failure = await failing(roost.one.start())
    assert failure.reason == "PROVIDER_UNAVAILABLE"
    ((epoch,),) = await rows(database_url, "SELECT epoch FROM sessions")
    assert epoch < 12


async def test_evidence_about_one_container_is_not_used_against_another(
    emulator: Emulator, database_url: str
) -> None:
    """A slow probe finds generation 1 lost after generation 2 was created and is in use."""
    async with world(emulator, database_url, freshness_window=timedelta(seconds=0.3)) as roost:
        session = (await roost.one.start()).session
        await roost.destroy_behind_our_back(session)
        await rows(database_url, "UPDATE sessions SET verified_at = NULL")
        await roost.admin.set_fault("slow_after", action="get", delay_ms=1500)
        slow = asyncio.create_task(roost.two.start())

        async def probing() -> bool:
            return any(fault.fired for fault in await roost.admin.faults())

        await eventually(probing)
        quick = await roost.one.start()
        assert quick.session.generation == 2
        await roost.click_twice(quick.session)
        assert (await slow).session.generation == 2
        assert await roost.counter(quick.session) == "2"
        assert await roost.committed("create") == 2


async def test_an_end_destroys_the_machine_of_a_create_without_an_answer(
    emulator: Emulator, database_url: str
) -> None:
    """The create's answer was lost: its machine is found by its labels and destroyed."""
    async with world(emulator, database_url, start_budget=QUICK) as roost:
        session = (await roost.one.start()).session
        await roost.one.stop(session.session_id)
        await roost.destroy_behind_our_back(session)
        await roost.admin.set_fault("slow_after", action="create", delay_ms=30_000)
        await roost.admin.set_fault("server_error", action="list", times=None)
        assert (await failing(roost.one.start())).retry_seconds
        await roost.admin.clear_faults()
        assert len(await alive(roost)) == 1
        ended = await roost.one.end(session.session_id, now=True)
        assert ended.state == pb.Session.STATE_ENDED
        assert await alive(roost) == []


async def test_a_loss_that_was_not_reported_is_reported_after_a_pause(roost: World) -> None:
    """A start that required the lost memory failed. After a pause the next start reports files."""
    session = (await roost.one.start(spec=spec(env=FILES))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.reason == "CONTINUITY_UNAVAILABLE"
    await roost.one.stop(session.session_id)
    answer = await roost.one.start()
    assert (answer.outcome, answer.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_an_empty_boot_id_proves_nothing(always_probing: World) -> None:
    """A guest whose `cat` prints nothing: no answer claims MEMORY, also after a crash."""
    await always_probing.admin.set_fault("exec_fails", times=None, exit_code=0)
    session = (await always_probing.one.start()).session
    assert (await always_probing.one.start()).continuity < pb.CONTINUITY_MEMORY
    await always_probing.crash(session)
    assert (await always_probing.one.start()).continuity < pb.CONTINUITY_MEMORY


async def test_a_reuse_without_a_boot_id_claims_no_memory(roost: World) -> None:
    """Also within the freshness window, where the start does not probe."""
    await roost.admin.set_fault("exec_fails", times=None)
    await roost.one.start()
    answer = await roost.one.start()
    assert (answer.outcome, answer.continuity_verified) == (pb.START_OUTCOME_REUSED, False)
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.reason == "CONTINUITY_UNAVAILABLE"


async def test_only_the_generation_that_was_lost_is_written_off(
    emulator: Emulator, database_url: str
) -> None:
    """Generation 2 was created but its wait failed: the next start continues with it."""
    async with world(emulator, database_url, start_budget=timedelta(seconds=8)) as roost:
        session = (await roost.one.start()).session
        await roost.one.stop(session.session_id)
        await roost.destroy_behind_our_back(session)
        await roost.admin.set_fault("server_error", action="wait", times=None)
        assert (await failing(roost.one.start())).retry_seconds
        shown = await roost.one.get(session.session_id)
        assert shown.expected_continuity == pb.CONTINUITY_NONE
        refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
        assert refused.reason == "CONTINUITY_UNAVAILABLE"
        await roost.admin.clear_faults()
        answer = await roost.one.start()
        assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_CREATED, 2)
        assert await roost.committed("create") == 2


async def test_an_end_suspends_a_machine_that_traffic_woke(roost: World) -> None:
    """The row says SUSPENDED, but the proxy started the machine."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.counter(session)
    ended = await roost.one.end(session.session_id)
    assert ended.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
    assert await roost.provider_state(session) == "suspended"


async def test_a_machine_that_came_up_without_proof_of_memory_is_suspended_again(
    roost: World,
) -> None:
    """The start required memory that could not be proved. A PAUSED session must not run on."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("exec_fails", times=1)
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.retry_seconds
    await roost.until_state(session.session_id, pb.Session.STATE_PAUSED)
    assert await roost.provider_state(session) == "suspended"


async def test_an_undeleted_session_whose_machine_runs_can_be_stopped(roost: World) -> None:
    """Its pause depth is unspecified, since no suspend was observed; a stop suspends it."""
    session = (await roost.one.start()).session
    await roost.admin.set_fault("suspend_fails")
    ended = await roost.one.end(session.session_id)
    kinds = [condition.type for condition in ended.conditions]
    assert kinds == [pb.CONDITION_TYPE_SUSPEND_FAILED_STILL_RUNNING]
    back = await roost.one.undelete(session.session_id)
    assert back.pause_depth == pb.PAUSE_DEPTH_UNSPECIFIED
    stopped = await roost.one.stop(session.session_id)
    assert stopped.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
    assert await roost.provider_state(session) == "suspended"


@pytest.mark.replicas(2)
async def test_a_joiner_does_not_fail_for_its_leaders_min_continuity(roost: World) -> None:
    """The leader required memory and fails; the joiner required nothing."""
    session = (await roost.one.start(spec=spec(env=FILES))).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    await roost.admin.set_fault("slow_before", action="start", delay_ms=3000)
    leader = asyncio.create_task(failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY)))
    await roost.until_state(session.session_id, pb.Session.STATE_STARTING)
    joiner = await roost.two.start()
    assert joiner.session.state == pb.Session.STATE_ACTIVE
    assert joiner.continuity == pb.CONTINUITY_FILESYSTEM
    assert (await leader).reason == "CONTINUITY_UNAVAILABLE"


@pytest.mark.replicas(2)
async def test_fresh_does_not_join_a_fresh_with_another_port(roost: World) -> None:
    """The whole spec is compared, not only the fields that a running container cannot adopt."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=300)
    one = spec(services=[container_pb.ServicePort(internal_port=8080)])
    two = spec(services=[container_pb.ServicePort(internal_port=9999)])
    first = asyncio.create_task(roost.one.start(mode=pb.START_MODE_FRESH, spec=one))
    await roost.until_live("wren")
    second = await roost.two.start(mode=pb.START_MODE_FRESH, spec=two)
    assert not second.joined
    assert (await first).session.session_id != second.session.session_id


@pytest.mark.replicas(2)
async def test_an_end_whose_owner_died_without_a_decision_is_taken_over(
    roost: World, database_url: str
) -> None:
    """A FRESH start's commit leaves its predecessor so; then the owner was killed."""
    session = (await roost.one.start()).session
    await rows(
        database_url,
        "UPDATE sessions SET state = 'ENDING', transition = 'END', prior_state = 'ACTIVE',"
        " epoch = epoch + 1, decision_id = NULL, owner = %s, end_reason = 'REPLACED',"
        " lease_until = now() + interval '1 s', deadline = now() + interval '100 s'",
        uuid4(),
    )
    ended = await roost.two.end(session.session_id)
    assert ended.state == pb.Session.STATE_ENDED
    assert await roost.provider_state(session) == "suspended"


async def test_a_deeper_pause_that_is_taken_over_reaches_the_requested_depth(
    roost: World, database_url: str
) -> None:
    """From suspended to stopped: finding it suspended must not finish the transition."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await rows(
        database_url,
        "UPDATE sessions SET state = 'PAUSING', transition = 'PAUSE', prior_state = 'PAUSED',"
        " pause_depth = 'STOPPED', epoch = epoch + 1, owner = %s, lease_until = now(),"
        " deadline = now() + interval '100 s'",
        uuid4(),
    )
    assert await roost.one.running.work.take_over_session(UUID(session.session_id))
    shown = await roost.one.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (
        pb.Session.STATE_PAUSED,
        pb.PAUSE_DEPTH_STOPPED,
    )
    assert not await roost.one.running.work.take_over_session(UUID(session.session_id))


@pytest.mark.replicas(2)
async def test_the_retry_delay_is_the_providers(roost: World) -> None:
    """Joiners have it too: they read it from the leader's decision."""
    await roost.admin.set_fault("capacity", action="create", times=None)
    calls = [failing(roost.replicas[n % 2].start(request_id=request_id())) for n in range(4)]
    failures = await asyncio.gather(*calls)
    assert {failure.retry_seconds for failure in failures} == {5.0}


async def test_a_preview_that_probes_records_nothing(always_probing: World) -> None:
    """No row changes, also if the machine restarted by itself."""
    session = (await always_probing.one.start()).session
    await always_probing.one.start()
    await always_probing.crash(session)
    before = await always_probing.one.get(session.session_id)
    start = rpc_pb.StartSessionRequest(key=key())
    request = rpc_pb.PreviewStartRequest(start=start)
    preview = await always_probing.one.stub.PreviewStart(request, timeout=TIMEOUT)
    assert preview.expected_continuity == pb.CONTINUITY_FILESYSTEM
    assert (await always_probing.one.get(session.session_id)) == before
    assert (await always_probing.one.start()).continuity == pb.CONTINUITY_FILESYSTEM


@pytest.mark.replicas(2)
async def test_a_failed_resume_is_recorded(roost: World) -> None:
    """A final error is replayed for its request id, even if the session has changed since."""
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id)
    once = request_id()
    first = await failing(roost.one.resume(session.session_id, request_id=once))
    await roost.one.undelete(session.session_id)
    again = await failing(roost.two.resume(session.session_id, request_id=once))
    assert first.reason == again.reason == "SESSION_STATE_CONFLICT"


async def test_an_unsupported_suspend_releases_the_machine_lease(
    emulator: Emulator, database_url: str
) -> None:
    """The next call that needs the lease does not wait for it to expire."""
    async with world(emulator, database_url, lease=timedelta(seconds=60)) as roost:
        session = (await roost.one.start()).session
        await roost.admin.set_fault(
            "server_error",
            action="suspend",
            status=412,
            body='{"error": "failed_precondition: cannot suspend"}',
        )
        failure = await failing(roost.one.pause(session.session_id))
        assert failure.reason == "SUSPEND_UNSUPPORTED"
        assert (await roost.one.get(session.session_id)).state == pb.Session.STATE_ACTIVE
        stopped = await roost.one.pause(session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
        assert stopped.pause_depth == pb.PAUSE_DEPTH_STOPPED


async def test_a_standby_that_cannot_write_is_unavailable(roost: World, database_url: str) -> None:
    """During a failover calls are UNAVAILABLE, not INTERNAL, and succeed after it."""
    await roost.one.start()
    name = database_url.rsplit("/", 1)[1]
    setting = f"ALTER DATABASE {name} SET default_transaction_read_only ="
    await rows(database_url, f"{setting} on")
    await _cut(database_url)
    codes = {await _code(roost) for _ in range(6)}
    assert codes == {grpc.StatusCode.UNAVAILABLE}
    await rows(f"{database_url}?options=-cdefault_transaction_read_only%3Doff", f"{setting} off")
    await _cut(f"{database_url}?options=-cdefault_transaction_read_only%3Doff")

    async def healed() -> bool:
        return await _code(roost) is None

    await eventually(healed)


async def _cut(url: str) -> None:
    await rows(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


async def _code(roost: World) -> grpc.StatusCode | None:
    try:
        await roost.one.start()
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


async def test_a_machine_name_taken_with_another_spec_is_provider_refused(
    roost: World, database_url: str
) -> None:
    """Another client of the provider created a machine of that name; no traceback is logged."""
    await roost.admin.set_fault("capacity", action="create")
    assert (await failing(roost.one.start())).retry_seconds
    ((name,),) = await rows(database_url, "SELECT name FROM containers")
    made = await roost.http.post(
        f"{roost.emulator.api_url}/v1/apps/birds/machines",
        json={"name": name, "config": {"image": IMAGE, "metadata": {"roost_spec_hash": "x"}}},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    made.raise_for_status()
    assert (await failing(roost.one.start())).reason == "PROVIDER_REFUSED"
