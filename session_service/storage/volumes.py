"""Volumes that restores made: wanted before they are asked for, and needed until nobody does.

A row is the only thing by which a volume is ever deleted: none is that merely has such a name.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.storage.database import compiled
from session_service.storage.rows import scalar
from session_service.storage.tables import checkpoints, containers, sessions, volumes
from session_service.storage.tables.volume import MOUNTED

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.storage.database import Database

#: Between two looks at one that is needed.
NEEDED_PAUSE = timedelta(hours=1)
#: Between two tries to delete one: doubled each time, up to the last.
FIRST_PAUSE = timedelta(minutes=1)
LAST_PAUSE = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume that a restore wants, of this name, for a session's generation."""

    app: str
    name: str
    session_id: UUID
    generation: int
    checkpoint_id: UUID
    """What it is made of."""


@dataclass(frozen=True, slots=True)
class Looked:
    """A volume that was looked at, and whether its session needs it."""

    app: str
    name: str
    session_id: UUID
    volume_id: str | None
    """None where the provider's answer was never noted."""
    needed: bool
    tries: int
    """How often it was to be deleted, this time included."""


def _bind(name: str, column: sa.Column[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=column.type)


_APP, _NAME = _bind("app", volumes.c.app), _bind("name", volumes.c.name)
_WANT = compiled(
    postgresql.insert(volumes)
    .values(
        **{
            name: _bind(name, volumes.c[name])
            for name in ("app", "name", "session_id", "generation", "checkpoint_id")
        }
    )
    # A start that failed wanted it already.
    .on_conflict_do_update(
        index_elements=["app", "name"], set_={"generation": volumes.c.generation}
    )
    .returning(volumes.c.name),
    scalar(str),
)
_NOTE = compiled(
    sa.update(volumes)
    .where(volumes.c.app == _APP, volumes.c.name == _NAME)
    .values(volume_id=_bind("volume_id", volumes.c.volume_id))
    .returning(volumes.c.name),
    scalar(str),
)
_REMOVE = compiled(
    sa.delete(volumes)
    .where(volumes.c.app == _APP, volumes.c.name == _NAME)
    .returning(volumes.c.name),
    scalar(str),
)


def _mounts(table: sa.Table) -> sa.ColumnElement[str]:
    """The volume that a row's spec mounts, in the words of the index."""
    return sa.literal_column(f"({table.name}.spec #>> '{MOUNTED}')", sa.Text)


def _container(*more: sa.ColumnElement[bool]) -> sa.Exists:
    """Whether there is such a container that is wanted and not known to be gone."""
    there = (containers.c.wanted, containers.c.destroy_time.is_(None))
    return sa.exists(sa.select(containers.c.session_id).where(*there, *more))


#: A session that is over and whose container is gone comes back by nothing but a checkpoint.
_PURGED = sa.and_(
    sessions.c.state == sa.text("'ENDED'"),
    sa.not_(
        sessions.c.checkpoint_id.is_not(None)
        & (sa.func.coalesce(sessions.c.pause_depth, "") == sa.text("'CHECKPOINT'"))
    ),
    sa.not_(
        _container(
            containers.c.session_id == sessions.c.session_id,
            containers.c.generation == sessions.c.generation,
        )
    ),
)


def _mounted(volume_id: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Whether the volume is in the spec of a session that may come back."""
    found: sa.Select[Any] = (
        sa.select(sa.literal_column("true"))
        .where(
            sa.text("sessions.spec ? 'mounts'"), _mounts(sessions) == volume_id, sa.not_(_PURGED)
        )
        # So that the index is asked for each: an EXISTS may be worked out for all sessions first.
        .limit(sa.literal_column("1"))
    )
    return found.correlate(volumes).scalar_subquery().is_not(None)


_GONE = containers.alias("gone")
#: Its container was lost, and not destroyed because all was saved: it has what no checkpoint has.
_LAST_OF_IT = sa.exists(
    sa.select(_GONE.c.session_id)
    .join(sessions, sessions.c.session_id == _GONE.c.session_id)
    .where(
        _GONE.c.session_id == volumes.c.session_id,
        _GONE.c.generation == volumes.c.generation,
        _GONE.c.wanted,
        _GONE.c.destroy_time.is_not(None),
        sa.not_(_PURGED),
    )
    .correlate(volumes)
)
#: A container that is still to be created finds it by its name: its start may have failed between
#: the two. Where it was created, its session's spec says what it mounts.
_NEEDED = sa.or_(
    _container(
        containers.c.session_id == volumes.c.session_id,
        containers.c.generation == volumes.c.generation,
        containers.c.container_id.is_(None),
    ),
    _mounted(volumes.c.volume_id),
    _LAST_OF_IT,
)
_DUE = (
    sa.select(volumes.c.app, volumes.c.name, _NEEDED.label("needed"))
    .where(
        volumes.c.due_at <= sa.func.now(),
        volumes.c.create_time <= sa.func.now() - sa.bindparam("settled", type_=sa.Interval),
    )
    .order_by(volumes.c.due_at)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
    .with_for_update(of=volumes, skip_locked=True)
    .cte("due")
)
_SECONDS = FIRST_PAUSE.total_seconds() * sa.func.power(
    2, sa.func.least(volumes.c.failure_count, 20)
)
_GROWING = sa.func.make_interval(
    0, 0, 0, 0, 0, 0, sa.func.least(_SECONDS, LAST_PAUSE.total_seconds()), type_=sa.Interval
)
_LOOK = compiled(
    sa.update(volumes)
    .where(volumes.c.app == _DUE.c.app, volumes.c.name == _DUE.c.name)
    .values(
        due_at=sa.func.now()
        + sa.case((_DUE.c.needed, sa.literal(NEEDED_PAUSE, sa.Interval)), else_=_GROWING),
        failure_count=sa.case((_DUE.c.needed, 0), else_=volumes.c.failure_count + 1),
    )
    .returning(
        volumes.c.app,
        volumes.c.name,
        volumes.c.session_id,
        volumes.c.volume_id,
        _DUE.c.needed,
        volumes.c.failure_count,
    ),
    lambda row: Looked(*row),
)
_VOLUME = sa.bindparam("volume_id", type_=sa.Text)
_IS_MOUNTED = compiled(sa.select(_mounted(_VOLUME)), scalar(bool))
_SAVED = compiled(
    sa.select(checkpoints.c.state == sa.text("'WRITING'"), checkpoints.c.object).where(
        checkpoints.c.app == _APP,
        sa.text("checkpoints.kind = 'VOLUME' AND checkpoints.state IN ('WRITING', 'READY')"),
        _mounts(checkpoints) == _VOLUME,
    ),
    lambda row: (bool(row[0]), row[1]),
)


async def want(database: Database, wanted: Wanted) -> None:
    """Commit the want of a volume, before the provider is asked: by its name it is found again."""
    await database.fetch_one(
        _WANT,
        {
            "app": wanted.app,
            "name": wanted.name,
            "session_id": wanted.session_id,
            "generation": wanted.generation,
            "checkpoint_id": wanted.checkpoint_id,
        },
    )


async def note(database: Database, wanted: Wanted, volume_id: str) -> None:
    """Note which volume it is."""
    params = {"app": wanted.app, "name": wanted.name, "volume_id": volume_id}
    await database.fetch_one(_NOTE, params)


async def look(database: Database, settled: timedelta, most: int) -> list[Looked]:
    """Up to `most` that are due and older than `settled`, and whether each is needed. No other
    replica looks at them for a while; at one that is not needed, ever more rarely.
    """
    return await database.fetch_all(_LOOK, {"settled": settled, "most": most})


async def is_mounted(database: Database, volume_id: str) -> bool:
    """Whether a session that may come back mounts the volume."""
    return bool(await database.fetch_one(_IS_MOUNTED, {"volume_id": volume_id}))


async def saved_of(database: Database, app: str, volume_id: str) -> list[tuple[bool, str | None]]:
    """The checkpoints that were taken of the volume: whether one is still being written, and its
    snapshot.
    """
    return await database.fetch_all(_SAVED, {"app": app, "volume_id": volume_id})


async def remove(database: Database, app: str, name: str) -> None:
    """The volume is gone."""
    await database.fetch_one(_REMOVE, {"app": app, "name": name})
