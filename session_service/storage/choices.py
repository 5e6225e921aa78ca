"""Queries on what users chose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from session_service.domain.choice import Choice, Preference
from session_service.storage import offers, policies
from session_service.storage.connections import PATIENT
from session_service.storage.database import Connection, Database, compiled, one
from session_service.storage.sessions import key_parameters
from session_service.storage.tables import choice_tokens, choices, sessions
from session_service.storage.trimming import trimming

if TYPE_CHECKING:
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.domain.session import Key

_UUID = choices.c.decision_id.type

# Under the lock that the start's own change of the row holds: who came back before it is counted.
_UNTOUCHED = compiled(
    sa.select(sessions.c.session_id).where(
        sessions.c.session_id == sa.bindparam("session_id", type_=_UUID),
        sessions.c.start_count == sa.bindparam("start_count", type_=sa.BigInteger),
    ),
    lambda row: True,
)
_UNMAKE = compiled(
    sa.delete(choices)
    .where(
        choices.c.decision_id
        == sa.select(choice_tokens.c.decision_id).where(offers.HASH).scalar_subquery()
    )
    .returning(choices.c.decision_id),
    lambda row: True,
)


@dataclass(frozen=True, slots=True)
class Made:
    """A choice that a decision carries out."""

    key: Key
    choice: Choice
    session_id: UUID
    """The session that stood there when it was chosen."""
    offered: str = "[]"
    checkpoint_id: UUID | None = None
    token_hash: bytes | None = None
    """None where nobody was asked: a kept preference decided."""
    remember: Preference | None = None
    """What to keep of it as the user's preference."""
    start_count: int | None = None
    """How often that session was started when the user was asked, where a start since makes the
    answer stale: to go on with it does not put anything else in its place."""


_CHOSE = compiled(
    sa.insert(choices)
    .values(
        **{
            name: sa.bindparam(name, type_=choices.c[name].type)
            for name in (
                *("decision_id", "tenant", "project_id", "user_id", "slot", "session_id"),
                *("choice", "checkpoint_id", "offered", "asked", "remember"),
            )
        }
    )
    .returning(choices.c.decision_id),
    lambda row: True,
)


async def make(connection: Connection, made: Made, decision_id: UUID) -> bool:
    """Within the transaction that commits the decision: use the token up, write down what was
    chosen, keep the preference. False where the token was used up or expired meanwhile, or where
    somebody came back to what is to be put away: then nothing of the transaction may stay.
    """
    if made.token_hash is not None:
        # Of a try that came to nothing: it counts once.
        await one(connection, _UNMAKE, {"token_hash": made.token_hash})
        if not await offers.use(connection, made.token_hash, decision_id):
            return False
    if made.start_count is not None:
        # A start that finds it running moves no epoch, and so is no hindrance to the commit.
        seen = {"session_id": made.session_id, "start_count": made.start_count}
        if await one(connection, _UNTOUCHED, seen) is None:
            return False
    row = {
        **key_parameters(made.key),
        "decision_id": decision_id,
        "session_id": made.session_id,
        "choice": made.choice,
        "checkpoint_id": made.checkpoint_id,
        "offered": made.offered,
        "asked": made.token_hash is not None,
        "remember": made.remember is not None,
    }
    await one(connection, _CHOSE, row)
    if made.remember is not None:
        key = made.key
        await policies.prefer(connection, key.tenant, key.project_id, key.user_id, made.remember)
    return True


@dataclass(frozen=True, slots=True)
class Latest:
    """What was last chosen at a key."""

    choice: Choice
    decision_id: UUID
    create_time: datetime


_LATEST = compiled(
    sa.select(choices.c.choice, choices.c.decision_id, choices.c.create_time)
    .where(*(choices.c[name] == sa.bindparam(name, type_=sa.Text) for name in (
        "tenant", "project_id", "user_id", "slot",
    )))
    .order_by(choices.c.decision_id.desc())
    .limit(1),
    lambda row: Latest(Choice(row[0]), row[1], row[2]),
)  # fmt: skip


async def latest(database: Database, key: Key) -> Latest | None:
    """What was last chosen at the key; None where nothing ever was."""
    return await database.fetch_one(_LATEST, key_parameters(key))


@dataclass(frozen=True, slots=True)
class Tally:
    """How users chose in a time span."""

    continued: int
    """Users who were asked and chose to go on with what was there, or with a checkpoint of it."""
    fresh: int
    """Users who were asked and chose to begin anew."""
    auto_resumed: int
    """Starts that a kept preference decided so, and nobody was asked."""
    always_fresh: int


def _count(*, asked: bool, fresh: bool) -> sa.ColumnElement[int]:
    anew = choices.c.choice == sa.literal_column("'FRESH'")
    wanted = choices.c.asked if asked else sa.not_(choices.c.asked)
    return sa.func.count().filter(wanted, anew if fresh else sa.not_(anew))


_TALLY = compiled(
    sa.select(
        _count(asked=True, fresh=False),
        _count(asked=True, fresh=True),
        _count(asked=False, fresh=False),
        _count(asked=False, fresh=True),
    ).where(
        choices.c.tenant == sa.bindparam("tenant", type_=sa.Text),
        sa.bindparam("project_id", type_=sa.Text).is_(None)
        | (choices.c.project_id == sa.bindparam("project_id", type_=sa.Text)),
        choices.c.create_time >= sa.bindparam("from_time", type_=choices.c.create_time.type),
        choices.c.create_time < sa.bindparam("to_time", type_=choices.c.create_time.type),
    ),
    lambda row: Tally(*row),
)


async def tally(
    database: Database,
    tenant: str,
    project_id: str | None,
    from_time: datetime,
    to_time: datetime,
) -> Tally:
    """How users chose: the figure "new vs. continue"."""
    params = {
        "tenant": tenant,
        "project_id": project_id,
        "from_time": from_time,
        "to_time": to_time,
    }
    return await database.fetch_one(_TALLY, params) or Tally(0, 0, 0, 0)


_TRIM = trimming(
    choices.c.decision_id,
    choices.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
)


async def trim(database: Database, age: timedelta, most: int) -> int:
    """Delete up to `most` choices older than this; how many."""
    return await database.fetch_one(_TRIM, {"age": age, "most": most}, PATIENT) or 0
