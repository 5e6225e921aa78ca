"""What a listing of the provider's is compared with, and what it taught."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.domain.session import PauseDepth
from session_service.domain.states import State
from session_service.domain.survey import Labelled, Tracked
from session_service.storage.database import compiled
from session_service.storage.rows import scalar
from session_service.storage.tables import containers, orphans, sessions, sweeps

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.storage.database import Database

#: Rows read at once.
PAGE = 1000
_TEXTS = postgresql.ARRAY(sa.Text)
_IDS = postgresql.ARRAY(postgresql.UUID(as_uuid=True))
_NUMBERS = postgresql.ARRAY(sa.BigInteger)


@dataclass(frozen=True, slots=True)
class Turn:
    """A replica's turn to look at an app: the pass's number, and the database's time."""

    number: int
    now: datetime


_APPS = compiled(
    sa.select(containers.c.app).where(containers.c.destroy_time.is_(None)).distinct(), scalar(str)
)
_ENTER = compiled(
    postgresql.insert(sweeps)
    .values(
        app=sa.bindparam("app", type_=sa.Text),
        due_at=sa.func.now() + sa.bindparam("every", type_=sa.Interval),
    )
    .on_conflict_do_nothing()
    .returning(sweeps.c.app),
    scalar(str),
)
_NEXT = sa.func.now() + sa.bindparam("every", type_=sa.Interval)
_TURN = compiled(
    sa.update(sweeps)
    .where(
        sweeps.c.app == sa.bindparam("app", type_=sa.Text),
        # Or later than any turn would be: the interval was a longer one when it was set.
        (sweeps.c.due_at <= sa.func.now()) | (sweeps.c.due_at > _NEXT),
    )
    .values(due_at=_NEXT, pass_number=sweeps.c.pass_number + 1)
    .returning(sweeps.c.pass_number, sa.func.now()),
    lambda row: Turn(row[0], row[1]),
)
# At once, whoever's turn it is: the regular passes go on when theirs comes.
_TURN_NOW = compiled(
    postgresql.insert(sweeps)
    .values(app=sa.bindparam("app", type_=sa.Text), pass_number=1)
    .on_conflict_do_update(index_elements=["app"], set_={"pass_number": sweeps.c.pass_number + 1})
    .returning(sweeps.c.pass_number, sa.func.now()),
    lambda row: Turn(row[0], row[1]),
)
_NOW = compiled(sa.select(sa.func.now()), lambda row: row[0])


def _make_tracked(row: Sequence[Any]) -> Tracked:
    values = list(row)
    values[5] = State(values[5])
    values[9] = None if values[9] is None else PauseDepth(values[9])
    return Tracked(*values)


_TRACKED = compiled(
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
        containers.c.container_id > sa.bindparam("after", type_=sa.Text),
        containers.c.destroy_time.is_(None),
    )
    .order_by(containers.c.container_id)
    .limit(PAGE),
    _make_tracked,
)
_LABELLED = compiled(
    sa.select(
        containers.c.session_id,
        containers.c.generation,
        containers.c.container_id,
        containers.c.destroy_time.is_not(None),
        containers.c.generation == sessions.c.generation,
        sessions.c.state,
        sessions.c.transition.is_not(None),
        # NULLs are passed over.
        sa.func.greatest(
            sessions.c.change_time, containers.c.create_time, containers.c.destroy_time
        ),
    )
    .join(sessions, sessions.c.session_id == containers.c.session_id)
    .where(containers.c.session_id == sa.any_(sa.bindparam("ids", type_=_IDS))),
    lambda row: Labelled(row[0], row[1], row[2], row[3], row[4], State(row[5]), *row[6:]),
)
_FENCED = (
    sa.func.unnest(sa.bindparam("ids", type_=_IDS), sa.bindparam("epochs", type_=_NUMBERS))
    .table_valued("id", "epoch", name="fenced")
    .render_derived()
)
_VERIFY = compiled(
    sa.update(sessions)
    .where(
        sessions.c.session_id == _FENCED.c.id,
        sessions.c.epoch == _FENCED.c.epoch,
        sessions.c.state == sa.text("'ACTIVE'"),
    )
    .values(verified_at=sa.bindparam("verified_at", type_=sa.DateTime(timezone=True)))
    .returning(sessions.c.epoch),
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
    _COUNTED.on_conflict_do_update(
        index_elements=["app", "container_id"],
        set_={
            "pass_number": _COUNTED.excluded.pass_number,
            # Seen in the pass before: one more running. Else it begins anew.
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
    sa.delete(orphans)
    .where(
        orphans.c.app == sa.bindparam("app", type_=sa.Text),
        orphans.c.pass_number < sa.bindparam("number", type_=sa.BigInteger),
    )
    .returning(orphans.c.container_id),
    scalar(str),
)


async def apps(database: Database) -> list[str]:
    """The apps that have containers."""
    return await database.fetch_all(_APPS, {})


async def take_turn(database: Database, app: str, every: timedelta) -> Turn | None:
    """The turn to look at the app, if its time has come and no other replica took it."""
    await database.fetch_one(_ENTER, {"app": app, "every": every})
    return await database.fetch_one(_TURN, {"app": app, "every": every})


async def take_turn_now(database: Database, app: str) -> Turn:
    """A turn to look at the app at once, beside those that come by themselves."""
    turn: Turn | None = await database.fetch_one(_TURN_NOW, {"app": app})
    assert turn is not None, "an upsert returns its row"
    return turn


async def now(database: Database) -> datetime:
    """The database's time."""
    found: datetime | None = await database.fetch_one(_NOW, {})
    assert found is not None, "a SELECT without FROM has a row"
    return found


async def tracked(database: Database, app: str) -> AsyncGenerator[list[Tracked], None]:
    """The rows of the app's containers that are not known to be gone, in pages."""
    after = ""
    while page := await database.fetch_all(_TRACKED, {"app": app, "after": after}):
        yield page
        after = page[-1].container_id


async def labelled(
    database: Database, session_ids: Iterable[UUID]
) -> dict[tuple[UUID, int], Labelled]:
    """All rows of these sessions' containers, by session and generation."""
    rows = await database.fetch_all(_LABELLED, {"ids": list(session_ids)})
    return {(row.session_id, row.generation): row for row in rows}


async def verify(database: Database, rows: Sequence[Tracked], at: datetime | None) -> None:
    """Note when these ACTIVE sessions were last seen running; None: as if never."""
    ids, epochs = [row.session_id for row in rows], [row.epoch for row in rows]
    await database.fetch_all(_VERIFY, {"ids": ids, "epochs": epochs, "verified_at": at})


async def count_orphans(
    database: Database, app: str, number: int, found: Sequence[str]
) -> Mapping[str, int]:
    """Note these orphans as seen in this pass; in how many passes running each was. Others of the
    app are forgotten.
    """
    params = {"app": app, "number": number}
    counts = await database.fetch_all(_COUNT, {**params, "containers": list(found)})
    await database.fetch_all(_CLEAR, params)
    return dict(counts)
