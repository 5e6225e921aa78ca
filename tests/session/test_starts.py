"""StartSession: its rung, the continuity that it claims, and its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from roost.container.v1 import container_service_pb2 as container_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from tests.container.harness import failing
from tests.session.harness import key, spec, world

if TYPE_CHECKING:
    from local.fly.emulator import Emulator
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED
ENDED = pb.Session.STATE_ENDED


async def test_the_first_start_creates_and_the_preview_answers(roost: World) -> None:
    """CREATED, with no continuity claimed, and the container's own labels and name."""
    answer = await roost.one.start()
    session = answer.session
    assert (answer.outcome, answer.continuity) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE)
    assert (session.state, session.generation, answer.joined) == (ACTIVE, 1, False)
    assert await roost.counter(session) == "0"
    made = next(a for a in await roost.admin.actions() if a.action == "create")
    assert made.name == f"roost-{session.session_id}-1"
    assert made.labels["roost_session"] == session.session_id
    assert made.labels["roost_generation"] == "1"
    assert len(made.labels["roost_installation"]) == 36


@pytest.mark.replicas(2)
async def test_a_second_start_reuses_without_any_provider_call(roost: World) -> None:
    """The hot path, also at another replica; memory is claimed because it was verified."""
    first = await roost.one.start()
    await roost.calls()
    second = await roost.two.start()
    assert second.outcome == pb.START_OUTCOME_REUSED
    assert (second.continuity, second.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert second.session.session_id == first.session.session_id
    assert second.session.start_count == first.session.start_count + 1
    assert await roost.calls() == []


@pytest.mark.replicas(2)
async def test_stop_and_start_keep_the_counter_at_two(roost: World) -> None:
    """The main promise: a counter at 2 is at 2 again, and memory is verified."""
    first = await roost.one.start()
    await roost.click_twice(first.session)
    stopped = await roost.two.stop(first.session.session_id)
    assert (stopped.state, stopped.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    assert stopped.expected_continuity == pb.CONTINUITY_MEMORY
    again = await roost.one.start()
    assert again.outcome == pb.START_OUTCOME_RESUMED
    assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_MEMORY, True)
    assert [(a.rung, a.reason) for a in again.attempts] == [(pb.RUNG_RESUME, "BOOT_ID_EQUAL")]
    assert await roost.counter(again.session) == "2"
    assert await roost.committed("create") == 1


async def test_a_stopped_session_restarts_with_its_files(roost: World) -> None:
    """Depth STOPPED: files are kept, memory is not, and the answer claims files only."""
    asked = spec(env={"COUNTER_FILE": "count"})
    first = await roost.one.start(spec=asked)
    await roost.click_twice(first.session)
    paused = await roost.one.pause(first.session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    assert paused.expected_continuity == pb.CONTINUITY_FILESYSTEM
    again = await roost.one.start()
    assert again.outcome == pb.START_OUTCOME_RESTARTED
    assert (again.continuity, again.continuity_verified) == (pb.CONTINUITY_FILESYSTEM, True)
    assert await roost.counter(again.session) == "2"


async def test_files_are_not_claimed_of_an_ephemeral_root_file_system(roost: World) -> None:
    """A container that loses its files at a stop restores nothing."""
    first = await roost.one.start(spec=spec(ephemeral_root_filesystem=True))
    await roost.one.pause(first.session.session_id, depth=pb.PAUSE_DEPTH_STOPPED)
    again = await roost.one.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESTARTED,
        pb.CONTINUITY_NONE,
    )


async def test_fresh_replaces_a_session_that_undelete_can_restore(roost: World) -> None:
    """The old machine is paused once the new one is up; undelete makes it usable again."""
    old = (await roost.one.start()).session
    await roost.click_twice(old)
    fresh = await roost.one.start(mode=pb.START_MODE_FRESH)
    assert fresh.outcome == pb.START_OUTCOME_CREATED
    assert fresh.session.session_id != old.session_id
    assert fresh.session.predecessor_session_id == old.session_id
    assert await roost.counter(fresh.session) == "0"
    ended = await roost.until_state(old.session_id, ENDED)
    assert ended.end_reason == pb.END_REASON_REPLACED
    failure = await failing(roost.one.undelete(old.session_id))
    assert (failure.code, failure.reason) == (
        grpc.StatusCode.ALREADY_EXISTS,
        "LIVE_SESSION_EXISTS",
    )
    await roost.one.end(fresh.session.session_id)
    assert (await roost.one.undelete(old.session_id)).state == PAUSED
    again = await roost.one.start()
    assert (again.outcome, again.session.session_id) == (
        pb.START_OUTCOME_RESUMED,
        old.session_id,
    )
    assert await roost.counter(again.session) == "2"
    assert not again.session.end_reason


async def test_a_failed_fresh_gives_the_old_session_back(roost: World) -> None:
    """The create fails and the user keeps the old session."""
    old = (await roost.one.start()).session
    await roost.click_twice(old)
    await roost.admin.set_fault("capacity", action="create", times=None)
    failure = await failing(roost.one.start(mode=pb.START_MODE_FRESH))
    assert failure.reason == "PROVIDER_CAPACITY"
    assert failure.retry_seconds
    again = await roost.one.start()
    assert (again.outcome, again.session.session_id) == (
        pb.START_OUTCOME_REUSED,
        old.session_id,
    )
    assert await roost.counter(again.session) == "2"


@pytest.mark.replicas(2)
async def test_fail_if_live_never_joins_and_never_replaces(roost: World) -> None:
    """Without a live session it creates one; with one it fails."""
    first = await roost.one.start(mode=pb.START_MODE_FAIL_IF_LIVE)
    assert first.outcome == pb.START_OUTCOME_CREATED
    failure = await failing(roost.two.start(mode=pb.START_MODE_FAIL_IF_LIVE))
    assert failure.reason == "LIVE_SESSION_EXISTS"


async def test_slots_are_sessions_of_their_own(roost: World) -> None:
    """Another slot is another key; the default slot has two spellings."""
    first = await roost.one.start()
    request = rpc_pb.StartSessionRequest(key=key(slot="other"))
    other = await roost.one.stub.StartSession(request, timeout=20)
    assert other.session.session_id != first.session.session_id
    request = rpc_pb.StartSessionRequest(key=key(slot="default"))
    same = await roost.one.stub.StartSession(request, timeout=20)
    assert same.session.session_id == first.session.session_id


async def test_a_changed_spec_is_reported_and_the_old_container_kept(roost: World) -> None:
    """A running container keeps its environment. The answer says that the specs differ."""
    first = await roost.one.start(spec=spec(env={"A": "1"}))
    second = await roost.one.start(spec=spec(env={"A": "2"}))
    kinds = [condition.type for condition in second.session.conditions]
    assert kinds == [pb.CONDITION_TYPE_FINGERPRINT_CHANGED]
    assert second.session.fingerprint == first.session.fingerprint
    same = await roost.one.start(spec=spec(env={"A": "1"}))
    assert not same.session.conditions


async def test_preview_predicts_and_changes_nothing(roost: World) -> None:
    """The outcome of a start before it is made: create, reuse, resume, reject."""

    async def preview(**fields: object) -> rpc_pb.PreviewStartResponse:
        start = rpc_pb.StartSessionRequest(key=key(), **fields)  # type: ignore[arg-type]  # any field
        request = rpc_pb.PreviewStartRequest(start=start)
        return await roost.one.stub.PreviewStart(request, timeout=20)

    before = await preview()
    assert (before.outcome, before.rule) == (pb.START_OUTCOME_CREATED, "NO_LIVE_SESSION")
    session = (await roost.one.start()).session
    running = await preview()
    assert (running.outcome, list(running.rungs)) == (pb.START_OUTCOME_REUSED, [pb.RUNG_LIVE])
    await roost.one.stop(session.session_id)
    paused = await preview()
    assert paused.outcome == pb.START_OUTCOME_RESUMED
    assert list(paused.rungs) == [pb.RUNG_RESUME, pb.RUNG_CREATE]
    assert paused.candidates[0].session_id == session.session_id
    assert paused.expected_continuity == pb.CONTINUITY_MEMORY
    rejected = await preview(mode=pb.START_MODE_FAIL_IF_LIVE)
    assert rejected.error_reason == "LIVE_SESSION_EXISTS"
    fresh = await preview(mode=pb.START_MODE_FRESH)
    assert fresh.outcome == pb.START_OUTCOME_CREATED
    assert (await roost.one.get(session.session_id)).state == PAUSED
    assert len(await roost.one.decisions(session.session_id)) == 2


async def test_every_call_leaves_a_decision_that_explains_it(roost: World) -> None:
    """It records the facts, the deciding rule and the attempted rungs."""
    session = (await roost.one.start()).session
    await roost.one.stop(session.session_id)
    await roost.one.start()
    newest, stop, first = await roost.one.decisions(session.session_id)
    assert (newest.method, newest.rule) == ("StartSession", "RESUME_FIRST")
    assert '"state": "PAUSED"' in newest.inputs_json
    assert newest.attempts[0].rung == pb.RUNG_RESUME
    assert newest.HasField("finish_time")
    assert (stop.method, stop.outcome) == ("StopSession", pb.START_OUTCOME_UNSPECIFIED)
    assert (first.rule, first.outcome) == ("NO_LIVE_SESSION", pb.START_OUTCOME_CREATED)


@pytest.mark.parametrize("depth", [pb.PAUSE_DEPTH_SUSPENDED, pb.PAUSE_DEPTH_STOPPED])
async def test_provider_calls_per_outcome_are_as_the_readme_says(
    roost: World, depth: pb.PauseDepth.ValueType
) -> None:
    """CREATED 3 (create, wait, exec); RESUMED and RESTARTED 3 (start, wait, exec); REUSED 0."""
    session = (await roost.one.start()).session
    assert await roost.calls() == ["create", "wait", "exec"]
    await roost.one.start()
    assert await roost.calls() == []
    await roost.one.pause(session.session_id, depth=depth)
    verb = "suspend" if depth == pb.PAUSE_DEPTH_SUSPENDED else "stop"
    assert await roost.calls() == ["lease", verb, "wait", "lease_release"]
    await roost.one.start()
    assert await roost.calls() == ["start", "wait", "exec"]


async def test_the_container_is_shown_with_its_state_and_url(roost: World) -> None:
    """The container's state in the row, which every transition updates."""
    session = (await roost.one.start()).session
    assert session.container.state == container_pb.CONTAINER_STATE_STARTED
    assert session.container.container_id in session.container.url
    paused = await roost.one.stop(session.session_id)
    assert paused.container.state == container_pb.CONTAINER_STATE_SUSPENDED


async def test_fresh_without_a_spec_takes_the_projects_or_the_replaced_ones(
    emulator: Emulator, database_url: str
) -> None:
    """Without a configured default image the first start of a key must give an image."""
    async with world(emulator, database_url, default_image="") as roost:
        failure = await failing(roost.one.start())
        assert (failure.reason, failure.fields) == ("INVALID_FIELD", ("spec.image",))
        old = await roost.one.start(spec=spec(env={"A": "1"}))
        fresh = await roost.two.start(mode=pb.START_MODE_FRESH)
        assert fresh.session.session_id != old.session.session_id
        assert fresh.session.fingerprint == old.session.fingerprint
