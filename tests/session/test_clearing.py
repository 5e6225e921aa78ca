"""Volumes that restores made are deleted once nobody needs them, and no other volume ever is."""

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
    from session_service.vault.clearing import Cleared


@pytest.fixture
async def saving(emulator: Emulator, database_url: str) -> AsyncIterator[World]:
    """Every stop saves and destroys; of a key only the newest checkpoint is kept.

    The replicas' own passes leave volumes alone, which would come between those of the tests.
    """
    async with world(emulator, database_url, persistence="checkpoint", sweep="report") as running:
        request = policy_pb.UpdateProjectPolicyRequest(
            project_id="nest",
            policy=pb.Policy(keep_checkpoints=1),
            update_mask=FieldMask(paths=["keep_checkpoints"]),
        )
        await PolicyServiceStub(running.one.channel).UpdateProjectPolicy(request, timeout=9)
        yield running


async def live(roost: World) -> list[str]:
    """The ids of the volumes that there are at the provider, oldest first."""
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


def aged(url: str) -> None:
    """Let all volumes be old enough, and due."""
    execute(url, "UPDATE volumes SET create_time = now() - interval '11 minutes', due_at = now()")


async def cleared(replica: Replica, url: str) -> Cleared:
    """A pass over volumes that are old enough."""
    aged(url)
    return await replica.running.background.clearing.shot()


def mounted(url: str, session: pb.Session) -> str:
    """The volume in the session's spec."""
    ((volume_id,),) = execute(
        url,
        "SELECT spec #>> '{mounts,0,volume_id}' FROM sessions WHERE session_id = %s",
        session.session_id,
    )
    return str(volume_id)


def rows(url: str) -> list[str]:
    """The ids of the volumes that are in a row, oldest first."""
    return [row[0] for row in execute(url, "SELECT volume_id FROM volumes ORDER BY create_time")]


async def visited(roost: World, session: pb.Session | None = None) -> pb.Session:
    """A session on a volume, after one more click; one at rest comes back on a new volume."""
    made = await mounting(roost) if session is None else None
    answer = await roost.one.start(spec=made)
    await roost.counter(answer.session, "/click")
    return answer.session


async def at_rest(roost: World, visits: int) -> pb.Session:
    """A session that was so often there, and stopped, saved and destroyed each time."""
    session = None
    for _ in range(visits):
        session = await visited(roost, session)
        await roost.one.stop(session.session_id)
    assert session is not None
    return session


# --- what goes -----------------------------------------------------------------------------------


async def test_what_a_session_left_behind_is_deleted_and_what_it_needs_is_not(
    saving: World, database_url: str
) -> None:
    """Of four volumes the user's own, the one that is saved, and the one that is mounted stay."""
    session = await visited(saving, await at_rest(saving, 3))
    own, left, saved, current = await live(saving)
    assert rows(database_url) == [left, saved, current]
    assert mounted(database_url, session) == current
    done = await cleared(saving.one, database_url)
    assert done.deleted == [left]
    assert await live(saving) == [own, saved, current]
    assert rows(database_url) == [saved, current]
    asked = execute(database_url, "SELECT volume_id FROM volumes WHERE failure_count > 0")
    assert asked == [(saved,)], "of what is mounted the provider is asked nothing"
    assert await saving.counter(session) == "4"
    await saving.one.stop(session.session_id)
    again = await saving.one.start()
    assert again.outcome == pb.START_OUTCOME_RESTORED
    assert await saving.counter(again.session) == "4"


async def test_none_goes_before_it_is_old_enough(saving: World, database_url: str) -> None:
    """Whoever has not written down what it does has that time for it."""
    await at_rest(saving, 3)
    execute(database_url, "UPDATE volumes SET due_at = now()")
    done = await saving.one.running.background.clearing.shot()
    assert (done.looked, done.deleted) == (0, [])


async def test_a_volume_goes_with_the_last_that_needs_it(saving: World, database_url: str) -> None:
    """With its checkpoint, or where the provider has that one's snapshot no more; once its session
    is destroyed for good, all of them, but the user's own.
    """
    session = await visited(saving, await at_rest(saving, 2))
    own, saved, current = await live(saving)
    assert (await cleared(saving.one, database_url)).deleted == []
    execute(database_url, "UPDATE checkpoints SET object = 'vs_gone' WHERE state = 'READY'")
    assert (await cleared(saving.one, database_url)).deleted == [saved]
    await saving.one.end(session.session_id)
    assert (await cleared(saving.one, database_url)).deleted == [], "it can be undeleted"
    await saving.one.end(session.session_id, now=True)
    assert (await cleared(saving.one, database_url)).deleted == [current]
    assert await live(saving) == [own]
    assert rows(database_url) == []


async def test_what_a_session_left_whose_rows_are_gone_goes(
    saving: World, database_url: str
) -> None:
    session = await visited(saving, await at_rest(saving, 1))
    own, current = await live(saving)
    await saving.one.end(session.session_id, now=True)
    execute(database_url, "DELETE FROM checkpoints")
    execute(database_url, "DELETE FROM sessions")
    assert (await cleared(saving.two, database_url)).deleted == [current]
    assert await live(saving) == [own]


# --- what stays ----------------------------------------------------------------------------------


async def test_a_rollback_can_be_undone_whatever_was_deleted(
    roost: World, database_url: str
) -> None:
    """The volume that was rolled back from stays as long as its checkpoint."""
    session = await visited(roost)
    saved = client(roost.one)
    await saved.create(session.session_id)
    await roost.counter(session, "/click")
    back = await saved.restore(session.session_id, number=1)
    assert await roost.counter(back.session, "/click") == "2"
    again = await saved.restore(session.session_id, number=1)
    assert await roost.counter(again.session) == "1"
    assert len(await live(roost)) == 3
    assert (await cleared(roost.one, database_url)).deleted == []
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
async def test_what_a_start_that_failed_has_made_is_found_by_the_next(
    saving: World, database_url: str, kind: str, action: str, reason: str
) -> None:
    """Between the volume and the container: the next start of the same generation mounts it, also
    where the session's spec does not name it yet.
    """
    await at_rest(saving, 1)
    await saving.admin.set_fault(kind, action=action, times=None)
    assert (await failing(saving.one.start())).reason == reason
    await saving.admin.clear_faults()
    before = await live(saving)
    assert len(before) == 2
    assert (await cleared(saving.one, database_url)).deleted == []
    answer = await saving.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await live(saving) == before
    assert mounted(database_url, answer.session) == before[1]
    assert await saving.counter(answer.session) == "1"


async def test_what_a_machine_has_is_left_to_it_and_tried_ever_more_rarely(
    saving: World, database_url: str
) -> None:
    """Whatever the rows say: the provider's refusal is the last guard."""
    session = await visited(saving, await at_rest(saving, 1))
    _, current = await live(saving)
    execute(database_url, "DELETE FROM checkpoints")
    execute(database_url, "UPDATE sessions SET spec = spec - 'mounts'")
    pauses = []
    for _ in range(3):
        assert (await cleared(saving.one, database_url)).deleted == []
        ((left,),) = execute(
            database_url, "SELECT round(extract(epoch FROM due_at - now()) / 60) FROM volumes"
        )
        pauses.append(int(left))
    assert pauses == [1, 2, 4]
    assert rows(database_url) == [current]
    assert await saving.counter(session) == "2"


async def test_what_only_has_such_a_name_is_not_ours(saving: World, database_url: str) -> None:
    """No row says that a restore made it."""
    session = await at_rest(saving, 1)
    made = await saving.http.post(
        f"{saving.emulator.api_url}/v1/apps/{APP}/volumes",
        json={"name": f"r{session.session_id[-10:].replace('-', '')}_0123456789_1", "size_gb": 1},
        headers={"authorization": f"Bearer {TOKEN}"},
    )
    made.raise_for_status()
    before = await live(saving)
    await cleared(saving.one, database_url)
    assert await live(saving) == before


async def test_a_copy_of_the_database_deletes_nothing(
    emulator: Emulator, saving: World, database_url: str
) -> None:
    """It knows the same volumes, and they are another's."""
    await visited(saving, await at_rest(saving, 3))
    before = await live(saving)
    execute(database_url, "UPDATE installation SET system_identifier = 'another'")
    async with world(emulator, database_url, 1) as copy:
        done = await cleared(copy.one, database_url)
        assert (done.looked, done.deleted) == (0, [])
    assert await live(saving) == before
    assert len((await cleared(saving.one, database_url)).deleted) == 1, "the original does"


# --- what broke off ------------------------------------------------------------------------------


async def test_a_volume_whose_id_was_never_noted_is_found_by_its_name(
    saving: World, database_url: str
) -> None:
    """Its maker died between the answer and the note, and another made one more. What is mounted
    stays, also where no machine has it now.
    """
    session = await visited(saving, await at_rest(saving, 1))
    own, current = await live(saving)
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
    assert (await cleared(saving.one, database_url)).deleted == [twice]
    assert await live(saving) == [own, current]
    assert len(rows(database_url)) == 1
    await saving.one.end(session.session_id, now=True)
    assert (await cleared(saving.one, database_url)).deleted == [current]
    assert await live(saving) == [own]
    assert rows(database_url) == []


async def test_a_volume_that_was_never_made_is_forgotten_after_some_looks(
    saving: World, database_url: str
) -> None:
    """Once might be the listing."""
    execute(
        database_url,
        "INSERT INTO volumes (app, name, session_id, generation, checkpoint_id)"
        " VALUES (%s, 'r1_1_1', gen_random_uuid(), 1, gen_random_uuid())",
        APP,
    )
    for left in (1, 1, 0):
        assert (await cleared(saving.one, database_url)).deleted == []
        assert len(rows(database_url)) == left


async def test_no_more_are_put_off_in_a_pass_than_are_tried(
    saving: World, database_url: str
) -> None:
    """Who was only looked at would wait ever longer for nothing."""
    execute(
        database_url,
        "INSERT INTO volumes (app, name, session_id, generation, checkpoint_id, create_time)"
        " SELECT %s, 'r1_1_' || n, gen_random_uuid(), 1, gen_random_uuid(), now() - interval '1 h'"
        " FROM generate_series(1, 500) n",
        APP,
    )
    assert (await saving.one.running.background.clearing.shot()).looked == 10


async def test_a_provider_that_does_not_list_loses_nothing(
    saving: World, database_url: str
) -> None:
    """Nothing is forgotten, and it is tried again."""
    await visited(saving, await at_rest(saving, 3))
    before = rows(database_url)
    await saving.admin.set_fault("unavailable", action="volume_list", times=None)
    assert (await cleared(saving.one, database_url)).deleted == []
    await saving.admin.clear_faults()
    assert rows(database_url) == before
    assert len((await cleared(saving.one, database_url)).deleted) == 1


async def test_what_a_user_works_on_goes_by_no_change_of_the_spec(
    emulator: Emulator, database_url: str
) -> None:
    """The caller names the volume that it always named; a restore put another in its place."""
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
        own, restored = await live(roost)
        assert mounted(database_url, session) == restored
        assert (await cleared(roost.one, database_url)).deleted == []
        assert await live(roost) == [own, restored]
        assert await roost.in_guest(answer.session, "cat", "/data/notes") == "kept\n"


async def test_a_volume_whose_container_was_lost_stays_until_its_session_is_over(
    roost: World, database_url: str
) -> None:
    """It has what no checkpoint has: what was restored in its place is older."""
    session = await visited(roost)
    saved = client(roost.one)
    await saved.create(session.session_id)
    session = (await saved.restore(session.session_id, number=1)).session
    assert await roost.counter(session, "/click") == "2"
    own, newest = await live(roost)
    await roost.destroy_behind_our_back(session)
    execute(database_url, "UPDATE sessions SET verified_at = NULL")
    answer = await roost.one.start()
    assert answer.outcome == pb.START_OUTCOME_RESTORED
    assert await roost.counter(answer.session) == "1"
    assert mounted(database_url, session) not in (own, newest)
    assert (await cleared(roost.one, database_url)).deleted == []
    await roost.one.end(session.session_id, now=True)
    assert newest in (await cleared(roost.one, database_url)).deleted
    assert own in await live(roost)


async def test_a_volume_that_gave_way_to_an_older_state_goes_with_its_checkpoint(
    roost: World, database_url: str
) -> None:
    """It was saved before its container was destroyed: nothing of it was lost."""
    session = await visited(roost)
    saved = client(roost.one)
    await saved.create(session.session_id)
    for _ in range(2):
        session = (await saved.restore(session.session_id, number=1)).session
    own, rolled_back, current = await live(roost)
    assert (await cleared(roost.one, database_url)).deleted == []
    execute(database_url, "UPDATE checkpoints SET object = 'vs_gone'")
    assert (await cleared(roost.one, database_url)).deleted == [rolled_back]
    assert await live(roost) == [own, current]
