"""What the database itself holds to: migrations, the fence, one live session per key."""

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

from session_service.domain.decision import Request
from session_service.domain.session import Key
from session_service.domain.states import State, Transition
from session_service.errors import StorageUnavailable
from session_service.lifecycle.intents import new_container
from session_service.storage import commits, decisions, installation, leases, sessions, transitions
from session_service.storage.assignments import NOW
from session_service.storage.commits import Opening
from session_service.storage.database import Database
from session_service.storage.decisions import NewDecision
from session_service.storage.leases import Renewal, Terms
from session_service.storage.migrate import engine_url, upgrade
from session_service.storage.tables import metadata
from session_service.storage.transitions import Change

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from session_service.domain.session import Session

KEY = Key("t", "p", "u")
TERMS = Terms(uuid4(), timedelta(seconds=10), timedelta(seconds=60))


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """An open pool."""
    async with Database(database_url, max_size=8, timeout=2) as opened:
        yield opened


def decision(request_id: object = None) -> NewDecision:
    """A decision in flight."""
    request = Request("t", "StartSession", b"hash", request_id)  # type: ignore[arg-type]
    return NewDecision(uuid4(), request, "RULE", "because")


async def opened(database: Database, made: NewDecision | None = None) -> Session | None:
    """A session that starts."""
    made = made or decision()
    session_id = uuid4()
    columns: dict[str, object] = {
        "session_id": session_id, "tenant": "t", "project_id": "p", "user_id": "u",
        "slot": "default", "state": State.STARTING, "generation": 1, "epoch": 1,
        "transition": Transition.START, "wish": None, "decision_id": made.decision_id,
        "predecessor_id": None, "spec": "{}", "fingerprint": "f", "policy": "{}",
    }  # fmt: skip
    opening = Opening(columns, TERMS, new_container(session_id, 1, "app"))
    return await commits.open_session(database, opening, made)


def test_the_migrations_make_what_the_tables_say(database_url: str) -> None:
    """`alembic check`: nothing is missing, nothing is left over."""
    engine = sa.create_engine(engine_url(database_url), poolclass=sa.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


async def test_replicas_that_start_at_once_migrate_once(empty_database_url: str) -> None:
    """The advisory lock lets one through; the rest find nothing to do."""
    await asyncio.gather(*(asyncio.to_thread(upgrade, empty_database_url) for _ in range(4)))
    async with Database(empty_database_url) as database:
        assert (await installation.read(database)).original


async def test_a_copy_of_the_database_is_not_the_installation(database: Database) -> None:
    """Bound to its cluster and its OID there, so that a restored copy knows itself for one."""
    cluster = "SELECT system_identifier::text FROM pg_control_system()"
    copied = {"'1'": False, f"({cluster}) || '/1'": False, f"({cluster})": True}
    for bound, original in copied.items():
        async with database.connection() as connection:
            await connection.execute(f"UPDATE installation SET system_identifier = {bound}")
        assert (await installation.read(database)).original is original


async def test_of_many_openings_of_a_key_one_goes_through(database: Database) -> None:
    """Rule 1: the index decides, and nothing is left of the others."""
    made = await asyncio.gather(*(opened(database) for _ in range(20)))
    assert sum(session is not None for session in made) == 1
    async with database.connection() as connection:
        for table in ("sessions", "containers", "decisions"):
            rows = await connection.execute(f"SELECT count(*) FROM {table}")
            assert await rows.fetchone() == (1,), table


async def test_a_request_id_that_is_taken_leaves_nothing_behind(database: Database) -> None:
    """Neither a session nor a container of the call that came second."""
    once = uuid4()
    await decisions.append(database, decision(once))
    assert await opened(database, decision(once)) is None
    assert await sessions.live_at(database, KEY) is None


async def test_an_older_epoch_changes_nothing(database: Database) -> None:
    """Rule 4: neither the session nor its container nor its decision."""
    session = await opened(database)
    assert session is not None
    late = Change(session.session_id, session.epoch - 1, {"loss_untold": True}, {"boot_id": "x"})
    assert await transitions.write(database, late) is None
    record = await sessions.find(database, session.session_id)
    assert record is not None
    assert record.container is not None
    assert (record.session.loss_untold, record.container.boot_id) == (False, None)


async def test_only_a_lapsed_transition_can_be_claimed_and_only_once(database: Database) -> None:
    """By the database's time; the old owner's epoch is void from then on."""
    session = await opened(database)
    assert session is not None
    claim = leases.claim(database, session.session_id, session.epoch, TERMS)
    assert await claim is None, "its owner is in time"
    lapse = Change(session.session_id, session.epoch, {"lease_until": NOW}, advance=False)
    assert await transitions.write(database, lapse)
    claims = [leases.claim(database, session.session_id, session.epoch, TERMS) for _ in range(5)]
    won = [claimed for claimed in await asyncio.gather(*claims) if claimed]
    assert [claimed.epoch for claimed in won] == [session.epoch + 1]
    mine, theirs = (session.session_id, session.epoch), (session.session_id, won[0].epoch)
    renewed = await leases.renew(database, [mine, theirs], timedelta(seconds=5))
    assert renewed == {mine: Renewal.LOST, theirs: Renewal.KEPT}


async def test_a_state_on_its_way_needs_somebody_who_brings_it_there(database: Database) -> None:
    """The database refuses a row that nobody would ever move again."""
    session = await opened(database)
    assert session is not None
    stuck = Change(session.session_id, session.epoch, {"transition": None})
    with pytest.raises(psycopg.errors.CheckViolation):
        await transitions.write(database, stuck)


async def test_a_touch_stays_a_heap_only_update(database_url: str) -> None:
    """Activity moves no indexed column, so that it costs no index write."""
    # Each backend keeps its own counts for a while: with one connection taken all is one's work.
    async with (
        Database(database_url, max_size=2) as database,
        database.connection(),
    ):
        await _touch_often(database)


async def _touch_often(database: Database) -> None:
    session = await opened(database)
    assert session is not None
    settled = {**transitions.SETTLED, "state": State.ACTIVE}
    assert await transitions.write(database, Change(session.session_id, session.epoch, settled))
    for _ in range(20):
        assert await sessions.touch(database, "t", session.session_id)
    async with database.connection() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        rows = await connection.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'"
        )
        updated, hot = await rows.fetchone() or (0, 0)
    assert updated >= 20
    assert hot >= 20


async def test_a_database_that_is_away_is_unavailable_without_its_address() -> None:
    """The error is for callers: no password, no user name, no host."""
    url = "postgresql://somebody:secret@127.0.0.1:9/roost"
    async with Database(url, timeout=0.3) as database:
        with pytest.raises(StorageUnavailable) as caught:
            await installation.read(database)
    assert "secret" not in str(caught.value)
    assert "somebody" not in str(caught.value)
