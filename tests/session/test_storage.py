"""The rules that the database enforces: migrations, the fence, one live session per key."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg.waiting import Ready, Wait

from session_service.domain.decision import Decision, Request
from session_service.domain.session import Key
from session_service.domain.states import State, Transition
from session_service.errors import StorageUnavailable
from session_service.storage import installation
from session_service.storage.database import BoundedConnection, Database, compiled, scalar
from session_service.storage.migrate import engine as migration_engine
from session_service.storage.migrate import upgrade
from session_service.storage.session import change as changes
from session_service.storage.session import decisions, reads
from session_service.storage.session.change import NOW, Change, Renewal, Terms
from session_service.storage.session.commit import Commit, Conflict, Opening, commit
from session_service.storage.tables import metadata
from session_service.transition.changes import new_container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Generator

    from session_service.domain.session import Session

KEY = Key("t", "p", "u")
TERMS = Terms(uuid4(), timedelta(seconds=10), timedelta(seconds=60))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open pool."""
    async with Database(database_url, max_size=8, timeout=30) as opened:
        yield opened


def decision(request_id: object = None) -> Decision:
    """An unanswered decision."""
    request = Request("t", "StartSession", b"hash", request_id)  # type: ignore[arg-type]
    return Decision(uuid4(), request, "RULE", "because")


async def opened(database: Database, made: Decision | None = None) -> Session | None:
    """Commit the opening of a session; None where it conflicts."""
    made = made or decision()
    session_id = uuid4()
    columns: dict[str, object] = {
        "session_id": session_id, "tenant": "t", "project_id": "p", "user_id": "u",
        "slot": "default", "state": State.STARTING, "generation": 1, "epoch": 1,
        "transition": Transition.START, "wish": None, "decision_id": made.decision_id,
        "predecessor_id": None, "spec": "{}", "fingerprint": "f", "policy": "{}",
    }  # fmt: skip
    opening = Opening(columns, TERMS, new_container(session_id, 1, "app"))
    done = await commit(database, Commit((opening,), made, session_id))
    return None if isinstance(done, Conflict) else done.session(session_id)


def test_the_migrations_create_the_declared_tables(database_url: str) -> None:
    """`alembic check`: the tables match the metadata exactly."""
    engine = migration_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


async def test_replicas_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    """The advisory lock admits one; the others find nothing to do."""
    await asyncio.gather(*(asyncio.to_thread(upgrade, empty_database_url) for _ in range(4)))
    async with Database(empty_database_url) as database:
        assert (await installation.read(database)).original


async def test_a_statement_is_built_once_at_its_first_use(database: Database) -> None:
    """The process that imports it does not pay for it."""
    built = []

    def build() -> sa.ClauseElement:
        built.append(1)
        return sa.select(sa.bindparam("number", type_=sa.Integer) + sa.literal(1))

    statement = compiled(build, scalar(int))
    assert not built
    assert [await database.fetch_one(statement, {"number": each}) for each in (1, 2)] == [2, 3]
    assert len(built) == 1


async def test_a_copy_of_the_database_is_not_the_installation(database: Database) -> None:
    """It is bound to its cluster and database OID, so a restored copy is recognised."""
    cluster = "SELECT system_identifier::text FROM pg_control_system()"
    copied = {"'1'": False, f"({cluster}) || '/1'": False, f"({cluster})": True}
    for bound, original in copied.items():
        async with database.connection() as connection:
            await connection.execute(f"UPDATE installation SET system_identifier = {bound}")
        assert (await installation.read(database)).original is original


async def test_of_many_openings_of_a_key_one_succeeds(database: Database) -> None:
    """Rule 1: the index decides, and the losers leave no rows."""
    made = await asyncio.gather(*(opened(database) for _ in range(20)))
    assert sum(session is not None for session in made) == 1
    async with database.connection() as connection:
        for table in ("sessions", "containers", "decisions"):
            rows = await connection.execute(f"SELECT count(*) FROM {table}")
            assert await rows.fetchone() == (1,), table


async def test_a_request_id_that_is_taken_leaves_nothing_behind(database: Database) -> None:
    """The later call writes neither a session nor a container."""
    once = uuid4()
    await decisions.append(database, decision(once))
    assert await opened(database, decision(once)) is None
    assert await reads.live_at(database, KEY) is None


async def test_an_older_epoch_changes_nothing(database: Database) -> None:
    """Rule 4: neither the session nor its container nor its decision."""
    session = await opened(database)
    assert session is not None
    late = Change(session.session_id, session.epoch - 1, {"loss_untold": True}, {"boot_id": "x"})
    assert await changes.write(database, late) is None
    record = await reads.find(database, session.session_id)
    assert record is not None
    assert record.container is not None
    assert (record.session.loss_untold, record.container.boot_id) == (False, None)


async def test_only_a_lapsed_transition_can_be_claimed_and_only_once(database: Database) -> None:
    """By the database's time. The old owner's epoch is fenced from then on."""
    session = await opened(database)
    assert session is not None
    claim = changes.claim(database, session.session_id, session.epoch, TERMS)
    assert await claim is None, "its lease has not expired"
    lapse = Change(session.session_id, session.epoch, {"lease_until": NOW}, advance=False)
    assert await changes.write(database, lapse)
    claims = [changes.claim(database, session.session_id, session.epoch, TERMS) for _ in range(5)]
    won = [claimed for claimed in await asyncio.gather(*claims) if claimed]
    assert [claimed.epoch for claimed in won] == [session.epoch + 1]
    mine, theirs = (session.session_id, session.epoch), (session.session_id, won[0].epoch)
    renewed = await changes.renew(database, [mine, theirs], timedelta(seconds=5))
    assert renewed == {mine: Renewal.LOST, theirs: Renewal.KEPT}


async def test_an_intermediate_state_needs_a_transition(database: Database) -> None:
    """The database rejects a row that no pass would ever move on."""
    session = await opened(database)
    assert session is not None
    stuck = Change(session.session_id, session.epoch, {"transition": None})
    with pytest.raises(psycopg.errors.CheckViolation):
        await changes.write(database, stuck)


async def test_a_touch_stays_a_heap_only_update(database_url: str) -> None:
    """Activity changes no indexed column, so it writes no index."""
    # Each backend reports its counts after a while: on one connection all counts are this test's.
    async with (
        Database(database_url, max_size=2) as database,
        database.connection(),
    ):
        await _touch_often(database)


async def _touch_often(database: Database) -> None:
    session = await opened(database)
    assert session is not None
    settled = {**changes.SETTLED, "state": State.ACTIVE}
    assert await changes.write(database, Change(session.session_id, session.epoch, settled))
    for _ in range(20):
        assert await reads.touch(database, "t", session.session_id)
    async with database.connection() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        rows = await connection.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
        )
        updated, hot = await rows.fetchone() or (0, 0)
    assert updated >= 20
    assert hot >= 20


async def test_a_wait_for_the_server_does_not_poll(database_url: str) -> None:
    """An idle replica waits for notices on two connections. The driver would wake up in each of
    these waits ten times a second.
    """
    idle_rounds = 0

    def until_readable() -> Generator[Wait, Ready | int]:
        nonlocal idle_rounds
        while not (yield Wait.R):
            idle_rounds += 1

    async with await BoundedConnection.connect(database_url) as connection:
        # The server sends nothing, and so the wait ends when its limit shuts the socket down.
        connection.limit = 0.5
        await connection.wait(until_readable())
    assert idle_rounds == 0


async def test_a_database_that_is_away_is_unavailable_without_its_address() -> None:
    """The error goes to callers: no password, no user name, no host."""
    url = "postgresql://a-user:secret@127.0.0.1:9/roost"
    async with Database(url, timeout=0.3) as database:
        with pytest.raises(StorageUnavailable) as caught:
            await installation.read(database)
    assert "secret" not in str(caught.value)
    assert "a-user" not in str(caught.value)
