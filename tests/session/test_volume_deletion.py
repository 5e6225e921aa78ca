"""Volumes that restores created are deleted once unneeded; no other volume is ever deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from roost.session.v1 import policy_service_pb2 as policy_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1.policy_service_pb2_grpc import PolicyServiceStub
from tests.container.harness import APP, TOKEN, failing
from tests.session.harness import Replica, World, world
from tests.session.saving import HOOK, Checkpoint, client, execute, mounting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from session_service.checkpoints.retention import DeletedVolumes

pytestmark = pytest.mark.replicas(1)


@pytest.fixture
async def saving(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Every stop saves and destroys; of a key only the newest checkpoint is kept.

    The replicas run no volume passes of their own, which would interfere with those of the tests.
    """
    async with world(emulator, database_url, persistence="checkpoint", sweep="report") as running:
        request = policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(keep_checkpoints=1),
            update_mask=FieldMask(paths=["keep_checkpoints"]),
        )
        await PolicyServiceStub(running.one.channel).UpdateProjectPolicy(request, timeout=9)
        yield running


async def provider_volumes(roost: World) -> list[str]:
    """The ids of the provider's volumes, oldest first."""
    answer = await roost.http.get(
        f"{roost.emulator.api_url}/v1/apps/{APP}/volumes",
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    answer.raise_for_status()
    # Any: JSON as Fly has it.
    found: list[dict[str, Any]] = answer.json()
    going = ("scheduling_destroy", "pending_destroy", "destroying", "destroyed")
    there = [each for each in found if each["state"] not in going]
    return [str(each["id"]) for each in sorted(there, key=lambda each: str(each["created_at"]))]


def make_due(url: str) -> None:
    """Make all volumes old enough to be deleted, and due."""
    execute(
        url, "UPDATE volumes SET create_time = create_time - interval '11 minutes', due_at = now()"
    )


async def run_pass(replica: Replica, url: str) -> DeletedVolumes:
    """Make all volumes due and run one volume pass."""
    make_due(url)
    return await replica.running.background.volume_deletion.shot()


def mounted(url: str, session: pb.Session) -> str:
    """The id of the volume in the session's spec."""
    ((volume_id,),) = execute(
        url,
        "SELECT spec #>> '{mounts,0,volume_id}' FROM sessions WHERE session_id = %s",
        session.session_id,
    )
    return str(volume_id)


def recorded_volumes(url: str) -> list[str]:
    """The ids of the volumes in table `volumes`, oldest first."""
    return [row[0] for row in execute(url, "SELECT volume_id FROM volumes ORDER BY create_time")]


async def start_and_click(roost: World, session: pb.Session | None = None) -> pb.Session:
    """Start a session on a volume and click once; a saved session is restored on a new volume."""
    made = await mounting(roost) if session is None else None
    answer = await roost.one.start(spec=made)
    await roost.counter(answer.session, "/click")
    return answer.session


async def saved_session(roost: World, visits: int) -> pb.Session:
    """A session after `visits` rounds of start, click, save and destroy."""
    session = None
    for _ in range(visits):
        session = await start_and_click(roost, session)
        await roost.one.stop(session.session_id)
    assert session is not None
    return session


# --- volumes that are deleted --------------------------------------------------------------------


async def test_a_sessions_unneeded_volumes_are_deleted_and_the_needed_ones_kept(
    saving: World, database_url: str
) -> None:
    """Of four, the user's own, the checkpoint's and the mounted volume stay."""
    session = await start_and_click(saving, await saved_session(saving, 3))
    own, left, saved, current = await provider_volumes(saving)
    assert recorded_volumes(database_url) == [left, saved, current]
    assert mounted(database_url, session) == current
    done = await run_pass(saving.one, database_url)
    assert done.deleted == [left]
    assert await provider_volumes(saving) == [own, saved, current]
    assert recorded_volumes(database_url) == [saved, current]
    asked = execute(database_url, "SELECT volume_id FROM volumes WHERE failure_count > 0")
    assert asked == [(saved,)], "the provider is not asked to delete a mounted volume"
    assert await saving.counter(session) == "4"
    await saving.one.stop(session.session_id)
    again = await saving.one.start()
    assert again.outcome == pb.START_OUTCOME_RESTORED
    assert await saving.counter(again.session) == "4"


async def test_no_volume_is_deleted_before_it_is_old_enough(
    saving: World, database_url: str
) -> None:
    """The age leaves a replica the time to record the volume's use."""
    await saved_session(saving, 3)
    execute(database_url, "UPDATE volumes SET due_at = now()")
    done = await saving.one.running.background.volume_deletion.shot()
    assert (done.checked, done.deleted) == (0, [])


async def test_a_volume_is_deleted_with_the_last_row_that_needs_it(
    saving: World, database_url: str
) -> None:
    """With its checkpoint, or when the provider no longer has that checkpoint's snapshot. When the
    session is purged, all of its volumes go but the user's own.
    """
    session = await start_and_click(saving, await saved_session(saving, 2))
    own, saved, current = await provider_volumes(saving)
    assert (await run_pass(saving.one, database_url)).deleted == []
    execute(database_url, "UPDATE checkpoints SET object = 'vs_gone' WHERE state = 'READY'")
    assert (await run_pass(saving.one, database_url)).deleted == [saved]
    await saving.one.end(session.session_id)
    assert (await run_pass(saving.one, database_url)).deleted == [], (
        "the session can still be undeleted"
    )
    await saving.one.end(session.session_id, now=True)
    assert (await run_pass(saving.one, database_url)).deleted == [current]
    assert await provider_volumes(saving) == [own]
    assert recorded_volumes(database_url) == []


async def test_volumes_of_a_session_whose_rows_are_deleted_are_deleted(
    saving: World, database_url: str
) -> None:
    session = await start_and_click(saving, await saved_session(saving, 1))
    own, current = await provider_volumes(saving)
    await saving.one.end(session.session_id, now=True)
    execute(database_url, "DELETE FROM checkpoints")
    execute(database_url, "DELETE FROM sessions")
    assert (await run_pass(saving.two, database_url)).deleted == [current]
    assert await provider_volumes(saving) == [own]


# --- volumes that stay ---------------------------------------------------------------------------


async def test_a_rollback_can_be_undone_after_a_volume_pass(
    roost: World, database_url: str
) -> None:
    """The volume that the rollback replaced stays as long as its checkpoint."""
    session = await start_and_click(roost)
    saved = client(roost.one)
    await saved.create(session.session_id)
    await roost.counter(session, "/click")
    back = await saved.restore(session.session_id, number=1)
    assert await roost.counter(back.session, "/click") == "2"
    again = await saved.restore(session.session_id, number=1)
    assert await roost.counter(again.session) == "1"
    assert len(await provider_volumes(roost)) == 3
    assert (await run_pass(roost.one, database_url)).deleted == []
    first = back.rollback_checkpoint.checkpoint_id
    assert first
    undone = await saved.restore(session.session_id, checkpoint_id=first)
    assert await roost.counter(undone.session) == "2"


@pytest.mark.parametrize(
    ("kind", "action", "reason"),
    [
        ("capacity", "create", "PROVIDER_CAPACITY"),
        ("answer_lost", "volume_create", "PROVIDER_UNAVAILABLE"),
    ],
    ids=["no container", "no answer"],
)
async def test_the_next_start_finds_the_volume_of_a_failed_start(
    saving: World, database_url: str, kind: str, action: str, reason: str
) -> None:
    """The start failed between volume and container. The next start of the same generation mounts
    the volume, even if the session's spec does not name it yet.
    """
    await saved_session(saving, 1)
    await saving.admin.set_fault(kind, action=action, times=None)
    assert (await failing(saving.one.start())).reason == reason
    await saving.admin.clear_faults()
    before = await provider_volumes(saving)
    assert len(before) == 2
    assert (await run_pass(saving.one, database_url)).deleted == []
    answer = await saving.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await provider_volumes(saving) == before
    assert mounted(database_url, answer.session) == before[1]
    assert await saving.counter(answer.session) == "1"


async def test_a_mounted_volume_is_kept_and_retried_with_growing_delay(
    saving: World, database_url: str
) -> None:
    """Even if no row shows the mount: the provider refuses to delete a mounted volume."""
    session = await start_and_click(saving, await saved_session(saving, 1))
    _, current = await provider_volumes(saving)
    execute(database_url, "DELETE FROM checkpoints")
    execute(database_url, "UPDATE sessions SET spec = spec - 'mounts'")
    pauses = []
    for _ in range(3):
        assert (await run_pass(saving.one, database_url)).deleted == []
        ((left,),) = execute(
            database_url, "SELECT round(extract(epoch FROM due_at - now()) / 60) FROM volumes"
        )
        pauses.append(int(left))
    assert pauses == [1, 2, 4]
    assert recorded_volumes(database_url) == [current]
    assert await saving.counter(session) == "2"


async def test_a_volume_without_a_row_is_kept_whatever_its_name(
    saving: World, database_url: str
) -> None:
    """No row records that a restore created it."""
    session = await saved_session(saving, 1)
    made = await saving.http.post(
        f"{saving.emulator.api_url}/v1/apps/{APP}/volumes",
        json={"name": f"r{session.session_id[-10:].replace('-', '')}_0123456789_1", "size_gb": 1},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    made.raise_for_status()
    before = await provider_volumes(saving)
    await run_pass(saving.one, database_url)
    assert await provider_volumes(saving) == before


async def test_a_copy_of_the_database_deletes_nothing(
    emulator: Emulator, saving: World, database_url: str
) -> None:
    """Its rows name the same volumes, but these belong to the original installation."""
    await start_and_click(saving, await saved_session(saving, 3))
    before = await provider_volumes(saving)
    execute(database_url, "UPDATE installation SET system_identifier = 'another'")
    async with world(emulator, database_url, 1) as copy:
        done = await run_pass(copy.one, database_url)
        assert (done.checked, done.deleted) == (0, [])
    assert await provider_volumes(saving) == before
    assert len((await run_pass(saving.one, database_url)).deleted) == 1, "the original deletes it"


# --- interrupted work ----------------------------------------------------------------------------


async def test_a_volume_whose_id_was_not_recorded_is_found_by_its_name(
    saving: World, database_url: str
) -> None:
    """The replica died after the provider's answer, and its successor created a second volume. The
    one in the spec stays, also while no machine has it mounted.
    """
    session = await start_and_click(saving, await saved_session(saving, 1))
    own, current = await provider_volumes(saving)
    ((name,),) = execute(database_url, "UPDATE volumes SET volume_id = NULL RETURNING name")
    made = await saving.http.post(
        f"{saving.emulator.api_url}/v1/apps/{APP}/volumes",
        json={"name": name, "size_gb": 1},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    made.raise_for_status()
    twice = str(made.json()["id"])
    await saving.one.stop(session.session_id)
    execute(database_url, "DELETE FROM checkpoints")
    assert (await run_pass(saving.one, database_url)).deleted == [twice]
    assert await provider_volumes(saving) == [own, current]
    assert len(recorded_volumes(database_url)) == 1
    await saving.one.end(session.session_id, now=True)
    assert (await run_pass(saving.one, database_url)).deleted == [current]
    assert await provider_volumes(saving) == [own]
    assert recorded_volumes(database_url) == []


async def test_the_row_of_a_volume_that_was_never_created_is_deleted_after_some_listings(
    saving: World, database_url: str
) -> None:
    """A single listing may be stale."""
    execute(
        database_url,
        "INSERT INTO volumes (app, name, session_id, generation, checkpoint_id)"
        " VALUES (%s, 'r1_1_1', gen_random_uuid(), 1, gen_random_uuid())",
        APP,
    )
    for left in (1, 1, 0):
        assert (await run_pass(saving.one, database_url)).deleted == []
        assert len(recorded_volumes(database_url)) == left


async def test_a_pass_postpones_only_volumes_that_it_tried(
    saving: World, database_url: str
) -> None:
    """Otherwise a volume that was only read would be delayed more and more without an attempt."""
    execute(
        database_url,
        "INSERT INTO volumes (app, name, session_id, generation, checkpoint_id, create_time)"
        " SELECT %s, 'r1_1_' || n, gen_random_uuid(), 1, gen_random_uuid(), now() - interval '1 h'"
        " FROM generate_series(1, 500) n",
        APP,
    )
    assert (await saving.one.running.background.volume_deletion.shot()).checked == 10


async def test_a_provider_that_does_not_list_loses_nothing(
    saving: World, database_url: str
) -> None:
    """No row is deleted, and the volumes are tried again."""
    await start_and_click(saving, await saved_session(saving, 3))
    before = recorded_volumes(database_url)
    await saving.admin.set_fault("unavailable", action="volume_list", times=None)
    assert (await run_pass(saving.one, database_url)).deleted == []
    await saving.admin.clear_faults()
    assert recorded_volumes(database_url) == before
    assert len((await run_pass(saving.one, database_url)).deleted) == 1


async def test_a_volume_in_use_survives_a_change_of_the_spec(
    emulator: Emulator, database_url: str
) -> None:
    """The caller's spec still names the first volume; a restore has replaced it since."""
    async with world(
        emulator, database_url, 1, on_fingerprint_change="recreate_keeping_files"
    ) as roost:
        wanted = await mounting(roost, state_hook=HOOK)
        session = (await roost.one.start(spec=wanted)).session
        saved = client(roost.one)
        await saved.create(session.session_id, kind=Checkpoint.KIND_VOLUME)
        session = (await saved.restore(session.session_id, number=1)).session
        await roost.counter(session, "/click")
        await roost.in_guest(session, "sh", "-c", "echo kept > /data/notes")
        wanted.env["A"] = "2"
        answer = await roost.one.start(spec=wanted)
        assert (answer.outcome, answer.continuity) == (
            pb.START_OUTCOME_CREATED,
            pb.CONTINUITY_FILESYSTEM,
        )
        own, restored = await provider_volumes(roost)
        assert mounted(database_url, session) == restored
        assert (await run_pass(roost.one, database_url)).deleted == []
        assert await provider_volumes(roost) == [own, restored]
        assert await roost.in_guest(answer.session, "cat", "/data/notes") == "kept\n"


async def test_a_volume_whose_container_was_lost_stays_until_its_session_is_over(
    roost: World, database_url: str
) -> None:
    """It has the newest files: the checkpoint restored in its place is older."""
    session = await start_and_click(roost)
    saved = client(roost.one)
    await saved.create(session.session_id)
    session = (await saved.restore(session.session_id, number=1)).session
    assert await roost.counter(session, "/click") == "2"
    own, newest = await provider_volumes(roost)
    await roost.destroy_behind_our_back(session)
    execute(database_url, "UPDATE sessions SET verified_at = NULL")
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await roost.counter(answer.session) == "1"
    assert mounted(database_url, session) not in (own, newest)
    assert (await run_pass(roost.one, database_url)).deleted == []
    await roost.one.end(session.session_id, now=True)
    assert newest in (await run_pass(roost.one, database_url)).deleted
    assert own in await provider_volumes(roost)


async def test_a_volume_that_a_rollback_replaced_is_deleted_with_its_checkpoint(
    roost: World, database_url: str
) -> None:
    """It was saved before its container was destroyed, so the checkpoint has all of its files."""
    session = await start_and_click(roost)
    saved = client(roost.one)
    await saved.create(session.session_id)
    for _ in range(2):
        session = (await saved.restore(session.session_id, number=1)).session
    own, rolled_back, current = await provider_volumes(roost)
    assert (await run_pass(roost.one, database_url)).deleted == []
    execute(database_url, "UPDATE checkpoints SET object = 'vs_gone'")
    assert (await run_pass(roost.one, database_url)).deleted == [rolled_back]
    assert await provider_volumes(roost) == [own, current]
