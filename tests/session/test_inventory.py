"""Inventory passes: each guard against a wrong destruction, drift, and passes that only report."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.domain.inventory import Verdict
from session_service.errors import ProviderUnavailable
from tests.container.harness import APP, failing
from tests.eventually import eventually
from tests.session.front import Front, fronted
from tests.session.harness import World, spec, world
from tests.session.sweeping import (
    QUICK,
    act,
    an_hour_passes,
    by_id,
    events,
    every_pass,
    everything,
    fly,
    machines,
    report,
    sql,
    stray,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from tests.database import Databases
    from tests.session.front import Answer, Asked, Listing, Machine

ACTIVE = pb.Session.STATE_ACTIVE
PAUSED = pb.Session.STATE_PAUSED
ENDED = pb.Session.STATE_ENDED


@pytest.fixture
async def roost(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Two replicas that destroy an orphan in its second pass."""
    async with world(emulator, database_url, **QUICK) as running:
        yield running


@pytest.fixture
async def front(emulator: Emulator) -> AsyncIterator[Front]:
    """A proxy before the emulator that can alter listings and answers."""
    async with fronted(emulator) as running:
        yield running


@pytest.fixture
async def proxied(front: Front, database_url: str) -> AsyncIterator[World]:
    """Two replicas that reach the provider through the proxy."""
    async with world(front.emulator, database_url, **QUICK) as running:
        yield running


def listing_without(*hidden: str) -> Listing:
    """A listing that lacks these machines."""

    def listing(listed: list[Machine]) -> list[Machine]:
        return [machine for machine in listed if machine["id"] not in hidden]

    return listing


def not_found(machine_id: str) -> Answer:
    """A 404 for every request about this machine."""

    def answer(asked: Asked) -> tuple[int, object] | None:
        return (404, {"error": "machine not found"}) if machine_id in asked.path else None

    return answer


def shown_destroying(machine: Machine) -> Answer:
    """An answer that shows the machine as being destroyed to every read of it."""

    def answer(asked: Asked) -> tuple[int, object] | None:
        shown = asked.method == "GET" and asked.path.endswith(f"/{machine['id']}")
        return (200, {**machine, "state": "destroying"}) if shown else None

    return answer


# --- guards -----------------------------------------------------------------------------------


async def test_an_orphan_is_destroyed_in_its_second_pass_and_no_sooner(roost: World) -> None:
    """No guard applies here. The machines of sessions are left alone."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    orphan = await stray(roost)
    first = await act(roost)
    assert by_id(first)[orphan].pass_count == 1
    assert by_id(first)[orphan].spared_because == "seen in 1 of 2 consecutive passes"
    assert (await act(roost, 1)).destroyed == [orphan]
    assert set(await machines(roost)) == {session.container.container_id}
    assert await roost.counter(session) == "2"
    assert not (await act(roost)).orphans


async def test_an_orphan_too_young_is_not_counted(emulator: Emulator, database_url: str) -> None:
    """A create in flight may not have recorded its row yet."""
    more = {**QUICK, "sweep_min_age": timedelta(minutes=10), "sweep_passes": 1}
    async with world(emulator, database_url, **more) as roost:
        orphan = await stray(roost)
        for _ in range(3):
            seen = by_id(await act(roost))[orphan]
            assert (seen.destroyed, seen.pass_count) == (False, 0)
            assert seen.spared_because.startswith("younger than 600 s")
        assert orphan in await machines(roost)


async def test_a_machine_of_another_installation_is_left_alone(roost: World) -> None:
    """For example the machine of a colleague's laptop in the same Fly app."""
    others = await stray(roost, roost_installation=str(uuid4()))
    for _ in range(3):
        assert not (await act(roost)).orphans
    assert others in await machines(roost)


async def test_a_machine_without_labels_is_left_alone(roost: World) -> None:
    """Nothing shows that Roost created it, also where only the installation label is missing."""
    bare = await stray(roost, roost_installation="", roost_session="", roost_generation="")
    half = await stray(roost, roost_installation="")
    for _ in range(3):
        assert not (await act(roost)).orphans
    assert {bare, half} <= set(await machines(roost))


async def test_a_machine_of_ours_with_broken_labels_is_an_orphan(roost: World) -> None:
    """It names this installation but no valid session, so no session can own it."""
    orphan = await stray(roost, roost_session="none", roost_generation="first")
    await act(roost)
    assert (await act(roost)).destroyed == [orphan]


async def test_an_interrupted_run_of_passes_is_counted_from_one_again(
    proxied: World, front: Front
) -> None:
    """After a pass that did not list it, or a failed pass, it must be seen in two passes again."""
    orphan = await stray(proxied, truth=front.truth)
    assert by_id(await act(proxied))[orphan].pass_count == 1
    front.listing = listing_without(orphan)
    assert not (await act(proxied)).orphans
    front.listing = None
    assert by_id(await act(proxied))[orphan].pass_count == 1
    front.answer = lambda asked: (500, {}) if asked.path.endswith("/machines") else None
    with pytest.raises(ProviderUnavailable):
        await act(proxied)
    front.answer = None

    async def counted_once() -> bool:
        # After errors container_service rejects calls to the provider for a while.
        try:
            seen = by_id(await act(proxied))
        except ProviderUnavailable:
            return False
        return seen[orphan].pass_count == 1

    assert await eventually(counted_once, timeout=30, interval=0.5)
    assert (await act(proxied)).destroyed == [orphan]


async def test_a_machine_that_a_row_may_still_adopt_is_kept(roost: World) -> None:
    """The create's answer was not recorded. The name is taken, and the next start adopts it."""
    session = (await roost.one.start()).session
    await sql(roost.one, "UPDATE containers SET container_id = NULL")
    for _ in range(3):
        assert not (await act(roost)).orphans
    assert session.container.container_id in await machines(roost)


async def test_an_orphan_under_a_lease_is_kept(roost: World) -> None:
    """The owner of the lease may be working on it. It is destroyed after the lease is released."""
    orphan = await stray(roost)
    lease = await fly(roost, "POST", f"/{orphan}/lease", {"ttl": 120})
    await act(roost)
    for _ in range(2):
        seen = by_id(await act(roost))[orphan]
        assert not seen.destroyed
        assert seen.spared_because.startswith("not destroyed yet")
    nonce = {"fly-machine-lease-nonce": lease["data"]["nonce"]}
    url = f"{roost.emulator.api_url}/v1/apps/{APP}/machines/{orphan}/lease"
    headers = {"authorization": "Bearer a-token-for-tests", **nonce}
    (await roost.http.request("DELETE", url, headers=headers)).raise_for_status()
    assert (await act(roost)).destroyed == [orphan]


async def test_a_cap_of_0_destroys_nothing(emulator: Emulator, database_url: str) -> None:
    """However many passes saw it."""
    async with world(emulator, database_url, **QUICK, sweep_limit=0) as roost:
        orphan = await stray(roost)
        await act(roost)
        await act(roost)
        swept = await act(roost)
        assert by_id(swept)[orphan].spared_because == "a pass destroys at most 0"
        assert await roost.committed("destroy") == 0


async def test_a_pass_destroys_no_more_than_its_cap(emulator: Emulator, database_url: str) -> None:
    """The next pass destroys more."""
    async with world(emulator, database_url, **QUICK, sweep_limit=1) as roost:
        orphans = {await stray(roost), await stray(roost)}
        await act(roost)
        first = (await act(roost)).destroyed
        assert len(first) == 1
        assert {*first, *(await act(roost)).destroyed} == orphans


async def test_too_many_orphans_at_once_stop_all_destruction(
    emulator: Emulator, database_url: str
) -> None:
    """So many orphans point to a mistake. None is destroyed until there are fewer."""
    async with world(emulator, database_url, **QUICK, sweep_breaker=1) as roost:
        one, two = await stray(roost), await stray(roost)
        await act(roost)
        await act(roost)
        swept = await act(roost)
        assert swept.stopped_because == "2 orphans at once are more than the limit of 1"
        assert not swept.destroyed
        assert await roost.committed("destroy") == 0
        await fly(roost, "DELETE", f"/{one}?force=true")
        await fly(roost, "GET", f"/{one}/wait?state=destroyed&timeout=30")
        assert (await act(roost)).destroyed == [two]


async def test_report_mutates_nothing(roost: World) -> None:
    """No row of any table changes and no call changes the provider, whatever is to be done."""
    for user in ("wren", "finch", "robin", "swift"):
        await roost.one.start(user)
    woken = (await roost.one.start("wren")).session
    await roost.one.stop(woken.session_id)
    await roost.counter(woken)
    fell = (await roost.one.start("finch")).session
    await roost.suspend_behind_our_back(fell)
    lost = (await roost.one.start("robin")).session
    await roost.destroy_behind_our_back(lost)
    orphan = await stray(roost)
    await act(roost)
    # A change that is still to be recorded after that pass.
    await roost.suspend_behind_our_back((await roost.one.start("swift")).session)
    await an_hour_passes(roost)
    before, done = await everything(roost), await roost.admin.actions()
    await report(roost)
    swept = await report(roost)
    assert await everything(roost) == before
    assert await roost.admin.actions() == done
    assert swept.verdicts[Verdict.FELL] == 1
    assert by_id(swept)[orphan].spared_because == "it is only reported"


@pytest.mark.parametrize("where", ["in another cluster", "beside the original"])
async def test_a_restored_copy_only_reports_and_pauses_nothing(
    emulator: Emulator, databases: Databases, database_url: str, where: str
) -> None:
    """The same Fly app and labels, another database: the copy's loops run and change nothing."""
    async with world(emulator, database_url) as original:
        idle = (await original.one.start("wren")).session
        woken = (await original.one.start("finch")).session
        await original.one.end(woken.session_id)
    copy_url = databases.create(template=database_url)
    try:
        async with world(emulator, database_url) as original:
            # After the copy was taken: the copy has no row of it, and it carries the same label.
            since = (await original.one.start("robin")).session
            await original.click_twice(since)
        more = {
            **QUICK, "sweep_passes": 1, "idle_timeout": timedelta(seconds=1),
            "reconcile_interval": timedelta(seconds=0.05), "sweep_interval": timedelta(seconds=0.1),
        }  # fmt: skip
        if where == "in another cluster":
            await _moved(copy_url)
        async with world(emulator, copy_url, **more) as copy:
            await an_hour_passes(copy)
            await sql(
                copy.one,
                "UPDATE sessions SET due_at = now() - interval '1 hour',"
                " last_active_time = now() - interval '1 day', purge_time = now()",
            )
            done = len(await copy.admin.actions())
            rows = await sql(copy.one, "SELECT * FROM sessions ORDER BY session_id")

            async def passed() -> bool:
                found = await sql(copy.one, "SELECT *, now() FROM sweeps")
                assert [row for row in found if row[0] == APP and row[2] >= 5], found
                return True

            assert await eventually(passed, timeout=30)
            swept = await act(copy)
            assert (
                swept.stopped_because
                == "this database is a copy: the machines belong to the original"
            )
            assert by_id(swept).keys() == {since.container.container_id}
            await an_hour_passes(copy)
            assert len(await copy.admin.actions()) == done
            again = await sql(copy.one, "SELECT epoch, state FROM sessions ORDER BY session_id")
            assert again == [(row[7], row[5]) for row in rows]
        async with world(emulator, database_url) as original:
            assert (await original.one.get(idle.session_id)).state == ACTIVE
            assert await original.counter(since) == "2"
    finally:
        databases.drop(copy_url)


async def _moved(url: str) -> None:
    """Make the row name another cluster, but this database's OID, as a copy elsewhere would."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE installation SET system_identifier ="
            " (SELECT '1/' || oid FROM pg_database WHERE datname = current_database())"
        )


async def test_a_sweep_that_only_reports_or_is_off_still_records_drift(roost: World) -> None:
    """Orphans are reported (`report_orphans`) or not searched for, and never destroyed."""
    inventory = roost.one.running.background.inventory_pass
    orphan = await stray(roost)
    for report_orphans in (True, False):
        session = (await roost.one.start()).session
        await roost.suspend_behind_our_back(session)
        for followed in (1, 0):
            await an_hour_passes(roost)
            (swept,) = await inventory.shot(APP, timedelta(0), act=False, report=report_orphans)
            assert swept.verdicts[Verdict.FELL] == followed
            assert list(by_id(swept)) == ([orphan] if report_orphans else [])
    assert await roost.committed("destroy") == 0


# --- listings that are wrong ------------------------------------------------------------------


async def test_a_provider_that_lists_nothing_loses_no_session(proxied: World, front: Front) -> None:
    """Each container is read by itself before it counts as lost, and that read finds it."""
    users = ("wren", "finch", "robin")
    sessions = [(await proxied.one.start(user)).session for user in users]
    await proxied.one.stop(sessions[1].session_id)
    await proxied.one.end(sessions[2].session_id)
    front.listing = lambda listed: []
    for number in range(4):
        swept = await act(proxied, number % 2)
        assert swept.verdicts[Verdict.MISSING] == 3
    await every_pass(proxied)
    states = [(await proxied.one.get(session.session_id)).state for session in sessions]
    assert states == [ACTIVE, PAUSED, ENDED]
    assert await proxied.committed("destroy") == 0
    for session in sessions:
        assert "CONTAINER_LOST" not in await events(proxied, session)
    front.listing = None
    assert (await proxied.one.start("finch")).outcome == pb.START_OUTCOME_RESUMED


async def test_a_stale_listing_destroys_nothing(proxied: World, front: Front) -> None:
    """A replica of the provider's database that stays behind while sessions start and end."""
    first = (await proxied.one.start()).session
    frozen = await fly(proxied, "GET", "", truth=front.truth)
    front.listing = lambda listed: frozen
    await proxied.one.stop(first.session_id)
    second = (await proxied.one.start("finch")).session
    for number in range(4):
        await act(proxied, number % 2)
    assert await proxied.committed("destroy") == 0
    assert (await proxied.one.get(second.session_id)).state == ACTIVE
    assert "CONTAINER_LOST" not in await events(proxied, second)
    front.listing = None
    await act(proxied)
    again = await proxied.one.start()
    assert again.session.container.container_id == first.container.container_id
    assert await proxied.committed("create") == 2


async def test_a_provider_whose_listings_fail_changes_nothing(roost: World) -> None:
    """A failed listing is not an empty listing. The app is skipped and listed again later."""
    session = (await roost.one.start()).session
    orphan = await stray(roost)
    await act(roost)
    before = (await everything(roost))["sessions"]
    await roost.admin.set_fault("server_error", action="list", times=None)
    inventory = roost.one.running.background.inventory_pass
    for _ in range(2):
        assert await inventory.shot(APP, timedelta(0), act=True) == []
        with pytest.raises(ProviderUnavailable):
            await inventory.act(APP)
    assert (await everything(roost))["sessions"] == before
    assert await roost.committed("destroy") == 0
    await roost.admin.clear_faults()

    async def swept() -> bool:
        return (await inventory.shot(APP, timedelta(0), act=True)) != []

    assert await eventually(swept, timeout=30, interval=0.5)
    assert {orphan, session.container.container_id} == set(await machines(roost))


async def test_a_listing_begun_before_a_sessions_last_transition_is_ignored(
    proxied: World, front: Front
) -> None:
    """It shows a machine as running that was paused since, and one that was purged since."""
    paused = (await proxied.one.start("wren")).session
    purged = (await proxied.one.start("finch")).session
    await an_hour_passes(proxied)
    gate = front.hold_listings()
    sweeping = asyncio.create_task(proxied.two.running.background.inventory_pass.act(APP))
    await asyncio.wait_for(front.read.wait(), 30)
    await proxied.one.stop(paused.session_id)
    # A purge does not list, since the container's id is known.
    await proxied.one.end(purged.session_id, now=True)
    gate.set()
    swept = await sweeping
    assert swept.listed == 2
    assert not swept.orphans
    assert swept.verdicts == {Verdict.NOTHING: 1}
    assert (await proxied.one.get(paused.session_id)).state == PAUSED


# --- drift ------------------------------------------------------------------------------------


async def test_a_machine_suspended_by_the_proxy_is_recorded_as_paused(roost: World) -> None:
    """The next start resumes it with its memory."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.suspend_behind_our_back(session)
    assert (await act(roost)).verdicts[Verdict.FELL] == 1
    shown = await roost.two.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    again = await roost.two.start()
    assert (again.outcome, again.continuity, again.continuity_verified) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
        True,
    )
    assert await roost.counter(again.session) == "2"


#: Every update of a session finds its row changed meanwhile: it writes nothing.
SKIPPED = (
    """
    CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$
    """,
    "CREATE TRIGGER skip BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION skip()",
)


async def test_drift_that_is_not_written_is_not_logged(
    roost: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a container that was paused, of one that is lost, and of one that is found again."""
    caplog.set_level("INFO", "session_service")
    background = roost.one.running.background

    def logged() -> list[str]:
        records = (each.__dict__ for each in caplog.records)
        return sorted(str(each["verdict"]) for each in records if "verdict" in each)

    fell = (await roost.one.start("wren")).session
    lost = (await roost.one.start("robin")).session
    found = (await roost.one.start("finch")).session
    await roost.one.pause(found.session_id)
    await roost.suspend_behind_our_back(fell)
    await roost.destroy_behind_our_back(lost)
    await sql(
        roost.one,
        "UPDATE containers SET destroy_time = now() WHERE session_id = %s",
        found.session_id,
    )
    await an_hour_passes(roost)
    for statement in SKIPPED:
        await sql(roost.one, statement)
    verdicts = (await background.inventory_pass.act(APP)).verdicts
    assert (verdicts[Verdict.FELL], verdicts[Verdict.MISSING]) == (1, 1)
    assert logged() == []
    await sql(roost.one, "DROP TRIGGER skip ON sessions")
    await background.inventory_pass.act(APP)
    assert logged() == sorted(["FOUND", Verdict.FELL, Verdict.MISSING])


async def test_a_machine_woken_by_the_proxy_is_recorded_as_active(roost: World) -> None:
    """The next start proves what survived before it claims memory."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    assert await roost.counter(session) == "2"
    assert (await act(roost)).verdicts[Verdict.WOKE] == 1
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    await roost.calls()
    again = await roost.two.start()
    assert await roost.calls() == ["get", "exec"]
    assert (again.outcome, again.continuity, again.continuity_verified) == (
        pb.START_OUTCOME_REUSED,
        pb.CONTINUITY_MEMORY,
        True,
    )


async def test_a_snapshot_dropped_while_paused_is_reported_as_lost_memory(roost: World) -> None:
    """A suspended container is seen stopped: MEMORY_LOST, and the next start brings back files."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await fly(roost, "POST", f"/{session.container.container_id}/stop")
    await fly(roost, "GET", f"/{session.container.container_id}/wait?state=stopped&timeout=30")
    assert (await act(roost)).verdicts[Verdict.SANK] == 1
    shown = await roost.two.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [condition.type for condition in shown.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    failure = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESTARTED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert await roost.counter(again.session) == "2"


async def test_a_restart_past_roost_makes_the_next_start_probe(roost: World) -> None:
    """Also within the freshness window, once a listing has shown the restart."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await sql(roost.one, "UPDATE sessions SET verified_at = NULL")
    await roost.one.start()
    await roost.crash(session)
    assert (await act(roost)).verdicts[Verdict.RESTARTED] == 1
    assert (await roost.one.start()).continuity == pb.CONTINUITY_FILESYSTEM


async def test_a_listing_keeps_a_running_session_verified(roost: World) -> None:
    """The next start then makes no call to the provider."""
    await roost.one.start()
    await sql(roost.one, "UPDATE sessions SET verified_at = NULL")
    await roost.one.start()
    await sql(roost.one, "UPDATE sessions SET verified_at = verified_at - interval '1 hour'")
    assert (await act(roost)).verdicts[Verdict.VERIFIED] == 1
    await roost.calls()
    assert (await roost.two.start()).continuity == pb.CONTINUITY_MEMORY
    assert await roost.calls() == []


async def test_traffic_that_wakes_an_ended_session_does_not_extend_its_grace(
    roost: World,
) -> None:
    """The container is cordoned and suspended again. The purge time does not change."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    ended = await roost.one.end(session.session_id)
    await fly(roost, "POST", f"/{session.container.container_id}/uncordon")
    assert await roost.counter(session) == "2"
    assert await roost.provider_state(session) == "started"
    assert (await act(roost)).verdicts[Verdict.WOKE_ENDED] == 1
    again = await roost.until_state(session.session_id, ENDED)
    assert await roost.provider_state(session) == "suspended"
    assert (again.purge_time, again.end_time) == (ended.purge_time, ended.end_time)
    assert again.end_reason == pb.END_REASON_REQUESTED
    shown = await fly(roost, "GET", f"/{session.container.container_id}")
    assert shown["cordoned"] is True
    back = await roost.two.undelete(session.session_id)
    assert back.state == PAUSED
    assert await roost.counter((await roost.two.start()).session) == "2"


async def test_a_cordoned_machine_that_runs_is_paused_and_not_called_active(
    roost: World,
) -> None:
    """An undeleted session whose machine never stopped: no request would reach it as ACTIVE."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_fails")
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    assert await roost.provider_state(session) == "started"
    assert (await act(roost)).verdicts[Verdict.STRAYED] == 1
    shown = await roost.until_state(session.session_id, PAUSED)

    async def suspended() -> bool:
        return await roost.provider_state(session) == "suspended"

    assert await eventually(suspended)
    assert shown.state == PAUSED
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await roost.counter(again.session) == "2"


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED", "ENDED"])
async def test_a_vanished_machine_is_lost_only_after_proof(roost: World, state: str) -> None:
    """Two reads and a second listing find it absent. The next start reports the loss."""
    session = (await roost.one.start()).session
    if state == "PAUSED":
        await roost.one.stop(session.session_id)
    elif state == "ENDED":
        await roost.one.end(session.session_id)
    await roost.admin.set_fault("machine_vanished", machine=session.container.container_id)
    await an_hour_passes(roost)
    await roost.calls()
    swept = await act(roost)
    assert await roost.calls() == ["list", "get", "get", "list"]
    assert swept.verdicts[Verdict.MISSING] == 1
    assert "CONTAINER_LOST" in await events(roost, session)
    shown = await roost.one.get(session.session_id)
    if state == "ENDED":
        assert shown.state == ENDED
        failure = await failing(roost.one.undelete(session.session_id))
        assert failure.reason == "SESSION_STATE_CONFLICT"
        return
    kinds = [condition.type for condition in shown.conditions]
    assert (shown.state, kinds) == (PAUSED, [pb.CONDITION_TYPE_CONTAINER_LOST])
    failure = await failing(roost.one.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
    assert failure.reason == "CONTINUITY_UNAVAILABLE"
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE)
    assert again.session.session_id == session.session_id
    kinds = [condition.type for condition in again.session.conditions]
    assert kinds == [pb.CONDITION_TYPE_CONTAINER_LOST]


async def test_a_machine_that_the_provider_shows_destroyed_is_lost_at_once(roost: World) -> None:
    """The provider's state DESTROYED is proof: one read, no second listing."""
    session = (await roost.one.start()).session
    await roost.destroy_behind_our_back(session)
    await roost.calls()
    await act(roost)
    assert await roost.calls() == ["list", "get"]
    assert (await roost.one.get(session.session_id)).state == PAUSED
    assert (await roost.one.start()).session.generation == 2


async def test_a_machine_that_only_a_listing_lacks_is_not_lost(
    proxied: World, front: Front
) -> None:
    """A read of the machine finds it, and no further calls are made."""
    session = (await proxied.one.start()).session
    await proxied.click_twice(session)
    front.listing = listing_without(session.container.container_id)
    for _ in range(3):
        await proxied.calls()
        assert (await act(proxied)).verdicts[Verdict.MISSING] == 1
        assert await proxied.calls() == ["list", "get"]
    assert (await proxied.one.get(session.session_id)).state == ACTIVE
    assert "CONTAINER_LOST" not in await events(proxied, session)
    assert await proxied.counter(session) == "2"


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED"])
async def test_a_machine_taken_for_lost_that_reappears_is_used_again(
    proxied: World, front: Front, state: str
) -> None:
    """It still has its memory: nothing was destroyed and nothing was created instead."""
    session = (await proxied.one.start()).session
    await proxied.click_twice(session)
    if state == "PAUSED":
        await proxied.one.stop(session.session_id)
    hidden = session.container.container_id
    front.listing = listing_without(hidden)
    front.answer = not_found(hidden)
    await act(proxied)
    lost = await proxied.one.get(session.session_id)
    assert [c.type for c in lost.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    # Either a listing or a read that shows it is no proof alone; both must.
    front.listing = None
    seen = await fly(proxied, "GET", f"/{hidden}", truth=front.truth)
    for answer in (front.answer, shown_destroying(seen)):
        front.answer = answer
        await act(proxied)
        assert "CONTAINER_FOUND" not in await events(proxied, session)
    front.answer = None
    for _ in range(2):
        swept = await act(proxied)
        assert not swept.orphans
    assert "CONTAINER_FOUND" in await events(proxied, session)
    again = await proxied.two.start()
    assert again.session.container.container_id == hidden
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await proxied.counter(again.session) == "2"
    assert await proxied.committed("create") == 1


async def test_an_orphan_from_a_cut_off_create_is_destroyed_in_the_end(roost: World) -> None:
    """The provider creates it after its row was discarded: only its labels identify it."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=20_000)
    start = asyncio.create_task(failing(roost.one.start()))
    session = await roost.until_live("wren")

    async def asked() -> bool:
        return any(fault.fired for fault in await roost.admin.faults())

    assert await eventually(asked)
    ended = await roost.two.end(session.session_id, now=True)
    assert ended.state == ENDED
    assert (await start).reason == "SESSION_STATE_CONFLICT"
    assert await machines(roost) == {}

    async def made() -> bool:
        return await roost.committed("create") == 1 and bool(await machines(roost))

    assert await eventually(made, timeout=30)
    await act(roost)
    assert len((await act(roost)).destroyed) == 1
    assert await machines(roost) == {}


async def test_a_machine_of_a_start_that_was_given_up_is_destroyed(
    emulator: Emulator, database_url: str
) -> None:
    """The session went back to PAUSED, and no row has the machine's id. The next start makes its
    own.
    """
    quick = {**QUICK, "start_budget": timedelta(seconds=1.5)}
    async with world(emulator, database_url, **quick) as roost:
        session = (await roost.one.start()).session
        await roost.one.stop(session.session_id)
        await roost.destroy_behind_our_back(session)
        await roost.admin.set_fault("slow_after", action="create", delay_ms=4000)
        await roost.admin.set_fault("server_error", action="list", times=None)
        assert (await failing(roost.one.start())).retry_seconds
        await roost.admin.clear_faults()
        (left,) = await machines(roost)
        assert (await roost.one.get(session.session_id)).state == PAUSED

        async def destroyed() -> bool:
            return left in (await act(roost)).destroyed

        assert await eventually(destroyed, timeout=30)
        again = await roost.one.start()
        assert again.outcome == pb.START_OUTCOME_CREATED
        assert set(await machines(roost)) == {again.session.container.container_id}


async def test_an_unwanted_container_without_a_recorded_id_is_destroyed(
    roost: World,
) -> None:
    """It is searched for by its labels. Its row is closed if there is no such machine."""
    made = (await roost.one.start("wren")).session
    never = (await roost.one.start("finch")).session
    await fly(roost, "DELETE", f"/{never.container.container_id}?force=true")
    await fly(roost, "GET", f"/{never.container.container_id}/wait?state=destroyed&timeout=30")
    await sql(roost.one, "UPDATE containers SET wanted = false, container_id = NULL")
    await roost.admin.set_fault("server_error", action="list")
    discarder = roost.one.running.background.discarder

    async def done() -> bool:
        await discarder.shot()
        rows = await sql(roost.one, "SELECT 1 FROM containers WHERE destroy_time IS NULL")
        return not rows

    assert await eventually(done, timeout=30, interval=0.3)
    assert await machines(roost) == {}
    assert await roost.committed("destroy", made.session_id) == 1


async def test_a_machine_with_unreadable_labels_is_never_taken_for_another(
    proxied: World, front: Front
) -> None:
    """Fly shows it without its config, since its host is unreachable. It may be another's."""
    others = (await proxied.one.start("finch")).session
    await proxied.one.start("wren")
    wanted = "SELECT session_id FROM sessions WHERE user_id = 'wren'"
    await sql(
        proxied.one,
        f"UPDATE containers SET wanted = false, container_id = NULL WHERE session_id = ({wanted})",
    )
    hidden = others.container.container_id
    seen = await fly(proxied, "GET", f"/{hidden}", truth=front.truth)

    def unreadable(listed: list[Machine]) -> list[Machine]:
        return [{**seen, "config": None, "host_status": "unreachable"}]

    front.listing = unreadable
    assert await proxied.one.running.background.discarder.shot() == 0
    assert await proxied.committed("destroy") == 0
    front.listing = None
    assert await proxied.one.running.background.discarder.shot() == 1
    assert set(await machines(proxied, truth=front.truth)) == {hidden}


async def test_a_session_whose_drift_check_fails_does_not_stop_the_others(roost: World) -> None:
    """Its row makes the drift check fail. This pass and the next ones handle the others."""
    broken = (await roost.one.start("wren")).session
    whole = (await roost.one.start("finch")).session
    for session in (broken, whole):
        await roost.suspend_behind_our_back(session)
    await sql(
        roost.one,
        'UPDATE sessions SET policy = \'{"deepen_after": "soon"}\' WHERE session_id = %s',
        broken.session_id,
    )
    assert (await act(roost)).verdicts[Verdict.FELL] == 2
    assert (await roost.one.get(whole.session_id)).state == PAUSED
    assert (await act(roost)).verdicts[Verdict.FELL] == 1


async def test_a_shorter_interval_applies_before_the_longer_one_ends(roost: World) -> None:
    """The due time was set with an interval of a day; the interval is a minute now."""
    inventory = roost.one.running.background.inventory_pass

    async def shot() -> int:
        # Repeated, since a replica's own loop, which has a short interval too, may be first.
        await sql(roost.one, "UPDATE sweeps SET due_at = now() + interval '1 day'")
        return len(await inventory.shot(APP, timedelta(minutes=1), act=True))

    assert await eventually(shot) == 1
    assert await inventory.shot(APP, timedelta(minutes=1), act=True) == []


async def test_all_replicas_together_run_one_pass_per_interval(roost: World) -> None:
    """With any number of replicas an app is listed once in an interval."""
    await roost.one.start()
    every = timedelta(hours=1)
    for replica in roost.replicas:
        assert await replica.running.background.inventory_pass.shot(APP, every, act=True) == []
    await sql(roost.one, "UPDATE sweeps SET due_at = now()")
    await roost.calls()
    shots = [r.running.background.inventory_pass.shot(APP, every, act=True) for r in roost.replicas]
    done = await asyncio.gather(*shots)
    assert sorted(len(swept) for swept in done) == [0, 1]
    assert await roost.calls() == ["list"]
