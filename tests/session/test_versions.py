"""Replicas of two versions on one database: the newer one's tables, and the older one's code."""

from __future__ import annotations

import asyncio
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
import sqlalchemy as sa

from roost.agent.v1 import agent_session_service_pb2 as agent_pb
from roost.session.v1 import session_pb2 as pb
from roost.session.v1 import session_service_pb2 as rpc_pb
from session_service.storage.migrate import LOCK_TIMEOUT, upgrade
from session_service.storage.revision import MIGRATIONS, SchemaMismatch, check
from tests.eventually import eventually
from tests.session.database_faults import DEADLINE, Calls, begin_talk, check_rows, rows
from tests.session.harness import key, request_id, world
from tests.session.test_process import launch, outcome

if TYPE_CHECKING:
    from pathlib import Path

    from local.fly.emulator import Emulator
    from tests.session.harness import Replica

#: A migration as the next version may have it: a nullable column and one with a default in every
#: table, a new table, and an index that is built while replicas write.
NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", {head!r}, None, None


def upgrade() -> None:
    tables = sa.inspect(op.get_bind()).get_table_names()
    for table in tables:
        if table != "alembic_version":
            op.add_column(table, sa.Column("later_text", sa.Text))
            counted = sa.Column("later_count", sa.BigInteger, nullable=False, server_default="7")
            op.add_column(table, counted)
    op.create_table("later", sa.Column("later_id", sa.BigInteger, primary_key=True))
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
        op.create_index(
            "sessions_later", "sessions", ["later_text"], postgresql_concurrently=True
        )
"""


#: Two migrations: one that builds an index with no limit, and the one after it.
UNLIMITED = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "9998", {head!r}, None, None


def upgrade() -> None:
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")
"""
AFTER_IT = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "9998", None, None


def upgrade() -> None:
    op.execute("CREATE TABLE seen AS SELECT current_setting('lock_timeout') AS lock_timeout")
"""


def head() -> str:
    """The newest revision that this version knows."""
    return max(path.name[:4] for path in (MIGRATIONS / "versions").glob("0*.py"))


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The migrations of the next version."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9999_next.py").write_text(NEXT.format(head=head()))
    return folder


async def test_each_migration_has_the_limit_of_waits_for_locks(
    database_url: str, tmp_path: Path
) -> None:
    """Also after one that has lifted it: all statements on a table wait behind an ALTER TABLE."""
    folder = tmp_path / "migrations"
    shutil.copytree(MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "9998_unlimited.py").write_text(UNLIMITED.format(head=head()))
    (folder / "versions" / "9999_after.py").write_text(AFTER_IT)
    await asyncio.to_thread(upgrade, database_url, "head", folder)
    assert await rows(database_url, "SELECT lock_timeout FROM seen") == [(LOCK_TIMEOUT,)]


async def test_old_replicas_run_on_while_a_new_one_migrates_and_after(
    emulator: Emulator, database_url: str, newer: Path
) -> None:
    """Two new replicas migrate at once while calls run; then an old one starts."""
    async with world(emulator, database_url) as roost:
        calls, done = Calls(), asyncio.Event()
        talk = await begin_talk(roost.one, "talk")

        async def visit() -> None:
            while not done.is_set():
                await talk.say(calls)
                start = partial(roost.two.start, "robin", request_id=request_id())
                await calls.until_answered(start)

        visiting = asyncio.create_task(visit())
        both = (asyncio.to_thread(upgrade, database_url, "head", newer) for _ in range(2))
        await asyncio.gather(*both)
        done.set()
        await visiting
        await talk.check()
        # A statement over several tables may lock them in another order than the migration.
        print(f"{calls.failed} failed, the longest {calls.longest:.2f} s")
        assert calls.longest < DEADLINE
        assert await rows(database_url, "SELECT version_num FROM alembic_version") == [("9999",)]
    for migrate in (True, False):
        async with world(emulator, database_url, replicas=1, migrate=migrate) as roost:
            await _call_all(roost.one, f"talk-{migrate}")
    await check_rows(database_url)
    assert await rows(database_url, "SELECT DISTINCT later_count FROM sessions") == [(7,)]


async def _call_all(replica: Replica, name: str) -> None:
    """Every kind of statement: rows read, written, joined and given back."""
    session_id = (await replica.start(name)).session.session_id
    assert (await replica.stop(session_id)).state == pb.Session.STATE_PAUSED
    assert (await replica.resume(session_id)).outcome == pb.START_OUTCOME_RESUMED
    assert (await replica.end(session_id)).state == pb.Session.STATE_ENDED
    assert (await replica.undelete(session_id)).state == pb.Session.STATE_PAUSED
    fresh = await replica.start(name, mode=pb.START_MODE_FRESH)
    assert fresh.outcome == pb.START_OUTCOME_CREATED
    assert len(await replica.decisions(session_id)) >= 5
    listed = await replica.stub.ListSessions(rpc_pb.ListSessionsRequest(), timeout=DEADLINE)
    assert session_id in {session.session_id for session in listed.sessions}
    preview = rpc_pb.StartSessionRequest(key=key(name))
    await replica.stub.PreviewStart(rpc_pb.PreviewStartRequest(start=preview), timeout=DEADLINE)
    talk, calls = await begin_talk(replica, name), Calls()
    for _ in range(3):
        await talk.say(calls)
    await talk.check()
    fork = agent_pb.ForkAgentSessionRequest(session_id=name, at_turn=2)
    await talk.stub.ForkAgentSession(fork, timeout=DEADLINE)
    rewind = agent_pb.RewindAgentSessionRequest(session_id=name, to_turn=1)
    await talk.stub.RewindAgentSession(rewind, timeout=DEADLINE)
    context = agent_pb.GetContextRequest(session_id=name)
    assert (await talk.stub.GetContext(context, timeout=DEADLINE)).turns


async def test_a_migration_retries_while_a_table_is_in_use(
    database_url: str, newer: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Later statements would wait behind its lock: it gives up, lets them run, and tries again."""
    async with await psycopg.AsyncConnection.connect(database_url) as busy:
        await busy.execute("SELECT FROM sessions")
        work = asyncio.create_task(asyncio.to_thread(upgrade, database_url, "head", newer))
        await eventually(lambda: "a table is in use" in caplog.text, timeout=20)
        assert not await rows(database_url, "SELECT FROM sessions")
        await busy.rollback()
        await work
    assert await rows(database_url, "SELECT version_num FROM alembic_version") == [("9999",)]


@pytest.mark.parametrize("revision", ["0009", "0012"])
async def test_a_migration_that_broke_off_can_be_run_again(
    empty_database_url: str, revision: str
) -> None:
    """A migration that commits in parts: its process died while it built an index."""
    before = f"{int(revision) - 1:04}"
    await asyncio.to_thread(upgrade, empty_database_url, before)
    async with await psycopg.AsyncConnection.connect(empty_database_url) as busy:
        for table in ("sessions", "decisions"):
            await busy.execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE")
        work = asyncio.create_task(asyncio.to_thread(upgrade, empty_database_url, revision))

        async def killed() -> bool:
            return bool(
                await rows(
                    empty_database_url,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND query ILIKE '%INDEX CONCURRENTLY%'"
                    " AND pid <> pg_backend_pid()",
                )
            )

        assert await eventually(killed)
        with pytest.raises(sa.exc.SQLAlchemyError):
            await work
    found = await rows(empty_database_url, "SELECT version_num FROM alembic_version")
    assert found == [(before,)]
    await asyncio.to_thread(upgrade, empty_database_url)
    found = await rows(empty_database_url, "SELECT version_num FROM alembic_version")
    assert found == [(head(),)]
    assert not await rows(empty_database_url, "SELECT FROM pg_index WHERE NOT indisvalid")


async def test_an_older_replica_starts_on_a_newer_database_and_says_so(database_url: str) -> None:
    """Rolling the code back must be possible."""
    await rows(database_url, "UPDATE alembic_version SET version_num = '9999' RETURNING 1")
    process = await launch("migrate", ROOST_DATABASE_URL=database_url)
    status, _, err = await outcome(process)
    assert status == 0
    assert "revision 9999" in err


async def test_a_replica_on_a_current_database_does_not_import_alembic(database_url: str) -> None:
    """It reads one row. Alembic would cost every start CPU, and every replica memory."""
    prepared = (
        "import asyncio, sys\n"
        "from session_service.config import Config\n"
        "from session_service.server.replica import prepare\n"
        f"asyncio.run(prepare(Config({database_url!r})))\n"
        "print('alembic' in sys.modules)"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", prepared), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"False\n")


async def test_an_older_database_is_one_line_with_the_remedy(
    database_url: str, empty_database_url: str
) -> None:
    """With ROOST_MIGRATE=false nothing is changed."""
    await rows(database_url, "UPDATE alembic_version SET version_num = '0001' RETURNING 1")
    off = {"ROOST_MIGRATE": "false", "ROOST_SESSION_LISTEN": "127.0.0.1:0"}
    behind, empty = await asyncio.gather(
        launch(ROOST_DATABASE_URL=database_url, **off),
        launch(ROOST_DATABASE_URL=empty_database_url, **off),
    )
    for process, said in ((behind, "revision 0001"), (empty, "has no tables")):
        status, _, err = await outcome(process)
        assert (status, err.count("\n")) == (1, 1), err
        assert said in err
        assert "python -m session_service migrate" in err


async def test_a_foreign_database_is_left_alone(database_url: str) -> None:
    """Its revision is not one of Roost's numbers."""
    await rows(database_url, "UPDATE alembic_version SET version_num = 'ae10f3' RETURNING 1")
    for work in (upgrade, check):
        with pytest.raises(SchemaMismatch, match="not one of Roost's"):
            await asyncio.to_thread(work, database_url)
