"""Queries of the inventory pass.

They read the sessions and containers that the pass compares with the provider's list, count
orphans (containers without a row), and find containers that no session needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.domain.inventory import Labelled, Tracked
from session_service.domain.session import PauseDepth
from session_service.domain.states import State
from session_service.storage.database import Statement, compiled, scalar
from session_service.storage.session.reads import container_columns, make_container
from session_service.storage.tables import containers, orphans, sessions, sweeps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.session import Container
    from session_service.storage.database import Database


#: Rows per page.
PAGE = 1000
_TEXTS = postgresql.ARRAY(sa.Text)
_IDS = postgresql.ARRAY(postgresql.UUID(as_uuid=True))
_NUMBERS = postgresql.ARRAY(sa.BigInteger)


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass over an app that this replica has claimed: its number, and the database's time."""

    number: int
    now: datetime


# A search of the index for each app: a DISTINCT would read the entries of all containers.
_APPS = Statement(
    """
    WITH RECURSIVE each AS (
        (SELECT app FROM containers WHERE destroy_time IS NULL ORDER BY app LIMIT 1)
        UNION ALL
        SELECT (
            SELECT c.app FROM containers c WHERE c.destroy_time IS NULL AND c.app > each.app
            ORDER BY c.app LIMIT 1
        )
        FROM each WHERE each.app IS NOT NULL
    )
    SELECT app FROM each WHERE app IS NOT NULL
    """,
    {},
    scalar(str),
)
_ENTER = compiled(
    lambda: (
        postgresql.insert(sweeps)
        .values(
            app=sa.bindparam("app", type_=sa.Text),
            due_at=sa.func.now() + sa.bindparam("every", type_=sa.Interval),
        )
        .on_conflict_do_nothing()
        .returning(sweeps.c.app)
    ),
    scalar(str),
)
_NEXT = sa.func.now() + sa.bindparam("every", type_=sa.Interval)
_CLAIM_PASS = compiled(
    lambda: (
        sa.update(sweeps)
        .where(
            sweeps.c.app == sa.bindparam("app", type_=sa.Text),
            # Or later than `every` from now: the configured interval was longer when it was set.
            (sweeps.c.due_at <= sa.func.now()) | (sweeps.c.due_at > _NEXT),
        )
        .values(due_at=_NEXT, pass_number=sweeps.c.pass_number + 1)
        .returning(sweeps.c.pass_number, sa.func.now())
    ),
    lambda row: Pass(row[0], row[1]),
)
# An existing row keeps its `due_at`: the regular passes keep their schedule.
_BEGIN_PASS_NOW = compiled(
    lambda: (
        postgresql.insert(sweeps)
        .values(app=sa.bindparam("app", type_=sa.Text), pass_number=1)
        .on_conflict_do_update(
            index_elements=["app"], set_={"pass_number": sweeps.c.pass_number + 1}
        )
        .returning(sweeps.c.pass_number, sa.func.now())
    ),
    lambda row: Pass(row[0], row[1]),
)
_NOW = compiled(lambda: sa.select(sa.func.now()), lambda row: row[0])


def _make_tracked(row: Sequence[Any]) -> Tracked:
    values = list(row)
    values[5] = State(values[5])
    values[9] = None if values[9] is None else PauseDepth(values[9])
    return Tracked(*values)


_TRACKED = compiled(
    lambda: (
        sa.select(
            containers.c.session_id,
            containers.c.generation,
            sessions.c.epoch,
            containers.c.app,
            containers.c.container_id,
            sessions.c.state,
            sessions.c.transition.is_not(None),
            containers.c.generation == sessions.c.generation,
            containers.c.wanted,
            sessions.c.pause_depth,
            containers.c.boot_time,
            sessions.c.verified_at,
            sessions.c.change_time,
            containers.c.create_time,
            containers.c.cordoned,
        )
        .join(sessions, sessions.c.session_id == containers.c.session_id)
        .where(
            containers.c.app == sa.bindparam("app", type_=sa.Text),
            containers.c.container_id == sa.any_(sa.bindparam("containers", type_=_TEXTS)),
            containers.c.destroy_time.is_(None),
        )
    ),
    _make_tracked,
)
_TRACKED_IDS = compiled(
    lambda: (
        sa.select(containers.c.container_id)
        .where(
            containers.c.app == sa.bindparam("app", type_=sa.Text),
            containers.c.container_id > sa.bindparam("after", type_=sa.Text),
            containers.c.destroy_time.is_(None),
        )
        .order_by(containers.c.container_id)
        .limit(PAGE)
    ),
    scalar(str),
)
_LABELLED = compiled(
    lambda: (
        sa.select(
            containers.c.session_id,
            containers.c.generation,
            containers.c.container_id,
            containers.c.destroy_time.is_not(None),
            containers.c.generation == sessions.c.generation,
            sessions.c.state,
            sessions.c.transition.is_not(None),
            containers.c.start_time.is_not(None),
            # greatest() ignores NULLs.
            sa.func.greatest(
                sessions.c.change_time, containers.c.create_time, containers.c.destroy_time
            ),
        )
        .join(sessions, sessions.c.session_id == containers.c.session_id)
        .where(containers.c.session_id == sa.any_(sa.bindparam("ids", type_=_IDS)))
    ),
    lambda row: Labelled(row[0], row[1], row[2], row[3], row[4], State(row[5]), *row[6:]),
)
_FENCED = (
    sa.func.unnest(sa.bindparam("ids", type_=_IDS), sa.bindparam("epochs", type_=_NUMBERS))
    .table_valued("id", "epoch", name="fenced")
    .render_derived()
)
_VERIFY = compiled(
    lambda: (
        sa.update(sessions)
        .where(
            sessions.c.session_id == _FENCED.c.id,
            sessions.c.epoch == _FENCED.c.epoch,
            sessions.c.state == sa.text("'ACTIVE'"),
        )
        .values(verified_at=sa.bindparam("verified_at", type_=sa.DateTime(timezone=True)))
        .returning(sessions.c.epoch)
    ),
    scalar(int),
)
_COUNTED = postgresql.insert(orphans).from_select(
    ["app", "container_id", "pass_number"],
    sa.select(
        sa.bindparam("app", type_=sa.Text),
        sa.func.unnest(sa.bindparam("containers", type_=_TEXTS)),
        sa.bindparam("number", type_=sa.BigInteger),
    ),
)
_COUNT = compiled(
    lambda: _COUNTED.on_conflict_do_update(
        index_elements=["app", "container_id"],
        set_={
            "pass_number": _COUNTED.excluded.pass_number,
            # Seen in the previous pass: count one more. Otherwise the count starts again at 1.
            "pass_count": sa.case(
                (
                    orphans.c.pass_number == _COUNTED.excluded.pass_number - 1,
                    orphans.c.pass_count + 1,
                ),
                else_=1,
            ),
        },
    ).returning(orphans.c.container_id, orphans.c.pass_count),
    lambda row: (str(row[0]), int(row[1])),
)
_CLEAR = compiled(
    lambda: (
        sa.delete(orphans)
        .where(
            orphans.c.app == sa.bindparam("app", type_=sa.Text),
            orphans.c.container_id.in_(
                sa.select(orphans.c.container_id)
                .where(
                    orphans.c.app == sa.bindparam("app", type_=sa.Text),
                    orphans.c.pass_number < sa.bindparam("number", type_=sa.BigInteger),
                )
                .limit(PAGE)
            ),
        )
        .returning(orphans.c.container_id)
    ),
    scalar(str),
)


async def apps(database: Database) -> list[str]:
    """The apps that have containers."""
    return await database.fetch_all(_APPS, {})


async def claim_pass(database: Database, app: str, every: timedelta) -> Pass | None:
    """Claim the next pass over the app; None if it is not due yet or another replica has claimed
    it. The pass after it is due in `every`.
    """
    await database.fetch_one(_ENTER, {"app": app, "every": every})
    return await database.fetch_one(_CLAIM_PASS, {"app": app, "every": every})


async def begin_pass_now(database: Database, app: str) -> Pass:
    """Begin a pass over the app at once, in addition to the regular passes."""
    begun: Pass | None = await database.fetch_one(_BEGIN_PASS_NOW, {"app": app})
    assert begun is not None, "an upsert returns its row"
    return begun


async def now(database: Database) -> datetime:
    """The database's time."""
    found: datetime | None = await database.fetch_one(_NOW, {})
    assert found is not None, "a SELECT without FROM has a row"
    return found


async def tracked(database: Database, app: str, container_ids: Sequence[str]) -> list[Tracked]:
    """The rows of these containers of the app, without those that are known to be destroyed."""
    return await database.fetch_all(_TRACKED, {"app": app, "containers": list(container_ids)})


async def tracked_ids(database: Database, app: str) -> AsyncGenerator[list[str], None]:
    """The ids of the app's containers that have rows and are not known to be destroyed, in pages of
    at most PAGE.
    """
    after = ""
    while page := await database.fetch_all(_TRACKED_IDS, {"app": app, "after": after}):
        yield page
        after = page[-1]


async def labelled(
    database: Database, session_ids: Iterable[UUID]
) -> dict[tuple[UUID, int], Labelled]:
    """All container rows of these sessions, by session id and generation."""
    rows = await database.fetch_all(_LABELLED, {"ids": list(session_ids)})
    return {(row.session_id, row.generation): row for row in rows}


async def verify(database: Database, rows: Sequence[Tracked], at: datetime | None) -> None:
    """Note that these sessions were last seen running at this time; None removes the time. A
    session that is not ACTIVE or has another epoch by now is left out.
    """
    ids, epochs = [row.session_id for row in rows], [row.epoch for row in rows]
    await database.fetch_all(_VERIFY, {"ids": ids, "epochs": epochs, "verified_at": at})


async def count_orphans(
    database: Database, app: str, number: int, found: Sequence[str]
) -> Mapping[str, int]:
    """Note that this pass saw these orphans, and delete the rows of the app's other orphans, which
    it did not see. Returns for each container id the number of consecutive passes that saw it.
    """
    params = {"app": app, "number": number}
    counts: dict[str, int] = {}
    for some in _slices(found, PAGE):
        counts.update(await database.fetch_all(_COUNT, {**params, "containers": list(some)}))
    # Batches: after many orphans, deleting their rows must not take a statement too long.
    while len(await database.fetch_all(_CLEAR, params)) == PAGE:
        pass
    return counts


def _slices(found: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (found[begin : begin + size] for begin in range(0, len(found), size))


_UNWANTED = compiled(
    lambda: (
        sa.select(*container_columns())
        .where(sa.not_(containers.c.wanted), containers.c.destroy_time.is_(None))
        # In random order: containers that cannot be destroyed at present must not fill every batch.
        .order_by(sa.func.random())
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    ),
    make_container,
)
_DESTROYED = compiled(
    lambda: (
        sa.update(containers)
        .where(
            containers.c.session_id
            == sa.bindparam("session_id", type_=containers.c.session_id.type),
            containers.c.generation == sa.bindparam("generation", type_=sa.BigInteger),
            sa.not_(containers.c.wanted),
        )
        .values(destroy_time=sa.func.now(), state="DESTROYED")
        .returning(containers.c.generation)
    ),
    lambda row: int(row[0]),
)


async def find_unwanted(database: Database, most: int) -> list[Container]:
    """Up to `most` containers that no session needs and that are not known to be destroyed."""
    return await database.fetch_all(_UNWANTED, {"most": most})


async def note_destroyed(database: Database, session_id: UUID, generation: int) -> None:
    """Note that a container is destroyed; nothing changes if its session needs it."""
    params = {"session_id": session_id, "generation": generation}
    await database.fetch_one(_DESTROYED, params)
