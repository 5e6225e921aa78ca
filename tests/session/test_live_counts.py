"""The kept number of a tenant's live sessions equals a count of them, at every moment."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa

from session_service.storage.database import Database
from session_service.storage.migrate import engine as migration_engine
from session_service.storage.migrate import upgrade
from session_service.storage.session import live_counts
from session_service.storage.session.commit import Quota, QuotaReached, within_quota
from session_service.storage.tables import LIVE_STATES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: The revision before the numbers.
BEFORE = "0014"
STATES = ("STARTING", "ACTIVE", "PAUSING", "PAUSED", "ENDING", "ENDED")
_INSERT = """
    INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, transition,
        generation, epoch, spec, fingerprint, policy)
    VALUES (%(id)s, %(tenant)s, 'p', %(user)s, 's', %(state)s, %(transition)s, 1, 1, '{}', '',
        '{}')
"""
_COUNTS = f"""
    SELECT tenant, count(*) FROM sessions WHERE state IN ({LIVE_STATES}) GROUP BY tenant
"""


@pytest.fixture
async def database(database_url: str, patient_database: None) -> AsyncIterator[Database]:
    """A pool on the test's database, whose statements may wait for each other."""
    async with Database(database_url, max_size=8, timeout=60) as opened:
        yield opened


def row(tenant: str, state: str) -> dict[str, object]:
    """The parameters of a new session."""
    transition = {"STARTING": "START", "PAUSING": "PAUSE", "ENDING": "END"}.get(state)
    return {
        "id": uuid4(),
        "tenant": tenant,
        "user": str(uuid4()),
        "state": state,
        "transition": transition,
    }


async def kept(connection: psycopg.AsyncConnection, tenant: str) -> int:
    """The number as the quota's check reads it."""
    cursor = await connection.execute(live_counts.COUNT.sql.encode(), {"tenant": tenant})
    found = await cursor.fetchone()
    assert found is not None
    return int(found[0])


async def check(database: Database) -> None:
    """Every number equals the count, in one snapshot."""
    async with database.transaction() as connection:
        await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        counts = dict(await (await connection.execute(_COUNTS.encode())).fetchall())
        for tenant in {"a", "b", "c", *counts}:
            assert await kept(connection, tenant) == counts.get(tenant, 0)


async def change(database: Database, dice: random.Random, ids: list[UUID]) -> None:
    """Insert, change or delete a session, in a transaction that is committed or not."""
    async with database.transaction() as connection:
        kind = dice.random()
        if kind < 0.4 or not ids:
            made = row(dice.choice("ab"), dice.choice(STATES))
            await connection.execute(_INSERT.encode(), made)
            ids.append(made["id"])  # type: ignore[arg-type]  # a UUID
        elif kind < 0.8:
            state = dice.choice(STATES)
            changed = {**row("", state), "id": dice.choice(ids)}
            await connection.execute(
                b"UPDATE sessions SET state = %(state)s, transition = %(transition)s"
                b" WHERE session_id = %(id)s",
                changed,
            )
        elif kind < 0.9:
            await connection.execute(
                b"UPDATE sessions SET last_active_time = now() WHERE session_id = %s",
                [dice.choice(ids)],
            )
        else:
            await connection.execute(
                b"DELETE FROM sessions WHERE session_id = %s", [dice.choice(ids)]
            )
        if dice.random() < 0.2:
            raise psycopg.Rollback


async def test_any_history_keeps_the_numbers(database: Database) -> None:
    """Of changes, folds and recounts at once: also between them."""
    # Seeded by pytest-randomly: --randomly-seed=N repeats the run.
    seed = random.getrandbits(32)
    dice = random.Random(seed)
    ids: list[UUID] = []

    async def changing() -> None:
        for _ in range(40):
            await change(database, dice, ids)

    async def folding() -> None:
        for _ in range(15):
            await live_counts.fold(database)
            await make_due(database)
            assert await live_counts.recount(database) == {}
            await check(database)

    await asyncio.gather(changing(), changing(), changing(), folding(), folding())
    while await live_counts.fold(database):
        pass
    async with database.connection() as connection:
        cursor = await connection.execute("SELECT count(*) FROM live_session_changes")
        assert await cursor.fetchone() == (0,)
    await check(database)


async def make_due(database: Database) -> None:
    """As if no tenant had been counted for a day."""
    async with database.connection() as connection:
        await connection.execute(
            "UPDATE live_session_counts SET check_time = now() - interval '2 days'"
        )


async def test_a_wrong_number_is_corrected_and_logged(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """With the changes that are still to be added."""
    async with database.connection() as connection:
        for _ in range(3):
            await connection.execute(_INSERT.encode(), row("a", "ACTIVE"))
        await live_counts.fold(database)
        await connection.execute(_INSERT.encode(), row("a", "PAUSED"))
        await connection.execute("UPDATE live_session_counts SET live_count = 9")
    assert await live_counts.recount(database) == {}, "counted less than a day ago"
    await make_due(database)
    assert await live_counts.recount(database) == {"a": -6}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    await check(database)


async def test_a_quota_is_exact_at_its_limit(database: Database) -> None:
    """Of transactions at once, as many succeed as there is room for, also beside folds."""
    quota = Quota("a", 10)

    async def start() -> bool:
        try:
            async with database.transaction() as connection, within_quota(connection, quota):
                await connection.execute(_INSERT.encode(), row("a", "ACTIVE"))
        except QuotaReached:
            return False
        return True

    async def fold() -> bool:
        await live_counts.fold(database)
        return False

    tries = [fold() if n % 5 == 0 else start() for n in range(50)]
    assert sum(await asyncio.gather(*tries)) == 10
    async with database.connection() as connection:
        await connection.execute("UPDATE sessions SET state = 'ENDED' WHERE tenant = 'a'")
    assert [await start() for _ in range(11)] == [True] * 10 + [False]


def test_an_upgrade_counts_the_sessions_that_there_are(empty_database_url: str) -> None:
    """Also if it is broken off after the triggers were made, and runs again."""
    engine = migration_engine(empty_database_url)
    upgrade(empty_database_url, BEFORE)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        for state in (*STATES, "ACTIVE", "PAUSED"):
            connection.execute(_INSERT.encode(), row("a", state))
        connection.execute(_INSERT.encode(), row("b", "ENDED"))
    upgrade(empty_database_url)
    with engine.begin() as again:
        again.execute(sa.text(f"UPDATE alembic_version SET version_num = '{BEFORE}'"))
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        connection.execute(_INSERT.encode(), row("a", "ACTIVE"))
    upgrade(empty_database_url)
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        found = [
            connection.execute(live_counts.COUNT.sql.encode(), {"tenant": tenant}).fetchone()
            for tenant in "ab"
        ]
    engine.dispose()
    assert found == [(7,), (0,)]
