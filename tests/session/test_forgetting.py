"""Ended sessions are forgotten in batches, by the same decision as any next action."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import psycopg
import pytest

from session_service.domain import next_action
from session_service.domain.next_action import Action, Timings
from session_service.reconcile import forgetting as reconcile
from session_service.reconcile.forgetting import Forgetting
from session_service.storage.database import Database, compiled
from session_service.storage.session import due, forgetting
from session_service.storage.session.reads import make_record, record_query
from tests.database import FILL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from uuid import UUID

    from session_service.domain.session import Record
    from session_service.storage.session.forgetting import DueEnded

TIMINGS = Timings(retention=timedelta(days=30))
RECORDS = compiled(record_query, make_record)
#: Sessions of every kind: of four, one has not ended. The times of their ends lie around the
#: retention; a part is saved on a checkpoint; the containers are gone, present, unwanted or none.
FILL = (
    """
    INSERT INTO sessions (session_id, tenant, project_id, user_id, slot, state, generation, epoch,
        pause_depth, checkpoint_id, spec, fingerprint, policy, create_time, change_time, end_time,
        purge_time, end_reason, due_at)
    SELECT md5('s' || n)::uuid, 'default', 'nest', 'u' || n, 'default',
        CASE WHEN n %% 4 = 0 THEN 'PAUSED' ELSE 'ENDED' END, 1, 3,
        (ARRAY[NULL, 'SUSPENDED', 'CHECKPOINT'])[n %% 3 + 1],
        CASE WHEN n %% 6 < 3 THEN md5('c' || n)::uuid END, '{}', '', '{}',
        now() - interval '90 days', now() - interval '1 day' * (n %% 60),
        CASE WHEN n %% 5 > 0 THEN now() - interval '1 day' * (n %% 60) END,
        CASE WHEN n %% 2 = 0 THEN now() + interval '1 day' * (n %% 3 - 1) END,
        CASE WHEN n %% 7 = 0 THEN 'CREATE_FAILED' ELSE 'EXPIRED' END,
        now() - interval '1 minute' * n
    FROM generate_series(1, %s) AS n""",
    """
    INSERT INTO containers (session_id, generation, name, app, container_id, state, wanted,
        create_time, destroy_time)
    SELECT md5('s' || n)::uuid, g, 'roost-' || n || '-' || g, 'birds', 'm' || n || '-' || g,
        'STARTED', n %% 4 < 2, now() - interval '90 days',
        CASE WHEN g = 0 AND n %% 17 > 0 OR n %% 8 < 5 THEN now() END
    FROM generate_series(1, %s) AS n, generate_series(0, 1) AS g WHERE n %% 11 > 0""",
    """
    INSERT INTO session_events (session_id, sequence, type, state, generation)
    SELECT md5('s' || n)::uuid, e, 'STARTED', 'ACTIVE', 1
    FROM generate_series(1, %s) AS n, generate_series(1, 2) AS e""",
)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """The rows of 900 sessions."""
    async with Database(database_url, max_size=4) as opened:
        async with opened.connection(FILL_SECONDS) as connection:
            for statement in FILL:
                await connection.execute(statement.encode(), [900])
        yield opened


async def records(database: Database) -> dict[UUID, Record]:
    """All sessions with their containers."""
    found = await database.fetch_all(RECORDS, {})
    return {record.session.session_id: record for record in found}


async def count(database: Database, query: str) -> int:
    """The number that this query counts."""
    async with database.connection() as connection:
        row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    number: int = row[0]
    return number


async def test_a_batch_decides_as_the_next_step_of_each_session(database: Database) -> None:
    """It forgets, defers or leaves for a purge exactly those; all others stay as they are."""
    before = await records(database)
    present = {
        row.container.session_id
        for row in before.values()
        if row.container is not None and row.container.destroy_time is None
    }
    steps = {key: next_action.next_step(record, TIMINGS) for key, record in before.items()}
    work = Forgetting(database, TIMINGS)
    while await work.batch():
        pass
    after = await records(database)
    seen: set[str] = set()
    for key, record in before.items():
        step, kept = steps[key], after.get(key)
        if record.session.state.value != "ENDED":
            assert kept is not None
            assert kept.session == record.session
            seen.add("not ended")
        elif step.action is Action.PURGE:
            assert kept is not None
            assert kept.session == record.session
            assert key in work.to_purge
            seen.add("purge")
        elif not step.due(record.now):
            assert kept is not None
            assert kept.session.due_at == step.time
            seen.add("later")
        elif kept is not None:
            assert kept.session.due_at is not None
            assert kept.session.due_at > record.now + reconcile.FORGET_PAUSE / 2
            seen.add("a container may exist")
        else:
            assert key not in present
            seen.add("forgotten")
    assert seen == {"not ended", "purge", "later", "a container may exist", "forgotten"}
    assert work.take_count() == len(before) - len(after)
    assert work.take_count() == 0
    for table in ("containers", "session_events"):
        left = f"SELECT count(DISTINCT session_id) FROM {table}"
        assert await count(database, left) <= len(after)


def epochs_of(found: Sequence[DueEnded]) -> dict[UUID, int]:
    return {each.session_id: each.epoch for each in found}


async def test_a_session_that_changed_since_it_was_read_is_not_forgotten(
    database: Database,
) -> None:
    """An undelete advances its epoch: neither a batch nor a deferral writes to it."""
    found = [
        each
        for each in await forgetting.find(database)
        if next_action.ended_step(each.facts, TIMINGS).action is Action.FORGET
    ]
    async with database.connection() as connection:
        await connection.execute("UPDATE sessions SET epoch = epoch + 1, due_at = NULL")
    assert await forgetting.forget(database, epochs_of(found)) == set()
    times = [each.now + timedelta(days=1) for each in found]
    assert await forgetting.defer(database, found, times) == 0


async def test_replicas_neither_wait_for_each_other_nor_defer_what_another_one_has(
    database: Database, database_url: str
) -> None:
    """Rows that are locked elsewhere stay as they are, and are due at once afterwards."""
    found = await forgetting.find(database)
    ids = [each.session_id for each in found]
    locked = "SELECT 1 FROM sessions WHERE session_id = ANY(%s) FOR UPDATE"
    # Not a connection of the pool: the server would end a transaction that is idle for 5 s.
    async with await psycopg.AsyncConnection.connect(database_url) as other:
        await other.execute(locked.encode(), [ids])
        assert await forgetting.forget(database, epochs_of(found)) == set()
        assert await forgetting.defer(database, found, [each.now for each in found]) == 0
        work = Forgetting(database, TIMINGS)
        assert not await work.batch()
    assert {each.session_id: each.due_at for each in await forgetting.find(database)} == {
        each.session_id: each.due_at for each in found
    }


async def test_a_batch_that_fails_is_logged_and_ends_nothing_else(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that this version cannot read: the batches end, and no error comes out."""
    async with database.connection() as connection:
        await connection.execute(
            b"UPDATE sessions SET end_reason = 'OF_A_LATER_VERSION' WHERE state = 'ENDED'"
        )
    await Forgetting(database, TIMINGS).go_on()
    assert "could not be forgotten" in caplog.text


async def test_sessions_that_ended_do_not_hold_others_back(database: Database) -> None:
    """However many of them were due before: a claim takes only sessions that have not ended, and
    the ended ones are found among a bounded number of due ones.
    """
    async with database.connection() as connection:
        await connection.execute("UPDATE sessions SET due_at = now() - interval '9 days'"
                                 " WHERE state = 'ENDED'")  # fmt: skip
    claimed = await due.claim(database, 16, timedelta(seconds=30))
    assert len(claimed) == 16
    assert {record.session.state.value for record in claimed} == {"PAUSED"}
    found = await forgetting.find(database)
    ids = [each.session_id for each in found]
    these = await due.claim_these(database, ids, 5, timedelta(seconds=30))
    assert len(these) == 5
    assert {record.session.session_id for record in these} <= set(ids)
    again = await due.claim_these(database, ids, len(ids), timedelta(seconds=30))
    assert not {r.session.session_id for r in these} & {r.session.session_id for r in again}


async def test_the_plans_do_not_read_what_they_skip(database: Database) -> None:
    """The claim goes by the index of due sessions that have not ended."""
    async with database.connection() as connection:
        await connection.execute("ANALYZE sessions, containers")
        await connection.execute("SET enable_seqscan = off")
        for mode in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET plan_cache_mode = {mode}".encode())
            statement = due._CLAIM
            params = {**statement.constants, "most": 16, "hold": timedelta(seconds=30)}
            cursor = await connection.execute(f"EXPLAIN {statement.sql}".encode(), params)
            plan = "\n".join(row[0] for row in await cursor.fetchall())
            assert "sessions_due_live" in plan, plan
