"""import-preview-sessions: what an older platform left becomes sessions, and once only."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import pytest

from container_service.main import serve as serve_containers
from roost.session.v1 import session_pb2 as pb
from session_service.storage.adoption_staging import LOCK
from tests.container.harness import APP, UNPACED, config_for
from tests.session.adoption import Row, adopt, contents, fill, fly, machine, rows_of
from tests.session.harness import request_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from tests.session.harness import World

JSON = ("--report", "json")
OFFLINE = ("--offline", *JSON)
A, B, C, D, E = (f"{letter * 14}" for letter in "abcde")


@pytest.fixture
async def target(emulator: Emulator) -> AsyncIterator[str]:
    """Where a container_service of the import's own answers."""
    async with serve_containers(config_for(emulator, fly_rate_share=UNPACED)) as running:
        yield running.target


# --- which rows -----------------------------------------------------------------------------


async def test_of_five_rows_of_a_project_the_newest_is_the_session(database_url: str) -> None:
    """By last activity, then creation, then id; the others are ENDED, to be purged in grace."""
    times = ["2026-03-01Z", "2026-03-05Z", "2026-03-05Z", "2026-03-02Z", None]
    names = (A, B, C, D, E)
    rows = [Row(machine=m, active=t) for m, t in zip(names, times, strict=True)]
    await fill(database_url, rows)
    outcome = await adopt(database_url, *OFFLINE)
    assert (outcome.status, outcome.results) == (0, {"ACTIVE": 1, "SUPERSEDED": 4})
    assert [row["row"] for row in outcome.report["rows"]] == ["1", "2", "4", "5"]
    found = await rows_of(
        database_url,
        "SELECT container_id, s.state, end_reason, wanted, purge_time - s.end_time,"
        " verified_at, boot_id, destroy_time FROM sessions s JOIN containers USING (session_id)"
        " ORDER BY 1",
    )
    live = (C, "ACTIVE", None, True, None, None, None, None)
    assert [row for row in found if row[1] == "ACTIVE"] == [live]
    ended = [row for row in found if row[1] == "ENDED"]
    assert [row[0] for row in ended] == [A, B, D, E]
    assert {row[2:4] for row in ended} == {("SUPERSEDED", True)}
    assert {row[4].total_seconds() for row in ended} == {600}


async def test_a_dry_run_says_the_same_and_changes_nothing(
    database_url: str, empty_database_url: str
) -> None:
    """Neither in this database nor in the older one."""
    rows = [Row(machine=A), Row(machine=B), Row("ended", user="robin"), Row("odd", user="finch")]
    await fill(empty_database_url, rows)
    before = [await contents(url) for url in (database_url, empty_database_url)]
    options = ("--from-url", empty_database_url, *OFFLINE)
    dry = await adopt(database_url, *options, "--dry-run")
    assert [await contents(url) for url in (database_url, empty_database_url)] == before
    real = await adopt(database_url, *options)
    assert (dry.status, real.status) == (1, 1)
    assert dry.report == real.report | {"dry_run": True}
    assert await contents(database_url) != before[0], "this comparison can fail"


async def test_a_second_run_changes_nothing(database_url: str) -> None:
    """Also where it is of a copy in a file: the ids of the sessions are derived from the rows'."""
    rows = [Row(machine=A), Row(machine=B), Row("ended", user="robin"), Row(user="finch")]
    await fill(database_url, rows)
    first = await adopt(database_url, *OFFLINE)
    assert first.results == {"ACTIVE": 1, "SUPERSEDED": 1, "ENDED": 1, "EMPTY": 1}
    before = await contents(database_url)
    second = await adopt(database_url, *OFFLINE)
    assert (second.status, second.results) == (0, {"THERE_ALREADY": 4})
    lines = ["id,project_id,user_id,status,machine_id,created_at"]
    lines += [f"{n},nest,wren,active,{m},2026-01-01" for n, m in ((1, A), (2, B))]
    copied = await adopt(database_url, "--from-csv", "-", *OFFLINE, data="\n".join(lines))
    assert (copied.status, copied.results) == (0, {"THERE_ALREADY": 2})
    assert await contents(database_url) == before


async def test_what_was_forgotten_does_not_come_back(database_url: str) -> None:
    """The rows of an ended session are deleted some day; its decision still names it."""
    await fill(database_url, [Row(machine=A)])
    await adopt(database_url, *OFFLINE)
    await rows_of(database_url, "DELETE FROM sessions")
    again = await adopt(database_url, *OFFLINE)
    assert again.results == {"THERE_ALREADY": 1}
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")


async def test_many_rows_go_in_by_batches(database_url: str) -> None:
    """More than a transaction's and a report page's worth, and none twice or left over."""
    head = "id,project_id,user_id,status,machine_id,created_at\n"
    rows = [f"{n},p{n // 3},u,active,m{n},2026-01-01T00:{n % 3:02}:00" for n in range(3600)]
    data = head + "\n".join(rows)
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert outcome.results == {"ACTIVE": 1200, "SUPERSEDED": 2400}
    told = [int(row["row"]) for row in outcome.report["rows"]]
    assert told == [n for n in range(3600) if n % 3 != 2]
    query = "SELECT count(*), count(DISTINCT (project_id, state)) FROM sessions"
    assert await rows_of(database_url, query) == [(3600, 2400)]


async def test_two_imports_do_not_write_at_once(database_url: str) -> None:
    """The second is told, and writes nothing; a dry run may go on beside it."""
    await fill(database_url, [Row(machine=A)])
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
        await other.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        refused = await adopt(database_url, *OFFLINE)
        assert (refused.status, refused.err.count("\n")) == (2, 1)
        assert "another import" in refused.err
        assert (await adopt(database_url, *OFFLINE, "--dry-run")).status == 0
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")


async def test_another_platforms_rows_need_a_name_of_their_own(database_url: str) -> None:
    """Two tables count from 1: the second's rows are not taken for the first's."""
    head = "id,project_id,user_id,status,machine_id,created_at\n"
    data = f"{head}1,nest,wren,active,{A},2026-01-01\n"
    assert (await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)).status == 0
    data = f"{head}1,nest,robin,active,{B},2026-01-01\n"
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert (outcome.status, outcome.reasons) == (1, {"1": "ID_TAKEN"})
    options = ("--from-csv", "-", "--source", "second", *OFFLINE)
    assert (await adopt(database_url, *options, data=data)).results == {"ACTIVE": 1}


@pytest.mark.parametrize(
    ("word", "state", "depth"),
    [
        ("active", "ACTIVE", None),
        ("Running", "ACTIVE", None),
        ("paused", "PAUSED", "SUSPENDED"),
        ("suspended", "PAUSED", "SUSPENDED"),
        ("stopped", "PAUSED", "STOPPED"),
        ("terminated", "ENDED", "SUSPENDED"),
        ("warm", "ACTIVE", None),
        ("cold", "ENDED", "SUSPENDED"),
    ],
)
async def test_each_status(database_url: str, word: str, state: str, depth: str | None) -> None:
    """The usual words, and those that are told; nothing of an ended row's is ever destroyed."""
    await fill(database_url, [Row(word, A)])
    told = ("--status", "warm=live", "--status", "cold=ended")
    outcome = await adopt(database_url, *OFFLINE, *told)
    assert outcome.status == 0
    query = "SELECT state, pause_depth FROM sessions"
    assert await rows_of(database_url, query) == [(state, depth)]
    kept = await rows_of(database_url, "SELECT 1 FROM containers")
    assert bool(kept) is (state != "ENDED")


async def test_a_word_that_nobody_explained_holds_its_key_back(database_url: str) -> None:
    """The row may be the one that the user was last in: the older ones wait with it."""
    rows = [Row(machine=A), Row("error", B, active="2026-05-01Z"), Row("gone?", user="robin")]
    await fill(database_url, rows)
    outcome = await adopt(database_url, *OFFLINE)
    assert outcome.status == 1
    assert outcome.reasons == {"1": "NEWEST_SKIPPED", "2": "STATUS_UNKNOWN", "3": "STATUS_UNKNOWN"}
    told = ("--status", "error=skip", "--status", "gone?=skip")
    again = await adopt(database_url, *OFFLINE, *told)
    assert (again.status, again.results) == (0, {"ACTIVE": 1, "LEFT_OUT": 2})


async def test_a_machine_belongs_to_one_session(database_url: str) -> None:
    """Five rows of one machine: no superseded session may take the live one's with it."""
    rows = [Row(machine=A, active=f"2026-03-0{day}Z") for day in (1, 2, 3)]
    # Another user's older row, and one that is left out, name it too.
    rows += [Row(machine=A, user="robin", active="2026-02-01Z")]
    rows += [Row(machine=B, active="2026-01-01Z"), Row("error", B, user="finch")]
    await fill(database_url, rows)
    outcome = await adopt(database_url, *OFFLINE)
    assert outcome.results == {"ACTIVE": 1, "SUPERSEDED": 3, "SKIPPED": 2}
    assert outcome.reasons == {"4": "CONTAINER_SHARED", "6": "STATUS_UNKNOWN"}
    held = "SELECT container_id, s.state FROM containers JOIN sessions s USING (session_id)"
    assert await rows_of(database_url, held) == [(A, "ACTIVE")]
    # Also by what an earlier run imported.
    data = f"id,project_id,user_id,status,machine_id,created_at\n9,a,b,active,{A},2026-09-09\n"
    later = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert later.reasons == {"9": "CONTAINER_KNOWN"}


async def test_superseded_machines_can_be_kept(database_url: str) -> None:
    """Then they have no container's row, and nothing ever destroys them."""
    await fill(database_url, [Row(machine=A), Row(machine=B)])
    outcome = await adopt(database_url, *OFFLINE, "--keep-machines")
    assert outcome.results == {"ACTIVE": 1, "SUPERSEDED": 1}
    assert await rows_of(database_url, "SELECT container_id FROM containers") == [(B,)]


async def test_a_key_with_a_live_session_is_skipped(roost: World, database_url: str) -> None:
    """Who was quicker stays; so do the machines of the older rows."""
    session = (await roost.one.start()).session
    await fill(database_url, [Row(machine=A), Row(machine=B)])
    outcome = await adopt(database_url, *OFFLINE)
    assert (outcome.status, outcome.results) == (1, {"SKIPPED": 2})
    assert outcome.reasons == {"1": "NEWEST_SKIPPED", "2": "LIVE_SESSION_EXISTS"}
    assert session.session_id in outcome.out


# --- columns, addresses, files --------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "options", "found"),
    [
        (f"https://{A}.{APP}.fly.dev/x?y=1", (), (A, APP)),
        (f"https://{APP}.fly.dev/?fly-force-instance-id={A}", (), (A, APP)),
        (f"https://{APP}.fly.dev:443/#fly_force_instance_id%3D{A}", (), (A, APP)),
        (f"http://{A}.vm.sparrows.internal:8080/", (), (A, "sparrows")),
        (
            "https://p-m123--coop.example.test/",
            ("--machine-pattern", r"//p-(?P<machine>\w+)--(?P<app>\w+)\."),
            ("m123", "coop"),
        ),
    ],
)
async def test_the_machine_is_taken_out_of_the_address(
    database_url: str, address: str, options: tuple[str, ...], found: tuple[str, str]
) -> None:
    """By the usual patterns, or by one's own."""
    data = f'id,project,user,state,url,created\n"7",nest,wren,active,{address},2026-01-01\n'
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, *options, data=data)
    assert outcome.results == {"ACTIVE": 1}
    assert await rows_of(database_url, "SELECT container_id, app FROM containers") == [found]


async def test_an_address_that_names_no_machine_is_told(database_url: str) -> None:
    """An app alone is no machine: nothing is guessed."""
    data = f"id,project,user,state,url,created\n7,a,b,active,https://{APP}.fly.dev/,2026-01-01\n"
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert (outcome.status, outcome.reasons) == (1, {"7": "MACHINE_UNREADABLE"})


async def test_columns_of_other_names(database_url: str) -> None:
    """The usual ones are found, whatever their case; others are told."""
    data = f"ID,Proj,userId,status,the machine,Created_At\n7,nest,wren,active,{A},1767225600\n"
    options = ("--column", "project_id=Proj", "--column", "machine_id=the machine")
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, *options, data=data)
    assert outcome.results == {"ACTIVE": 1}
    ((created,),) = await rows_of(database_url, "SELECT create_time FROM sessions")
    assert created.isoformat().startswith("2026-01-01T00:00:00")


async def test_rows_that_cannot_be_taken_are_told_one_by_one(database_url: str) -> None:
    """Each with its reason, and the good one comes in."""
    lines = [
        "id,project_id,user_id,status,machine_id,created_at",
        f"1,nest,wren,active,{A},2026-01-01",
        ",nest,a,active,,2026-01-01",
        "3,,a,active,,2026-01-01",
        f"4,{'x' * 129},a,active,,2026-01-01",
        "5,nest,b,active,../../etc,2026-01-01",
        "6,nest,c,active,,yesterday",
        "7,nest,d,active,,2026-01-01",
        "7,nest,e,active,,2026-01-01",
        '8,"ne\x07st",f,active,,2026-01-01',
    ]
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data="\n".join(lines))
    assert (outcome.status, outcome.results) == (1, {"ACTIVE": 1, "EMPTY": 1, "SKIPPED": 7})
    assert [row["reason"] for row in outcome.report["rows"]] == [
        *("ID_MISSING", "KEY_MISSING", "KEY_UNREADABLE", "MACHINE_UNREADABLE"),
        *("TIME_UNREADABLE", "ID_REPEATED", "KEY_UNREADABLE"),
    ]
    text = await adopt(database_url, "--from-csv", "-", "--offline", data="\n".join(lines))
    assert "9 rows read" in text.out
    assert text.out.isascii(), "what is not printable is told as something that is"


# --- the provider ---------------------------------------------------------------------------


async def test_an_adopted_running_machine_is_used_and_then_proved(
    forgetful: World, database_url: str, target: str
) -> None:
    """The first start claims nothing of before; from then on memory is proved as anybody's."""
    wild = await machine(forgetful)
    await fill(database_url, [Row(machine=wild)])
    assert (await adopt(database_url, *JSON, target=target)).results == {"ACTIVE": 1}
    first = await forgetful.one.start()
    session = first.session
    assert session.container.container_id == wild
    assert UUID(session.session_id).version == 5
    assert (first.outcome, first.continuity) == (pb.START_OUTCOME_REUSED, pb.CONTINUITY_NONE)
    assert not first.continuity_verified, "nothing is known of before: neither kept nor lost"
    await forgetful.click_twice(session)
    second = await forgetful.two.start(min_continuity=pb.CONTINUITY_MEMORY)
    assert (second.outcome, second.continuity) == (pb.START_OUTCOME_REUSED, pb.CONTINUITY_MEMORY)
    assert (await forgetful.one.pause(session.session_id)).state == pb.Session.STATE_PAUSED
    third = await forgetful.one.start()
    assert (third.outcome, third.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert third.continuity_verified
    assert await forgetful.counter(session) == "2"
    decisions = await forgetful.one.decisions(session.session_id)
    assert decisions[-1].method == "ImportPreviewSessions"
    assert await forgetful.committed("create") == 1, "the machine that was there, and no other"


async def test_what_the_provider_shows_is_what_it_becomes(
    roost: World, database_url: str, target: str
) -> None:
    """Whatever the row's own word said."""
    running, asleep, stopped, gone = [await machine(roost) for _ in range(4)]
    for name, verb, state in ((asleep, "suspend", "suspended"), (stopped, "stop", "stopped")):
        await fly(roost, "POST", f"/{name}/{verb}")
        await fly(roost, "GET", f"/{name}/wait?state={state}&timeout=9")
    await fly(roost, "DELETE", f"/{gone}?force=true")
    names = [running, asleep, stopped, gone, "0123456789abcd", None]
    await fill(database_url, [Row("paused", n, user=f"user{i}") for i, n in enumerate(names)])
    outcome = await adopt(database_url, *JSON, target=target)
    assert (outcome.status, outcome.results) == (
        0,
        {"ACTIVE": 1, "SUSPENDED": 1, "STOPPED": 1, "EMPTY": 1, "LOST": 2},
    )
    starts = [await roost.one.start(f"user{i}") for i in range(len(names))]
    assert [start.outcome for start in starts] == [
        *(pb.START_OUTCOME_REUSED, pb.START_OUTCOME_RESUMED, pb.START_OUTCOME_RESTARTED),
        *[pb.START_OUTCOME_CREATED] * 3,
    ]
    kinds = [[condition.type for condition in start.session.conditions] for start in starts]
    lost = [pb.CONDITION_TYPE_CONTAINER_LOST]
    assert kinds[3:] == [lost, lost, []]
    assert not any(start.continuity_verified for start in starts[:3])
    assert {start.session.generation for start in starts[3:]} == {2}


async def test_a_provider_that_does_not_answer_is_no_evidence(
    roost: World, database_url: str, target: str
) -> None:
    """The row is told and waits for another run; so do the older rows of its key."""
    wild = await machine(roost)
    await fill(database_url, [Row(machine=A, active="2025-01-01Z"), Row(machine=wild)])
    alone = await adopt(database_url, *JSON)
    assert (alone.status, alone.reasons) == (1, {"1": "NEWEST_SKIPPED", "2": "PROVIDER_UNCLEAR"})
    await roost.admin.set_fault("server_error", action="get", machine=wild, times=None)
    silent = await adopt(database_url, *JSON, target=target)
    assert (silent.status, silent.reasons) == (alone.status, alone.reasons)
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")
    await roost.admin.clear_faults()
    again = await adopt(database_url, *JSON, target=target)
    assert again.results == {"ACTIVE": 1, "SUPERSEDED": 1}


async def test_absence_from_a_listing_by_labels_proves_nothing_of_an_adopted_machine(
    forgetful: World, database_url: str, target: str
) -> None:
    """It carries no labels. Two reads that miss it are answered by a listing of the whole app."""
    wild = await machine(forgetful)
    await fill(database_url, [Row(machine=wild)])
    await adopt(database_url, *JSON, target=target)
    session = (await forgetful.one.start()).session
    await forgetful.admin.set_fault("server_error", status=404, action="get", machine=wild, times=2)
    answer = await forgetful.one.start()
    assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_REUSED, 1)
    assert not answer.continuity_verified
    assert await forgetful.committed("create") == 1
    # And one that is gone indeed is found lost.
    await forgetful.admin.set_fault("machine_vanished", machine=wild)
    lost = await forgetful.one.start()
    assert (lost.outcome, lost.session.generation) == (pb.START_OUTCOME_CREATED, 2)
    assert lost.session.session_id == session.session_id


async def test_an_adopted_session_ends_comes_back_and_is_purged(
    roost: World, database_url: str, target: str
) -> None:
    """The usual path, for the live one and for one that it superseded."""
    older, newer = await machine(roost), await machine(roost)
    rows = [Row(machine=older, active="2025-01-01Z"), Row(machine=newer)]
    await fill(database_url, rows)
    outcome = await adopt(database_url, *JSON, target=target)
    (superseded,) = [row["session_id"] for row in outcome.report["rows"]]
    shown = await roost.one.get(superseded)
    assert (shown.state, shown.end_reason) == (
        pb.Session.STATE_ENDED,
        pb.END_REASON_SUPERSEDED,
    )
    session = (await roost.one.start()).session
    await roost.click_twice(session)
    assert (await roost.one.end(session.session_id)).state == pb.Session.STATE_ENDED
    assert (await roost.one.undelete(session.session_id)).state == pb.Session.STATE_PAUSED
    again = await roost.one.start(request_id=request_id())
    assert (again.outcome, again.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert await roost.counter(session) == "2"
    for session_id in (session.session_id, superseded):
        await roost.one.end(session_id, now=True)
    states = {(await fly(roost, "GET", f"/{name}"))["state"] for name in (older, newer)}
    assert states == {"destroyed"}


# --- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--column", "machine_id=nope"), "fly_machine"),
        (("--column", "wing=id"), "--column"),
        ((), "machine_id or container_url"),
        (("--table", "sparrows"), "--table"),
        (("--from-url", "mysql://u:hush@h/d"), "postgresql://"),
        (("--from-url", "postgresql://u:hush@127.0.0.1:9/d"), "127.0.0.1:9/d"),
        (("--from-url", "postgresql://u:hush@127.0.0.1:nine/d"), "no database answers"),
        (("--from-urll=postgresql://u:hush@h/d", "postgresql://u:hush@h/d"), "unrecognized"),
        (("--status", "warm=maybe"), "WORD=live"),
        (("--machine-pattern", "(?P<ship>.*)"), "(?P<machine>"),
        (("--machine-pattern", "("), "regular expression"),
        (("--from-csv", "/nowhere/at.csv"), "/nowhere/at.csv"),
        (("--from-csv", "-"), "is empty"),
    ],
)
async def test_wrong_usage_is_one_line_and_status_2(
    database_url: str, options: tuple[str, ...], told: str
) -> None:
    """It says what to do, shows no secret, and leaves no trace."""
    await rows_of(
        database_url,
        "CREATE TABLE preview_sessions (id int, project_id text, user_id text, status text,"
        " fly_machine text, created_at date)",
    )
    before = await contents(database_url)
    outcome = await adopt(database_url, *OFFLINE, *options)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert told in outcome.err
    assert "hush" not in outcome.err
    assert await contents(database_url) == before


async def test_a_database_that_is_not_roosts_is_one_line(empty_database_url: str) -> None:
    """It names the variable and what to do."""
    await fill(empty_database_url, [Row(machine=A)])
    outcome = await adopt(empty_database_url, *OFFLINE)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "ROOST_DATABASE_URL" in outcome.err


async def test_a_file_that_breaks_off_imports_nothing(database_url: str) -> None:
    """Half of a table would make the wrong row the newest."""
    data = f"id,project_id,user_id,status,machine_id,created_at\n1,a,b,active,{A},2026-01-01\n2,a\n"
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "near line 3" in outcome.err
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")
