"""Queries on what users were offered, what they chose, and how long starts took lately."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from session_service.domain.choice import Choice, Offered, Preference
from session_service.domain.session import Continuity, Key, Outcome
from session_service.storage import decisions as decision_rows
from session_service.storage import policies
from session_service.storage.connections import PATIENT
from session_service.storage.database import Connection, Database, Statement, compiled, one
from session_service.storage.rows import scalar
from session_service.storage.tables import choice_tokens, choices, decisions, sessions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta
    from uuid import UUID

    from session_service.storage.decisions import NewDecision

#: So many of the newest decisions with an outcome say how long it takes.
SAMPLE = 50
#: Reuses are looked for among so many of the newest decisions.
NEWEST = 2000
_REUSED: sa.ColumnElement[str] = sa.literal_column("'REUSED'")
_UUID = choices.c.decision_id.type


@dataclass(frozen=True, slots=True)
class NewToken:
    """A candidate that is offered, by the SHA-256 of its token."""

    token_hash: bytes
    choice: Choice
    session_id: UUID
    start_count: int
    expected: Continuity
    checkpoint_id: UUID | None = None


_OFFER = compiled(
    sa.insert(choice_tokens)
    .values(
        **{
            name: sa.bindparam(name, type_=choice_tokens.c[name].type)
            for name in (
                *("token_hash", "tenant", "project_id", "user_id", "slot", "choice"),
                *("session_id", "start_count", "expected_continuity", "checkpoint_id", "offered"),
            )
        },
        expire_time=sa.func.now() + sa.bindparam("valid", type_=sa.Interval),
    )
    .returning(choice_tokens.c.expire_time),
    lambda row: row[0],
)


async def offer(
    database: Database,
    key: Key,
    tokens: Sequence[NewToken],
    offered: str,
    valid: timedelta,
    decision: NewDecision,
) -> datetime | None:
    """Write down what is offered, with the decision that asks; until when its tokens count."""
    expire_time = None
    async with database.transaction() as connection:
        await decision_rows.insert(connection, decision)
        for token in tokens:
            params = {
                **_at(key),
                "token_hash": token.token_hash,
                "choice": token.choice,
                "session_id": token.session_id,
                "start_count": token.start_count,
                "expected_continuity": int(token.expected),
                "checkpoint_id": token.checkpoint_id,
                "offered": offered,
                "valid": valid,
            }
            expire_time = await one(connection, _OFFER, params)
    return expire_time


def _at(key: Key) -> dict[str, str]:
    return {
        "tenant": key.tenant,
        "project_id": key.project_id,
        "user_id": key.user_id,
        "slot": key.slot,
    }


def _make_offered(row: Sequence[Any]) -> Offered:
    key = Key(*row[:4])
    return Offered(key, Choice(row[4]), row[5], row[6], Continuity(row[7]), *row[8:])


# Who used a token and failed in a way that can be retried gives it back, as it does its request id.
_FAILED = sa.exists().where(
    decisions.c.decision_id == choice_tokens.c.decision_id,
    decisions.c.finish_time.is_not(None),
    decisions.c.error["retry_after"].astext.is_not(None),
)
_HASH = choice_tokens.c.token_hash == sa.bindparam("token_hash", type_=sa.LargeBinary)
_FIND = compiled(
    sa.select(
        choice_tokens.c.tenant,
        choice_tokens.c.project_id,
        choice_tokens.c.user_id,
        choice_tokens.c.slot,
        choice_tokens.c.choice,
        choice_tokens.c.session_id,
        choice_tokens.c.start_count,
        choice_tokens.c.expected_continuity,
        choice_tokens.c.checkpoint_id,
        choice_tokens.c.offered,
        sa.case((_FAILED, None), else_=choice_tokens.c.decision_id),
        choice_tokens.c.expire_time <= sa.func.now(),
        choice_tokens.c.create_time,
    ).where(_HASH),
    _make_offered,
)
_USE = compiled(
    sa.update(choice_tokens)
    .where(
        _HASH,
        choice_tokens.c.expire_time > sa.func.now(),
        choice_tokens.c.decision_id.is_(None) | _FAILED,
    )
    .values(decision_id=sa.bindparam("decision_id", type_=_UUID))
    .returning(choice_tokens.c.token_hash),
    lambda row: True,
)

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
        == sa.select(choice_tokens.c.decision_id).where(_HASH).scalar_subquery()
    )
    .returning(choices.c.decision_id),
    lambda row: True,
)


async def find(database: Database, token_hash: bytes) -> Offered | None:
    """What the token of this hash was offered for; None where there is none."""
    return await database.fetch_one(_FIND, {"token_hash": token_hash})


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
        params = {"token_hash": made.token_hash, "decision_id": decision_id}
        # Of a try that came to nothing: it counts once.
        await one(connection, _UNMAKE, params)
        if await one(connection, _USE, params) is None:
            return False
    if made.start_count is not None:
        # A start that finds it running moves no epoch, and so is no hindrance to the commit.
        seen = {"session_id": made.session_id, "start_count": made.start_count}
        if await one(connection, _UNTOUCHED, seen) is None:
            return False
    row = {
        **_at(made.key),
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
    return await database.fetch_one(_LATEST, _at(key))


_STARTS = ("StartSession", "ResumeSession")


def _sample(outcome: Outcome) -> sa.Select[Any]:
    """How long the newest starts with this outcome took, in ms."""
    if outcome is Outcome.REUSED:
        # In no index, since they are most: among the newest decisions, or not at all.
        ids = decisions.c.decision_id.desc()
        rows: sa.FromClause = (
            sa.select(decisions).order_by(ids).limit(NEWEST).subquery("newest_decisions")
        )
    else:
        rows = decisions
    took = sa.func.extract("epoch", rows.c.finish_time - rows.c.create_time) * 1000
    sample = (
        sa.select(took.label("took"))
        .where(
            rows.c.outcome == sa.literal_column(f"'{outcome}'"),
            # In the words of the index, so that it is used.
            *([] if outcome is Outcome.REUSED else [rows.c.outcome != _REUSED]),
            sa.not_(rows.c.joined),
            rows.c.method.in_([sa.literal_column(f"'{method}'") for method in _STARTS]),
        )
        .order_by(rows.c.decision_id.desc())
        .limit(SAMPLE)
        .subquery(f"sample_{outcome.lower()}")
    )
    median: sa.ColumnElement[Any] = sa.func.percentile_disc(0.5).within_group(sample.c.took)
    word: sa.ColumnElement[Any] = sa.literal_column(f"'{outcome}'")
    return sa.select(word, sa.cast(median, sa.BigInteger))


_WAITS = compiled(
    sa.union_all(*(_sample(outcome) for outcome in Outcome)),
    lambda row: (Outcome(row[0]), row[1]),
)


async def waits(database: Database) -> Mapping[Outcome, int]:
    """The median of what the newest starts took, in ms, by outcome; of those that there were."""
    rows = await database.fetch_all(_WAITS, {})
    return {outcome: took for outcome, took in rows if took is not None}


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


#: An expired token is still told apart from one that never was for this long.
EXPIRED_KEPT = sa.text("interval '1 day'")
_MOST = sa.bindparam("most", type_=sa.BigInteger)


def _trim(column: sa.Column[Any], old: sa.ColumnElement[bool]) -> Statement[int]:
    """Delete rows of the column's table that are old. Any: a key of whichever type."""
    chosen = sa.select(column).where(old).limit(_MOST)
    gone = sa.delete(column.table).where(column.in_(chosen)).returning(column).cte("gone")
    return compiled(sa.select(sa.func.count()).select_from(gone), scalar(int))


_TRIM_TOKENS = _trim(
    choice_tokens.c.token_hash, choice_tokens.c.expire_time < sa.func.now() - EXPIRED_KEPT
)
_TRIM_CHOICES = _trim(
    choices.c.decision_id,
    choices.c.create_time < sa.func.now() - sa.bindparam("age", type_=sa.Interval),
)


async def trim_tokens(database: Database, most: int) -> int:
    """Delete up to `most` tokens that expired more than a day ago; how many."""
    return await database.fetch_one(_TRIM_TOKENS, {"most": most}, PATIENT) or 0


async def trim(database: Database, age: timedelta, most: int) -> int:
    """Delete up to `most` choices older than this; how many."""
    return await database.fetch_one(_TRIM_CHOICES, {"age": age, "most": most}, PATIENT) or 0
