"""Volumes that restores created. A row is inserted before the provider is called, and deleted when
the volume is.

A volume is deleted only because of such a row, which it matches by id or by name. A volume that
matches no row is kept, also if its name has the form of a restore's names.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from session_service.storage.database import compiled, scalar
from session_service.storage.tables import checkpoints, containers, sessions, volumes
from session_service.storage.tables.checkpoint import MOUNTED

if TYPE_CHECKING:
    from uuid import UUID

    from session_service.storage.database import Database

#: Between two checks of a volume that is needed.
NEEDED_PAUSE = timedelta(hours=1)
#: Between two tries to delete a volume: doubled with each try, from the first to the last.
FIRST_PAUSE = timedelta(minutes=1)
LAST_PAUSE = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A volume that a restore is about to create, for the container of a session's generation."""

    app: str
    name: str
    session_id: UUID
    generation: int
    checkpoint_id: UUID
    """The checkpoint whose snapshot it is created from."""


@dataclass(frozen=True, slots=True)
class DueVolume:
    """A volume whose check was due, and whether a session needs it."""

    app: str
    name: str
    session_id: UUID
    volume_id: str | None
    """None if the provider's answer was never noted."""
    needed: bool
    tries: int
    """The number of tries to delete it in a row, including this one; 0 if it is needed."""


def _bind(name: str, column: sa.Column[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=column.type)


_APP, _NAME = _bind("app", volumes.c.app), _bind("name", volumes.c.name)
_WANT = compiled(
    lambda: (
        postgresql.insert(volumes)
        .values(
            **{
                name: _bind(name, volumes.c[name])
                for name in ("app", "name", "session_id", "generation", "checkpoint_id")
            }
        )
        # An earlier try of the same start may have inserted the row.
        .on_conflict_do_update(
            index_elements=["app", "name"], set_={"generation": volumes.c.generation}
        )
        .returning(volumes.c.name)
    ),
    scalar(str),
)
_NOTE = compiled(
    lambda: (
        sa.update(volumes)
        .where(volumes.c.app == _APP, volumes.c.name == _NAME)
        .values(volume_id=_bind("volume_id", volumes.c.volume_id))
        .returning(volumes.c.name)
    ),
    scalar(str),
)
_REMOVE = compiled(
    lambda: (
        sa.delete(volumes)
        .where(volumes.c.app == _APP, volumes.c.name == _NAME)
        .returning(volumes.c.name)
    ),
    scalar(str),
)


def _mounts(table: sa.Table) -> sa.ColumnElement[str]:
    """The volume that a row's spec mounts, as the expression is written in the index."""
    return sa.literal_column(f"({table.name}.spec #>> '{MOUNTED}')", sa.Text)


def _container(*more: sa.ColumnElement[bool]) -> sa.Exists:
    """Whether a container exists that is wanted, is not known to be destroyed, and satisfies the
    conditions.
    """
    present = (containers.c.wanted, containers.c.destroy_time.is_(None))
    return sa.exists(sa.select(containers.c.session_id).where(*present, *more))


#: An ended session that cannot be started again: it has no container, and is not kept as a
#: checkpoint.
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
    """Whether the spec of a session that can be started again mounts the volume."""
    found: sa.Select[Any] = (
        sa.select(sa.literal_column("true"))
        .where(
            sa.text("sessions.spec ? 'mounts'"), _mounts(sessions) == volume_id, sa.not_(_PURGED)
        )
        # A scalar subquery with LIMIT 1 reads the index once for each volume. The planner may
        # instead compute an EXISTS for all sessions first.
        .limit(sa.literal_column("1"))
    )
    return found.correlate(volumes).scalar_subquery().is_not(None)


_GONE = containers.alias("gone")
#: The volume's container was lost while it was wanted. It was not destroyed after a save, and so
#: the volume can hold state that no checkpoint has.
_UNSAVED = sa.exists(
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
#: The first condition: a container that is not created yet needs the volume. Its start may have
#: failed after it created the volume, and the next try finds the volume by its name. As soon as the
#: container is created, the session's spec names the volume (the second condition).
_NEEDED = sa.or_(
    _container(
        containers.c.session_id == volumes.c.session_id,
        containers.c.generation == volumes.c.generation,
        containers.c.container_id.is_(None),
    ),
    _mounted(volumes.c.volume_id),
    _UNSAVED,
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
_CLAIM_DUE = compiled(
    lambda: (
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
        )
    ),
    lambda row: DueVolume(*row),
)
_VOLUME = sa.bindparam("volume_id", type_=sa.Text)
_IS_MOUNTED = compiled(lambda: sa.select(_mounted(_VOLUME)), scalar(bool))
_SAVED = compiled(
    lambda: sa.select(checkpoints.c.state == sa.text("'WRITING'"), checkpoints.c.object).where(
        checkpoints.c.app == _APP,
        sa.text("checkpoints.kind = 'VOLUME' AND checkpoints.state IN ('WRITING', 'READY')"),
        _mounts(checkpoints) == _VOLUME,
    ),
    lambda row: (bool(row[0]), row[1]),
)


async def want(database: Database, wanted: Wanted) -> None:
    """Insert the volume's row, before the provider creates the volume. If the caller dies in
    between, the volume is found by the name in the row.
    """
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
    """Note the provider's id of the volume."""
    params = {"app": wanted.app, "name": wanted.name, "volume_id": volume_id}
    await database.fetch_one(_NOTE, params)


async def claim_due(database: Database, settled: timedelta, most: int) -> list[DueVolume]:
    """Claim up to `most` volumes that are due and were wanted more than `settled` ago.

    The claim sets when each is due again: after `NEEDED_PAUSE` if it is needed, else after a pause
    that doubles with each try to delete it. No other replica gets the volume before that.
    """
    return await database.fetch_all(_CLAIM_DUE, {"settled": settled, "most": most})


async def is_mounted(database: Database, volume_id: str) -> bool:
    """Whether a session that can be started again mounts the volume."""
    return bool(await database.fetch_one(_IS_MOUNTED, {"volume_id": volume_id}))


async def saved_of(database: Database, app: str, volume_id: str) -> list[tuple[bool, str | None]]:
    """The WRITING and READY checkpoints of the volume. For each: whether it is still being written,
    and the id of its snapshot (None if it is not known yet).
    """
    return await database.fetch_all(_SAVED, {"app": app, "volume_id": volume_id})


async def remove(database: Database, app: str, name: str) -> None:
    """Delete the row of a volume that is deleted."""
    await database.fetch_one(_REMOVE, {"app": app, "name": name})
