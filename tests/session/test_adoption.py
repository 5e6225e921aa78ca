"""import-preview-sessions: each row of an older platform becomes a session, once."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import psycopg
import pytest

from container_service.main import serve as serve_containers
from roost.session.v1 import session_pb2 as pb
from session_service.adoption.staging import LOCK
from tests.cases import each
from tests.container.harness import APP, UNPACED, config_for
from tests.session.adoption import Row, adopt, contents, fill, fly, machine, rows_of
from tests.session.harness import request_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.fly.emulator import Emulator
    from tests.session.harness import World

pytestmark = pytest.mark.replicas(1)

JSON = ("--report", "json")
OFFLINE = ("--offline", *JSON)
A, B, C, D, E = (f"{letter * 14}" for letter in "abcde")


@pytest.fixture
async def target(emulator: Emulator) -> AsyncIterator[str]:
    """The address of a container_service for the import."""
    async with serve_containers(config_for(emulator, fly_rate_share=UNPACED)) as running:
        yield running.target


# --- rows -----------------------------------------------------------------------------------


async def test_the_newest_of_five_rows_of_a_project_becomes_the_live_session(
    database_url: str,
) -> None:
    """By last activity, creation, id. The others are ENDED, and purged after a grace period."""
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


async def test_a_dry_run_reports_the_same_and_changes_nothing(
    database_url: str, empty_database_url: str
) -> None:
    """Neither Roost's database nor the older platform's changes."""
    rows = [Row(machine=A), Row(machine=B), Row("ended", user="robin"), Row("odd", user="finch")]
    await fill(empty_database_url, rows)
    before = [await contents(url) for url in (database_url, empty_database_url)]
    options = ("--from-url", empty_database_url, *OFFLINE)
    dry = await adopt(database_url, *options, "--dry-run")
    assert [await contents(url) for url in (database_url, empty_database_url)] == before
    real = await adopt(database_url, *options)
    assert (dry.status, real.status) == (1, 1)
    assert dry.report == real.report | {"dry_run": True}
    assert await contents(database_url) != before[0], (
        "the real run changes it: the comparison works"
    )


async def test_a_second_run_changes_nothing(database_url: str) -> None:
    """Neither does a run with a CSV copy of the table: session ids are derived from row ids."""
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


async def test_a_session_that_retention_deleted_is_not_imported_again(database_url: str) -> None:
    """Its decision stays and still names it."""
    await fill(database_url, [Row(machine=A)])
    await adopt(database_url, *OFFLINE)
    await rows_of(database_url, "DELETE FROM sessions")
    again = await adopt(database_url, *OFFLINE)
    assert again.results == {"THERE_ALREADY": 1}
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")


async def test_many_rows_are_imported_in_batches(database_url: str) -> None:
    """More rows than one transaction or one report page takes: each is imported once."""
    head = "id,project_id,user_id,status,machine_id,created_at\n"
    rows = [f"{n},p{n // 3},u,active,m{n},2026-01-01T00:{n % 3:02}:00" for n in range(3600)]
    data = head + "\n".join(rows)
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert outcome.results == {"ACTIVE": 1200, "SUPERSEDED": 2400}
    reported = [int(row["row"]) for row in outcome.report["rows"]]
    assert reported == [n for n in range(3600) if n % 3 != 2]
    query = "SELECT count(*), count(DISTINCT (project_id, state)) FROM sessions"
    assert await rows_of(database_url, query) == [(3600, 2400)]


async def test_two_imports_do_not_write_at_once(database_url: str) -> None:
    """The second import fails and writes nothing; a dry run may run at the same time."""
    await fill(database_url, [Row(machine=A)])
    async with await psycopg.AsyncConnection.connect(database_url, autocommit=True) as other:
        await other.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        second = await adopt(database_url, *OFFLINE)
        assert (second.status, second.err.count("\n")) == (2, 1)
        assert "another import" in second.err
        assert (await adopt(database_url, *OFFLINE, "--dry-run")).status == 0
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")


async def test_the_rows_of_a_second_table_need_a_source_name(database_url: str) -> None:
    """The ids of both tables count from 1: two rows of one id must not become one session."""
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
async def test_each_status_word_maps_to_a_state(
    database_url: str, word: str, state: str, depth: str | None
) -> None:
    """Known words, and words given by --status. The machine of an ended row is never destroyed."""
    await fill(database_url, [Row(word, A)])
    words = ("--status", "warm=live", "--status", "cold=ended")
    outcome = await adopt(database_url, *OFFLINE, *words)
    assert outcome.status == 0
    query = "SELECT state, pause_depth FROM sessions"
    assert await rows_of(database_url, query) == [(state, depth)]
    kept = await rows_of(database_url, "SELECT 1 FROM containers")
    assert bool(kept) is (state != "ENDED")


async def test_an_unknown_status_word_skips_its_key(database_url: str) -> None:
    """That row may be the key's newest session, so the older rows are skipped with it."""
    rows = [Row(machine=A), Row("error", B, active="2026-05-01Z"), Row("gone?", user="robin")]
    await fill(database_url, rows)
    outcome = await adopt(database_url, *OFFLINE)
    assert outcome.status == 1
    assert outcome.reasons == {"1": "NEWEST_SKIPPED", "2": "STATUS_UNKNOWN", "3": "STATUS_UNKNOWN"}
    words = ("--status", "error=skip", "--status", "gone?=skip")
    again = await adopt(database_url, *OFFLINE, *words)
    assert (again.status, again.results) == (0, {"ACTIVE": 1, "LEFT_OUT": 2})


async def test_a_machine_belongs_to_one_session(database_url: str) -> None:
    """Several rows name one machine: it must not be destroyed for a superseded session."""
    rows = [Row(machine=A, active=f"2026-03-0{day}Z") for day in (1, 2, 3)]
    # Another user's older row, and a skipped row, also name such a machine.
    rows += [Row(machine=A, user="robin", active="2026-02-01Z")]
    rows += [Row(machine=B, active="2026-01-01Z"), Row("error", B, user="finch")]
    await fill(database_url, rows)
    outcome = await adopt(database_url, *OFFLINE)
    assert outcome.results == {"ACTIVE": 1, "SUPERSEDED": 3, "SKIPPED": 2}
    assert outcome.reasons == {"4": "CONTAINER_SHARED", "6": "STATUS_UNKNOWN"}
    held = "SELECT container_id, s.state FROM containers JOIN sessions s USING (session_id)"
    assert await rows_of(database_url, held) == [(A, "ACTIVE")]
    # The same for rows that an earlier run imported.
    data = f"id,project_id,user_id,status,machine_id,created_at\n9,a,b,active,{A},2026-09-09\n"
    later = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert later.reasons == {"9": "CONTAINER_KNOWN"}


async def test_superseded_machines_can_be_kept(database_url: str) -> None:
    """They get no row in `containers`, so they are never destroyed."""
    await fill(database_url, [Row(machine=A), Row(machine=B)])
    outcome = await adopt(database_url, *OFFLINE, "--keep-machines")
    assert outcome.results == {"ACTIVE": 1, "SUPERSEDED": 1}
    assert await rows_of(database_url, "SELECT container_id FROM containers") == [(B,)]


async def test_a_key_with_a_live_session_is_skipped(roost: World, database_url: str) -> None:
    """The live session stays, and so do the machines of the skipped rows."""
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
async def test_the_machine_is_parsed_from_the_address(
    database_url: str, address: str, options: tuple[str, ...], found: tuple[str, str]
) -> None:
    """By known patterns, or by --machine-pattern."""
    data = f'id,project,user,state,url,created\n"7",nest,wren,active,{address},2026-01-01\n'
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, *options, data=data)
    assert outcome.results == {"ACTIVE": 1}
    assert await rows_of(database_url, "SELECT container_id, app FROM containers") == [found]


async def test_an_address_that_names_no_machine_is_reported(database_url: str) -> None:
    """An address with an app only names no machine, and the import does not guess."""
    data = f"id,project,user,state,url,created\n7,a,b,active,https://{APP}.fly.dev/,2026-01-01\n"
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert (outcome.status, outcome.reasons) == (1, {"7": "MACHINE_UNREADABLE"})


async def test_columns_may_have_other_names(database_url: str) -> None:
    """Known names are found in upper or lower case; others are given by --column."""
    data = f"ID,Proj,userId,status,the machine,Created_At\n7,nest,wren,active,{A},1767225600\n"
    options = ("--column", "project_id=Proj", "--column", "machine_id=the machine")
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, *options, data=data)
    assert outcome.results == {"ACTIVE": 1}
    ((created,),) = await rows_of(database_url, "SELECT create_time FROM sessions")
    assert created.isoformat().startswith("2026-01-01T00:00:00")


async def test_each_row_that_cannot_be_imported_is_reported(database_url: str) -> None:
    """Each with its reason; the good row is imported."""
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
    assert text.out.isascii(), "characters that are not printable are escaped"


# --- the provider ---------------------------------------------------------------------------


@pytest.mark.replicas(2)
async def test_an_adopted_running_machine_is_reused_and_then_proved(
    always_probing: World, database_url: str, target: str
) -> None:
    """The first start claims no continuity; later starts prove memory as for any session."""
    wild = await machine(always_probing)
    await fill(database_url, [Row(machine=wild)])
    assert (await adopt(database_url, *JSON, target=target)).results == {"ACTIVE": 1}
    first = await always_probing.one.start()
    session = first.session
    assert session.container.container_id == wild
    assert UUID(session.session_id).version == 5
    assert (first.outcome, first.continuity) == (pb.START_OUTCOME_REUSED, pb.CONTINUITY_NONE)
    assert not first.continuity_verified, "without an earlier boot id nothing is proved"
    await always_probing.click_twice(session)
    second = await always_probing.two.start(min_continuity=pb.CONTINUITY_MEMORY)
    assert (second.outcome, second.continuity) == (pb.START_OUTCOME_REUSED, pb.CONTINUITY_MEMORY)
    assert (await always_probing.one.pause(session.session_id)).state == pb.Session.STATE_PAUSED
    third = await always_probing.one.start()
    assert (third.outcome, third.continuity) == (pb.START_OUTCOME_RESUMED, pb.CONTINUITY_MEMORY)
    assert third.continuity_verified
    assert await always_probing.counter(session) == "2"
    decisions = await always_probing.one.decisions(session.session_id)
    assert decisions[-1].method == "ImportPreviewSessions"
    assert await always_probing.committed("create") == 1, "no machine but the adopted one"


async def test_an_adopted_session_has_the_state_that_the_provider_shows(
    roost: World, database_url: str, target: str
) -> None:
    """The row's status does not matter."""
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
    """The row and the older rows of its key are skipped; a later run imports them."""
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
    always_probing: World, database_url: str, target: str
) -> None:
    """It has no labels. After two reads that miss it, the whole app is listed."""
    wild = await machine(always_probing)
    await fill(database_url, [Row(machine=wild)])
    await adopt(database_url, *JSON, target=target)
    session = (await always_probing.one.start()).session
    await always_probing.admin.set_fault(
        "server_error", status=404, action="get", machine=wild, times=2
    )
    answer = await always_probing.one.start()
    assert (answer.outcome, answer.session.generation) == (pb.START_OUTCOME_REUSED, 1)
    assert not answer.continuity_verified
    assert await always_probing.committed("create") == 1
    # A machine that is really gone is found lost.
    await always_probing.admin.set_fault("machine_vanished", machine=wild)
    lost = await always_probing.one.start()
    assert (lost.outcome, lost.session.generation) == (pb.START_OUTCOME_CREATED, 2)
    assert lost.session.session_id == session.session_id


async def test_an_adopted_session_can_be_ended_undeleted_and_purged(
    roost: World, database_url: str, target: str
) -> None:
    """The live session is ended, undeleted and purged; the superseded one is purged."""
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


@each(
    ("options", "message"),
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
    database_url: str, options: tuple[str, ...], message: str
) -> None:
    """The line names the remedy and shows no secret; there is no traceback."""
    await rows_of(
        database_url,
        "CREATE TABLE IF NOT EXISTS preview_sessions (id int, project_id text, user_id text,"
        " status text, fly_machine text, created_at date)",
    )
    before = await contents(database_url)
    outcome = await adopt(database_url, *OFFLINE, *options)
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert message in outcome.err
    assert "hush" not in outcome.err
    assert await contents(database_url) == before


async def test_a_database_that_is_not_roosts_is_one_line(empty_database_url: str) -> None:
    """The line names the variable and the remedy."""
    await fill(empty_database_url, [Row(machine=A)])
    outcome = await adopt(empty_database_url, *OFFLINE)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "ROOST_DATABASE_URL" in outcome.err


async def test_a_truncated_file_imports_nothing(database_url: str) -> None:
    """Part of a table could make the wrong row the newest."""
    data = f"id,project_id,user_id,status,machine_id,created_at\n1,a,b,active,{A},2026-01-01\n2,a\n"
    outcome = await adopt(database_url, "--from-csv", "-", *OFFLINE, data=data)
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "near line 3" in outcome.err
    assert not await rows_of(database_url, "SELECT 1 FROM sessions")
