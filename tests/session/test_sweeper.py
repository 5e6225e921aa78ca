"""The sweeper: each guard by itself, what it follows, and that it does no harm."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from roost.session.v1 import session_pb2 as pb
from session_service.domain.survey import Verdict
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
    """Two replicas whose sweepers need no more than two passes."""
    async with world(emulator, database_url, **QUICK) as running:
        yield running


@pytest.fixture
async def front(emulator: Emulator) -> AsyncIterator[Front]:
    """A front before the emulator."""
    async with fronted(emulator) as running:
        yield running


@pytest.fixture
async def behind(front: Front, database_url: str) -> AsyncIterator[World]:
    """The same Roost, that sees the provider through the front."""
    async with world(front.emulator, database_url, **QUICK) as running:
        yield running


def without(*hidden: str) -> Listing:
    """A listing in which these machines are not."""

    def listing(listed: list[Machine]) -> list[Machine]:
        return [machine for machine in listed if machine["id"] not in hidden]

    return listing


def gone(machine_id: str) -> Answer:
    """Whatever is asked of the machine, the provider does not know it."""

    def answer(asked: Asked) -> tuple[int, object] | None:
        return (404, {"error": "machine not found"}) if machine_id in asked.path else None

    return answer


def going(machine: Machine) -> Answer:
    """Whoever asks for the machine hears that it is being destroyed."""

    def answer(asked: Asked) -> tuple[int, object] | None:
        shown = asked.method == "GET" and asked.path.endswith(f"/{machine['id']}")
        return (200, {**machine, "state": "destroying"}) if shown else None

    return answer


# --- guards -----------------------------------------------------------------------------------


async def test_an_orphan_is_destroyed_in_its_second_pass_and_no_sooner(roost: World) -> None:
    """The rule without a guard in the way; sessions' own machines are left alone."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    orphan = await stray(roost)
    first = await act(roost)
    assert by_id(first)[orphan].pass_count == 1
    assert by_id(first)[orphan].spared_because == "seen in 1 of 2 passes running"
    assert (await act(roost, 1)).destroyed == [orphan]
    assert set(await machines(roost)) == {session.container.container_id}
    assert await roost.counter(session) == "2"
    assert not (await act(roost)).orphans


async def test_an_orphan_too_young_is_not_counted(emulator: Emulator, database_url: str) -> None:
    """Somebody may be about to write it down."""
    more = {**QUICK, "sweep_min_age": timedelta(minutes=10), "sweep_passes": 1}
    async with world(emulator, database_url, **more) as roost:
        orphan = await stray(roost)
        for _ in range(3):
            seen = by_id(await act(roost))[orphan]
            assert (seen.destroyed, seen.pass_count) == (False, 0)
            assert seen.spared_because.startswith("younger than 600 s")
        assert orphan in await machines(roost)


async def test_a_machine_of_another_installation_is_nobodys_here(roost: World) -> None:
    """A colleague's laptop, the same Fly app."""
    others = await stray(roost, roost_installation=str(uuid4()))
    for _ in range(3):
        assert not (await act(roost)).orphans
    assert others in await machines(roost)


async def test_a_machine_without_labels_is_nobodys_here(roost: World) -> None:
    """Nothing says that Roost made it; also not where only the installation is missing."""
    bare = await stray(roost, roost_installation="", roost_session="", roost_generation="")
    half = await stray(roost, roost_installation="")
    for _ in range(3):
        assert not (await act(roost)).orphans
    assert {bare, half} <= set(await machines(roost))


async def test_a_machine_of_ours_with_broken_labels_is_an_orphan(roost: World) -> None:
    """It says whose it is and not of which session: no session can have it."""
    orphan = await stray(roost, roost_session="none", roost_generation="first")
    await act(roost)
    assert (await act(roost)).destroyed == [orphan]


async def test_a_run_of_passes_that_is_interrupted_starts_anew(behind: World, front: Front) -> None:
    """Once not seen, or a pass that could not list: it must be seen twice running again."""
    orphan = await stray(behind, truth=front.truth)
    assert by_id(await act(behind))[orphan].pass_count == 1
    front.listing = without(orphan)
    assert not (await act(behind)).orphans
    front.listing = None
    assert by_id(await act(behind))[orphan].pass_count == 1
    front.answer = lambda asked: (500, {}) if asked.path.endswith("/machines") else None
    with pytest.raises(ProviderUnavailable):
        await act(behind)
    front.answer = None

    async def counted_once() -> bool:
        # After errors container_service lets the provider rest for a while.
        try:
            seen = by_id(await act(behind))
        except ProviderUnavailable:
            return False
        return seen[orphan].pass_count == 1

    assert await eventually(counted_once, timeout=30, interval=0.5)
    assert (await act(behind)).destroyed == [orphan]


async def test_a_row_that_may_yet_adopt_it_keeps_a_machine(roost: World) -> None:
    """Its answer was never written down: the name is taken, and whoever comes next adopts it."""
    session = (await roost.one.start()).session
    await sql(roost.one, "UPDATE containers SET container_id = NULL")
    for _ in range(3):
        assert not (await act(roost)).orphans
    assert session.container.container_id in await machines(roost)


async def test_an_orphan_that_somebody_leases_is_kept(roost: World) -> None:
    """Whoever works on it at this moment is let be; afterwards it goes."""
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
    """However often it was seen."""
    async with world(emulator, database_url, **QUICK, sweep_limit=0) as roost:
        orphan = await stray(roost)
        await act(roost)
        await act(roost)
        swept = await act(roost)
        assert by_id(swept)[orphan].spared_because == "a pass destroys 0 at most"
        assert await roost.committed("destroy") == 0


async def test_a_pass_destroys_no_more_than_its_cap(emulator: Emulator, database_url: str) -> None:
    """The rest comes with the next."""
    async with world(emulator, database_url, **QUICK, sweep_limit=1) as roost:
        orphans = {await stray(roost), await stray(roost)}
        await act(roost)
        first = (await act(roost)).destroyed
        assert len(first) == 1
        assert {*first, *(await act(roost)).destroyed} == orphans


async def test_too_many_orphans_at_once_stop_the_sweeper(
    emulator: Emulator, database_url: str
) -> None:
    """A mistake somewhere: none is destroyed, until there are fewer."""
    async with world(emulator, database_url, **QUICK, sweep_breaker=1) as roost:
        one, two = await stray(roost), await stray(roost)
        await act(roost)
        await act(roost)
        swept = await act(roost)
        assert swept.stopped_because == "2 orphans at once are too many to be true"
        assert not swept.destroyed
        assert await roost.committed("destroy") == 0
        await fly(roost, "DELETE", f"/{one}?force=true")
        await fly(roost, "GET", f"/{one}/wait?state=destroyed&timeout=30")
        assert (await act(roost)).destroyed == [two]


async def test_report_mutates_nothing(roost: World) -> None:
    """No row of any table, nothing at the provider: whatever there is to do."""
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
    # What there is to do anew after that pass.
    await roost.suspend_behind_our_back((await roost.one.start("swift")).session)
    await an_hour_passes(roost)
    before, done = await everything(roost), await roost.admin.actions()
    await report(roost)
    swept = await report(roost)
    assert await everything(roost) == before
    assert await roost.admin.actions() == done
    assert swept.followed[Verdict.FELL] == 1
    assert by_id(swept)[orphan].spared_because == "it is only reported"


@pytest.mark.parametrize("where", ["in another cluster", "beside the original"])
async def test_a_restored_copy_only_reports_and_does_not_keep(
    emulator: Emulator, databases: Databases, database_url: str, where: str
) -> None:
    """The same Fly app, the same labels, another database: its loops run, and touch nothing."""
    async with world(emulator, database_url) as original:
        idle = (await original.one.start("wren")).session
        woken = (await original.one.start("finch")).session
        await original.one.end(woken.session_id)
    copy_url = databases.create(template=database_url)
    try:
        async with world(emulator, database_url) as original:
            # Since the copy was taken: the copy knows nothing of it, and its label is the same.
            since = (await original.one.start("robin")).session
            await original.click_twice(since)
        more = {
            **QUICK, "sweep_passes": 1, "idle_timeout": timedelta(seconds=1),
            "keeper_interval": timedelta(seconds=0.05), "sweep_interval": timedelta(seconds=0.1),
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
                found = await sql(copy.one, "SELECT pass_number FROM sweeps")
                return bool(found) and found[0][0] >= 5

            assert await eventually(passed, timeout=30)
            swept = await act(copy)
            assert swept.stopped_because == "this database is a copy: the machines are another's"
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
    """As a copy would differ: the row names the cluster that it was made on, and this OID."""
    import psycopg

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "UPDATE installation SET system_identifier ="
            " (SELECT '1/' || oid FROM pg_database WHERE datname = current_database())"
        )


async def test_a_sweeper_that_only_reports_or_is_off_follows_all_the_same(roost: World) -> None:
    """As a configuration may ask: orphans are told of, or not looked for; neither is destroyed."""
    sweeper = roost.one.running.background.sweeper
    orphan = await stray(roost)
    for look in (True, False):
        session = (await roost.one.start()).session
        await roost.suspend_behind_our_back(session)
        for followed in (1, 0):
            await an_hour_passes(roost)
            (swept,) = await sweeper.shot(APP, timedelta(0), act=False, look=look)
            assert swept.followed[Verdict.FELL] == followed
            assert list(by_id(swept)) == ([orphan] if look else [])
    assert await roost.committed("destroy") == 0


# --- listings that are not so -----------------------------------------------------------------


async def test_a_provider_that_lists_nothing_loses_no_session(behind: World, front: Front) -> None:
    """Each is asked for by itself before it is lost, and is there."""
    users = ("wren", "finch", "robin")
    sessions = [(await behind.one.start(user)).session for user in users]
    await behind.one.stop(sessions[1].session_id)
    await behind.one.end(sessions[2].session_id)
    front.listing = lambda listed: []
    for number in range(4):
        swept = await act(behind, number % 2)
        assert swept.followed[Verdict.MISSING] == 3
    await every_pass(behind)
    states = [(await behind.one.get(session.session_id)).state for session in sessions]
    assert states == [ACTIVE, PAUSED, ENDED]
    assert await behind.committed("destroy") == 0
    for session in sessions:
        assert "CONTAINER_LOST" not in await events(behind, session)
    front.listing = None
    assert (await behind.one.start("finch")).outcome == pb.START_OUTCOME_RESUMED


async def test_a_listing_from_before_destroys_nothing(behind: World, front: Front) -> None:
    """A replica of the provider's that is behind for good, while sessions come and go."""
    first = (await behind.one.start()).session
    frozen = await fly(behind, "GET", "", truth=front.truth)
    front.listing = lambda listed: frozen
    await behind.one.stop(first.session_id)
    second = (await behind.one.start("finch")).session
    for number in range(4):
        await act(behind, number % 2)
    assert await behind.committed("destroy") == 0
    assert (await behind.one.get(second.session_id)).state == ACTIVE
    assert "CONTAINER_LOST" not in await events(behind, second)
    front.listing = None
    await act(behind)
    again = await behind.one.start()
    assert again.session.container.container_id == first.container.container_id
    assert await behind.committed("create") == 2


async def test_a_provider_whose_listings_fail_changes_nothing(roost: World) -> None:
    """An error is no listing: the app is passed over, and comes round again."""
    session = (await roost.one.start()).session
    orphan = await stray(roost)
    await act(roost)
    before = (await everything(roost))["sessions"]
    await roost.admin.set_fault("server_error", action="list", times=None)
    sweeper = roost.one.running.background.sweeper
    for _ in range(2):
        assert await sweeper.shot(APP, timedelta(0), act=True) == []
        with pytest.raises(ProviderUnavailable):
            await sweeper.act(APP)
    assert (await everything(roost))["sessions"] == before
    assert await roost.committed("destroy") == 0
    await roost.admin.clear_faults()

    async def swept() -> bool:
        return (await sweeper.shot(APP, timedelta(0), act=True)) != []

    assert await eventually(swept, timeout=30, interval=0.5)
    assert {orphan, session.container.container_id} == set(await machines(roost))


async def test_a_listing_begun_before_a_sessions_last_transition_is_ignored(
    behind: World, front: Front
) -> None:
    """It shows running what was put to rest meanwhile, and there what was purged meanwhile."""
    paused = (await behind.one.start("wren")).session
    purged = (await behind.one.start("finch")).session
    await an_hour_passes(behind)
    gate = front.hold_listings()
    sweeping = asyncio.create_task(behind.two.running.background.sweeper.act(APP))
    await asyncio.wait_for(front.read.wait(), 30)
    await behind.one.stop(paused.session_id)
    # A purge needs no listing, since the id is known.
    await behind.one.end(purged.session_id, now=True)
    gate.set()
    swept = await sweeping
    assert swept.listed == 2
    assert not swept.orphans
    assert swept.followed == {Verdict.NOTHING: 1}
    assert (await behind.one.get(paused.session_id)).state == PAUSED


# --- following --------------------------------------------------------------------------------


async def test_what_the_proxy_suspended_is_followed_to_paused(roost: World) -> None:
    """And the next start resumes it with its memory."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.suspend_behind_our_back(session)
    assert (await act(roost)).followed[Verdict.FELL] == 1
    shown = await roost.two.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_SUSPENDED)
    again = await roost.two.start()
    assert (again.outcome, again.continuity, again.continuity_verified) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
        True,
    )
    assert await roost.counter(again.session) == "2"


async def test_what_the_proxy_woke_is_followed_to_active(roost: World) -> None:
    """And the next start proves what survived, rather than believing it."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    assert await roost.counter(session) == "2"
    assert (await act(roost)).followed[Verdict.WOKE] == 1
    assert (await roost.one.get(session.session_id)).state == ACTIVE
    await roost.calls()
    again = await roost.two.start()
    assert await roost.calls() == ["get", "exec"]
    assert (again.outcome, again.continuity, again.continuity_verified) == (
        pb.START_OUTCOME_REUSED,
        pb.CONTINUITY_MEMORY,
        True,
    )


async def test_a_snapshot_dropped_at_rest_is_told_as_lost_memory(roost: World) -> None:
    """Suspended, seen stopped: MEMORY_LOST, and the next start brings back files."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await roost.click_twice(session)
    await roost.one.stop(session.session_id)
    await fly(roost, "POST", f"/{session.container.container_id}/stop")
    await fly(roost, "GET", f"/{session.container.container_id}/wait?state=stopped&timeout=30")
    assert (await act(roost)).followed[Verdict.SANK] == 1
    shown = await roost.two.get(session.session_id)
    assert (shown.state, shown.pause_depth) == (PAUSED, pb.PAUSE_DEPTH_STOPPED)
    assert [condition.type for condition in shown.conditions] == [pb.CONDITION_TYPE_MEMORY_LOST]
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_MEMORY))
    assert refused.reason == "CONTINUITY_UNAVAILABLE"
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESTARTED,
        pb.CONTINUITY_FILESYSTEM,
    )
    assert await roost.counter(again.session) == "2"


async def test_a_restart_behind_our_back_makes_the_next_start_look(roost: World) -> None:
    """Within the freshness window, too, once a listing has shown it."""
    session = (await roost.one.start(spec=spec(env={"COUNTER_FILE": "count"}))).session
    await sql(roost.one, "UPDATE sessions SET verified_at = NULL")
    await roost.one.start()
    await roost.crash(session)
    assert (await act(roost)).followed[Verdict.RESTARTED] == 1
    assert (await roost.one.start()).continuity == pb.CONTINUITY_FILESYSTEM


async def test_a_listing_keeps_a_running_session_verified(roost: World) -> None:
    """So that its next start costs no call to the provider."""
    await roost.one.start()
    await sql(roost.one, "UPDATE sessions SET verified_at = NULL")
    await roost.one.start()
    await sql(roost.one, "UPDATE sessions SET verified_at = verified_at - interval '1 hour'")
    assert (await act(roost)).followed[Verdict.VERIFIED] == 1
    await roost.calls()
    assert (await roost.two.start()).continuity == pb.CONTINUITY_MEMORY
    assert await roost.calls() == []


async def test_traffic_that_wakes_an_ended_session_does_not_extend_its_grace(
    roost: World,
) -> None:
    """It is cordoned and suspended again; purge_time is what it was."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    ended = await roost.one.end(session.session_id)
    await fly(roost, "POST", f"/{session.container.container_id}/uncordon")
    assert await roost.counter(session) == "2"
    assert await roost.provider_state(session) == "started"
    assert (await act(roost)).followed[Verdict.WOKE_ENDED] == 1
    again = await roost.until_state(session.session_id, ENDED)
    assert await roost.provider_state(session) == "suspended"
    assert (again.purge_time, again.end_time) == (ended.purge_time, ended.end_time)
    assert again.end_reason == pb.END_REASON_REQUESTED
    shown = await fly(roost, "GET", f"/{session.container.container_id}")
    assert shown["cordoned"] is True
    back = await roost.two.undelete(session.session_id)
    assert back.state == PAUSED
    assert await roost.counter((await roost.two.start()).session) == "2"


async def test_what_runs_out_of_routing_is_put_to_rest_and_not_called_active(
    roost: World,
) -> None:
    """An undeleted session whose machine never stopped: as ACTIVE nobody would reach it."""
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    await roost.admin.set_fault("suspend_fails")
    await roost.one.end(session.session_id)
    await roost.one.undelete(session.session_id)
    assert await roost.provider_state(session) == "started"
    assert (await act(roost)).followed[Verdict.STRAYED] == 1
    shown = await roost.until_state(session.session_id, PAUSED)

    async def rests() -> bool:
        return await roost.provider_state(session) == "suspended"

    assert await eventually(rests)
    assert shown.state == PAUSED
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (
        pb.START_OUTCOME_RESUMED,
        pb.CONTINUITY_MEMORY,
    )
    assert await roost.counter(again.session) == "2"


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED", "ENDED"])
async def test_a_vanished_machine_is_lost_only_after_proof(roost: World, state: str) -> None:
    """Two reads apart and a listing beside the sweeper's own; then the next start says so."""
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
    assert swept.followed[Verdict.MISSING] == 1
    assert "CONTAINER_LOST" in await events(roost, session)
    shown = await roost.one.get(session.session_id)
    if state == "ENDED":
        assert shown.state == ENDED
        refused = await failing(roost.one.undelete(session.session_id))
        assert refused.reason == "SESSION_STATE_CONFLICT"
        return
    kinds = [condition.type for condition in shown.conditions]
    assert (shown.state, kinds) == (PAUSED, [pb.CONDITION_TYPE_CONTAINER_LOST])
    refused = await failing(roost.one.start(min_continuity=pb.CONTINUITY_FILESYSTEM))
    assert refused.reason == "CONTINUITY_UNAVAILABLE"
    again = await roost.two.start()
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_CREATED, pb.CONTINUITY_NONE)
    assert again.session.session_id == session.session_id
    kinds = [condition.type for condition in again.session.conditions]
    assert kinds == [pb.CONDITION_TYPE_CONTAINER_LOST]


async def test_a_machine_that_the_provider_shows_destroyed_is_lost_at_once(roost: World) -> None:
    """Its own word is proof: one read, no second listing."""
    session = (await roost.one.start()).session
    await roost.destroy_behind_our_back(session)
    await roost.calls()
    await act(roost)
    assert await roost.calls() == ["list", "get"]
    assert (await roost.one.get(session.session_id)).state == PAUSED
    assert (await roost.one.start()).session.generation == 2


async def test_a_machine_that_only_a_listing_lacks_is_not_lost(behind: World, front: Front) -> None:
    """It is asked for by itself, is there, and that is the end of it."""
    session = (await behind.one.start()).session
    await behind.click_twice(session)
    front.listing = without(session.container.container_id)
    for _ in range(3):
        await behind.calls()
        assert (await act(behind)).followed[Verdict.MISSING] == 1
        assert await behind.calls() == ["list", "get"]
    assert (await behind.one.get(session.session_id)).state == ACTIVE
    assert "CONTAINER_LOST" not in await events(behind, session)
    assert await behind.counter(session) == "2"


@pytest.mark.parametrize("state", ["ACTIVE", "PAUSED"])
async def test_a_machine_taken_for_lost_that_reappears_is_taken_back(
    behind: World, front: Front, state: str
) -> None:
    """Memory and all: nothing was destroyed, and nothing created in its place."""
    session = (await behind.one.start()).session
    await behind.click_twice(session)
    if state == "PAUSED":
        await behind.one.stop(session.session_id)
    hidden = session.container.container_id
    front.listing = without(hidden)
    front.answer = gone(hidden)
    await act(behind)
    lost = await behind.one.get(session.session_id)
    assert [c.type for c in lost.conditions] == [pb.CONDITION_TYPE_CONTAINER_LOST]
    # A listing that is right and a read that is not, or the other way round, are no proof.
    front.listing = None
    seen = await fly(behind, "GET", f"/{hidden}", truth=front.truth)
    for answer in (front.answer, going(seen)):
        front.answer = answer
        await act(behind)
        assert "CONTAINER_FOUND" not in await events(behind, session)
    front.answer = None
    for _ in range(2):
        swept = await act(behind)
        assert not swept.orphans
    assert "CONTAINER_FOUND" in await events(behind, session)
    again = await behind.two.start()
    assert again.session.container.container_id == hidden
    assert again.continuity == pb.CONTINUITY_MEMORY
    assert await behind.counter(again.session) == "2"
    assert await behind.committed("create") == 1


async def test_an_orphan_from_a_cut_off_create_is_destroyed_in_the_end(roost: World) -> None:
    """The provider makes it after its row was given up: labels are all that is left of it."""
    await roost.admin.set_fault("slow_before", action="create", delay_ms=2500)
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


async def test_what_is_not_wanted_is_destroyed_also_when_its_id_was_never_recorded(
    roost: World,
) -> None:
    """It is looked for by its labels; one that is not there is done with."""
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


async def test_a_machine_whose_labels_cannot_be_read_is_never_the_one_looked_for(
    behind: World, front: Front
) -> None:
    """Its host is out of reach, so that Fly shows it without its config: it is somebody's."""
    others = (await behind.one.start("finch")).session
    await behind.one.start("wren")
    wanted = "SELECT session_id FROM sessions WHERE user_id = 'wren'"
    await sql(
        behind.one,
        f"UPDATE containers SET wanted = false, container_id = NULL WHERE session_id = ({wanted})",
    )
    hidden = others.container.container_id
    seen = await fly(behind, "GET", f"/{hidden}", truth=front.truth)

    def unreadable(listed: list[Machine]) -> list[Machine]:
        return [{**seen, "config": None, "host_status": "unreachable"}]

    front.listing = unreadable
    assert await behind.one.running.background.discarder.shot() == 0
    assert await behind.committed("destroy") == 0
    front.listing = None
    assert await behind.one.running.background.discarder.shot() == 1
    assert set(await machines(behind, truth=front.truth)) == {hidden}


async def test_a_session_that_cannot_be_followed_does_not_stop_the_others(roost: World) -> None:
    """A row that breaks the following of it: the pass goes on, and so do the next ones."""
    broken = (await roost.one.start("wren")).session
    whole = (await roost.one.start("finch")).session
    for session in (broken, whole):
        await roost.suspend_behind_our_back(session)
    await sql(
        roost.one,
        'UPDATE sessions SET policy = \'{"deepen_after": "soon"}\' WHERE session_id = %s',
        broken.session_id,
    )
    assert (await act(roost)).followed[Verdict.FELL] == 2
    assert (await roost.one.get(whole.session_id)).state == PAUSED
    assert (await act(roost)).followed[Verdict.FELL] == 1


async def test_a_shorter_interval_need_not_wait_for_the_end_of_a_longer_one(roost: World) -> None:
    """Set by a configuration that is no more: once a day, and now every minute."""
    sweeper = roost.one.running.background.sweeper

    async def shot() -> int:
        # Again where a replica's own loop, whose interval is shorter as well, was first.
        await sql(roost.one, "UPDATE sweeps SET due_at = now() + interval '1 day'")
        return len(await sweeper.shot(APP, timedelta(minutes=1), act=True))

    assert await eventually(shot) == 1
    assert await sweeper.shot(APP, timedelta(minutes=1), act=True) == []


async def test_the_turns_of_all_replicas_are_one_row_of_passes(roost: World) -> None:
    """However many loops there are, an app is listed once in an interval."""
    await roost.one.start()
    every = timedelta(hours=1)
    for replica in roost.replicas:
        assert await replica.running.background.sweeper.shot(APP, every, act=True) == []
    await sql(roost.one, "UPDATE sweeps SET due_at = now()")
    await roost.calls()
    shots = [r.running.background.sweeper.shot(APP, every, act=True) for r in roost.replicas]
    done = await asyncio.gather(*shots)
    assert sorted(len(swept) for swept in done) == [0, 1]
    assert await roost.calls() == ["list"]
