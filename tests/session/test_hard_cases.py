"""Cases that were wrong once: wedges, spins, claims too many, evidence about something else."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc.aio
import psycopg

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import TOKEN, failing
from tests.eventually import eventually
from tests.session.harness import (
    IMAGE,
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

FILES = {"COUNTER_FILE": "count"}
#: An image that runs and listens nowhere: its preview never answers.
SILENT = container_pb.ContainerSpec(image="roost/base")
QUICK = timedelta(seconds=2)


async def rows(url: str, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """What the statement gives, past all code. Any: columns of every type."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute(statement, values)
        return await cursor.fetchall() if cursor.description else []


async def alive(roost: World) -> list[str]:
    """Names of the machines that the provider still has."""
    url = f"{roost.emulator.api_url}/v1/apps/birds/machines"
    answer = await roost.http.get(url, headers={"authorization": f"Bearer {TOKEN}"})
    return [made["name"] for made in answer.json() if made["state"] != "destroyed"]


async def wedged(roost: World) -> pb.Session:
    """A key whose first start cannot be finished: its preview never answers."""
    failure = await failing(roost.one.start(spec=SILENT))
    assert failure.reason == "PROVIDER_UNAVAILABLE"
    return await roost.until_live("wren")


async def test_a_bad_first_start_does_not_wedge_its_key(
    emulator: Emulator, database_url: str
) -> None:
    """Another spec takes its place at once, and what it made is destroyed."""
    async with world(emulator, database_url, start_budget=QUICK) as roost:
        stuck = await wedged(roost)
        answer = await roost.two.start(spec=spec())
        assert answer.outcome == pb.START_OUTCOME_CREATED
        assert answer.session.session_id != stuck.session_id

        async def gone() -> bool:
            return await alive(roost) == [f"roost-{answer.session.session_id}-1"]

        await eventually(gone)
        assert (await roost.one.get(stuck.session_id)).state == pb.Session.STATE_ENDED


async def test_an_image_that_cannot_start_is_refused_at_once(roost: World) -> None:
    """Not after the whole budget, and not as something to try again; nothing of it is left."""
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


async def test_a_bad_first_start_can_be_ended(emulator: Emulator, database_url: str) -> None:
    """EndSession is legal from every state, and nothing of it is left."""
    async with world(emulator, database_url, start_budget=QUICK) as roost:
        stuck = await wedged(roost)
        ended = await roost.two.end(stuck.session_id)
        assert ended.state == pb.Session.STATE_ENDED
        assert await alive(roost) == []


async def test_a_pause_that_cannot_be_finished_is_told_and_not_spun_on(
    emulator: Emulator, database_url: str
) -> None:
    """UNAVAILABLE after one try, not a thousand takeovers while a caller waits."""
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


async def test_a_fault_in_the_work_is_answered_once(roost: World, database_url: str) -> None:
    """A row that breaks the work: the caller hears UNAVAILABLE, and nobody repeats it in a loop."""
    session = (await roost.one.start(spec=spec())).session
    await roost.one.stop(session.session_id)
    # What was asked for by a start of its own is not compared with: deciding does not read it.
    await rows(database_url, "UPDATE sessions SET spec = '[]'")
    failure = await failing(roost.one.start())
    assert failure.reason == "PROVIDER_UNAVAILABLE"
    ((epoch,),) = await rows(database_url, "SELECT epoch FROM sessions")
    assert epoch < 12


async def test_evidence_about_one_container_is_not_used_against_another(
    emulator: Emulator, database_url: str
) -> None:
    """A slow look finds generation 1 lost, while generation 2 was created and is in use."""
    async with world(emulator, database_url, freshness_window=timedelta(seconds=0.3)) as roost:
        session = (await roost.one.start()).session
        await roost.destroy_behind_our_back(session)
        await rows(database_url, "UPDATE sessions SET verified_at = NULL")
        await roost.admin.set_fault("slow_after", action="get", delay_ms=1500)
        slow = asyncio.create_task(roost.two.start())

        async def looking() -> bool:
            return any(fault.fired for fault in await roost.admin.faults())

        await eventually(looking)
        quick = await roost.one.start()
        assert quick.session.generation == 2
        await roost.click_twice(quick.session)
        assert (await slow).session.generation == 2
        assert await roost.counter(quick.session) == "2"
        assert await roost.committed("create") == 2


async def test_an_end_looks_for_what_an_unknown_create_made(
    emulator: Emulator, database_url: str
) -> None:
    """The create's answer never came: its machine is found by its labels and destroyed."""
    async with world(emulator, database_url, start_budget=QUICK) as roost:
        session = (await roost.one.start()).session
        await roost.one.stop(session.session_id)
        await roost.destroy_behind_our_back(session)
        await roost.admin.set_fault("slow_after", action="create", delay_ms=4000)
        await roost.admin.set_fault("server_error", action="list", times=None)
        assert (await failing(roost.one.start())).retry_seconds
        await roost.admin.clear_faults()
        assert len(await alive(roost)) == 1
        ended = await roost.one.end(session.session_id, now=True)
        assert ended.state == pb.Session.STATE_ENDED
        assert await alive(roost) == []


async def test_a_loss_stays_untold_over_a_pause(roost: World) -> None:
    """Refused for lost memory, paused, resumed: the resume kept what was left, and says so."""
    session = (await roost.one.start(spec=spec(env=FILES))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.reason == "CONTINUITY_UNAVAILABLE"
    await roost.one.stop(session.session_id)
    told = await roost.one.start()
    assert (told.outcome, told.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert (await roost.one.start()).continuity == pb.CONTINUITY_MEMORY


async def test_an_empty_boot_id_proves_nothing(forgetful: World) -> None:
    """A guest whose `cat` prints nothing: never MEMORY, also after a crash."""
    await forgetful.admin.set_fault("exec_fails", times=None, exit_code=0)
    session = (await forgetful.one.start()).session
    assert (await forgetful.one.start()).continuity < pb.CONTINUITY_MEMORY
    await forgetful.crash(session)
    assert (await forgetful.one.start()).continuity < pb.CONTINUITY_MEMORY


async def test_a_reuse_without_a_boot_id_claims_no_memory(roost: World) -> None:
    """Also within the freshness window, on the hot path."""
    await roost.admin.set_fault("exec_fails", times=None)
    await roost.one.start()
    answer = await roost.one.start()
    assert (answer.outcome, answer.continuity_verified) == (pb.START_OUTCOME_REUSED, False)
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.reason == "CONTINUITY_UNAVAILABLE"


async def test_only_the_generation_that_was_lost_is_written_off(
    emulator: Emulator, database_url: str
) -> None:
    """The next one was created and could not be seen up: it is gone on with, not forgotten."""
    async with world(emulator, database_url, start_budget=timedelta(seconds=3)) as roost:
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


async def test_an_end_finds_awake_what_traffic_woke(roost: World) -> None:
    """The row says suspended, the proxy woke it: it is put to rest again."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.counter(session)
    ended = await roost.one.end(session.session_id)
    assert ended.pause_depth == pb.PAUSE_DEPTH_SUSPENDED
    assert await roost.provider_state(session) == "suspended"


async def test_what_came_up_in_vain_goes_back_to_rest(roost: World) -> None:
    """Memory could not be proved where it was asked for: nothing is left running as PAUSED."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("exec_fails", times=1)
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.retry_seconds
    await roost.until_state(session.session_id, pb.Session.STATE_PAUSED)
    assert await roost.provider_state(session) == "suspended"


async def test_an_undeleted_session_whose_machine_ran_on_can_be_put_to_rest(roost: World) -> None:
    """No depth is claimed that was not seen, and a stop does its work."""
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


async def test_a_joiner_is_not_refused_for_what_its_leader_asked(roost: World) -> None:
    """The leader asked for memory and is refused; the joiner asked for nothing."""
    session = (await roost.one.start(spec=spec(env=FILES))).session
    await roost.one.stop(session.session_id)
    await roost.admin.set_fault("snapshot_dropped")
    await roost.admin.set_fault("slow_before", action="start", delay_ms=500)
    leader = asyncio.create_task(failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY)))
    await roost.until_state(session.session_id, pb.Session.STATE_STARTING)
    joiner = await roost.two.start()
    assert joiner.session.state == pb.Session.STATE_ACTIVE
    assert joiner.continuity == pb.CONTINUITY_FILESYSTEM
    assert (await leader).reason == "CONTINUITY_UNAVAILABLE"


async def test_fresh_does_not_join_a_fresh_of_another_port(roost: World) -> None:
    """The whole spec counts, not only what a running container cannot follow."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=300)
    one = spec(services=[container_pb.ServicePort(internal_port=8080)])
    two = spec(services=[container_pb.ServicePort(internal_port=9999)])
    first = asyncio.create_task(roost.one.start(mode=pb.START_MODE_FRESH, spec=one))
    await roost.until_live("wren")
    second = await roost.two.start(mode=pb.START_MODE_FRESH, spec=two)
    assert not second.joined
    assert (await first).session.session_id != second.session.session_id


async def test_an_end_whose_owner_died_without_a_decision_is_taken_over(
    roost: World, database_url: str
) -> None:
    """What the commit of a FRESH start leaves of its predecessor, its owner killed a second on."""
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


async def test_a_deeper_pause_that_is_taken_over_goes_as_deep_as_was_asked(
    roost: World, database_url: str
) -> None:
    """From suspended to stopped: that it is suspended is not yet what was asked for."""
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


async def test_the_delay_to_retry_is_the_providers(roost: World) -> None:
    """Also for joiners, who read it from the leader's decision."""
    await roost.admin.set_fault("capacity", action="create", times=None)
    calls = [failing(roost.replicas[n % 2].start(request_id=request_id())) for n in range(4)]
    failures = await asyncio.gather(*calls)
    assert {failure.retry_seconds for failure in failures} == {5.0}


async def test_a_preview_that_looks_keeps_nothing_of_it(forgetful: World) -> None:
    """It changes nothing, also where a machine restarted by itself."""
    session = (await forgetful.one.start()).session
    await forgetful.one.start()
    await forgetful.crash(session)
    before = await forgetful.one.get(session.session_id)
    start = rpc_pb.StartSessionRequest(key=key())
    request = rpc_pb.PreviewStartRequest(start=start)
    preview = await forgetful.one.stub.PreviewStart(request, timeout=9)
    assert preview.expected_continuity == pb.CONTINUITY_FILESYSTEM
    assert (await forgetful.one.get(session.session_id)) == before
    assert (await forgetful.one.start()).continuity == pb.CONTINUITY_FILESYSTEM


async def test_a_refused_resume_is_recorded(roost: World) -> None:
    """A final refusal is the answer to its request id, whatever comes after."""
    session = (await roost.one.start()).session
    await roost.one.end(session.session_id)
    once = request_id()
    first = await failing(roost.one.resume(session.session_id, request_id=once))
    await roost.one.undelete(session.session_id)
    again = await failing(roost.two.resume(session.session_id, request_id=once))
    assert first.reason == again.reason == "SESSION_STATE_CONFLICT"


async def test_a_pause_that_is_unsupported_gives_the_lease_back(
    emulator: Emulator, database_url: str
) -> None:
    """The next call under a lease need not wait for the last one to run out."""
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
    """A failover in between: not INTERNAL, and it heals."""
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


async def test_a_name_with_another_spec_is_refused_in_plain_words(
    roost: World, database_url: str
) -> None:
    """Somebody made a machine of our name: PROVIDER_REFUSED, logged without a fault."""
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
